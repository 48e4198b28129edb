"""What this project relies on beyond the documented interfaces of its packages; a failure says what changed where."""

import inspect

from hydra import initialize_config_dir
from hydra._internal.hydra import Hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from lightning import Trainer
from lightning.fabric.strategies.launchers import subprocess_script
from tensorboard.summary.writer import record_writer

from flowers.settings.config_reference import CONF
from flowers.settings.overrides import trainer_arguments


def test_lightning_trainer_arguments_can_be_read_from_its_source():
    expected = [name for name in inspect.signature(Trainer.__init__).parameters if name != "self"]
    assert trainer_arguments() == expected, (
        "lightning: pytorch/trainer/trainer.py no longer states the Trainer's arguments as keyword-only arguments of "
        "Trainer.__init__; adapt flowers.settings.config.trainer_arguments"
    )


def test_lightning_launcher_starts_the_module_that_main_spec_names():
    source = inspect.getsource(subprocess_script)
    assert "__main__.__spec__.name" in source, (
        "lightning: the subprocess launcher no longer reads __main__.__spec__.name; check that `flowers train "
        "trainer.devices=2` still starts its other processes (flowers/__main__.py)"
    )


def test_hydra_runs_a_job_as_run_composed_does():
    source = inspect.getsource(Hydra.run)
    for part in ("Callbacks(cfg)", "on_run_start(", "run_job(", 'job_dir_key="hydra.run.dir"', "on_run_end("):
        assert part in source, f"hydra-core: Hydra.run no longer has {part}; adapt flowers.settings.job.run_composed"


def test_hydra_override_grammar_has_the_parts_that_check_overrides_reads():
    (override,) = OverridesParser.create().parse_overrides(["++a.b=1,2"])
    assert (override.key_or_group, override.input_line) == ("a.b", "++a.b=1,2")
    assert override.is_force_add(), "hydra-core: hydra.core.override_parser changed; adapt flowers.settings.config"
    assert override.is_sweep_override(), "hydra-core: hydra.core.override_parser changed; adapt flowers.settings.config"
    assert list(override.sweep_iterator()) == [1, 2], "hydra-core: Override.sweep_iterator changed"


def test_hydra_keeps_its_running_instance_with_its_search_path_in_a_singleton():
    with initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        paths = [entry.path for entry in loader.get_search_path().get_path()]
        assert any(str(CONF) in path for path in paths), (
            "hydra-core: ConfigLoader.get_search_path changed; adapt flowers.settings.config.hydra_context"
        )
        assert "resnet18" in loader.get_group_options("model"), "hydra-core: ConfigLoader.get_group_options changed"


def test_tensorboard_writes_the_checksum_that_its_module_of_records_names():
    assert "masked_crc32c(data)" in inspect.getsource(record_writer.RecordWriter.write), (
        "tensorboard: summary/writer/record_writer.py no longer calls masked_crc32c; adapt "
        "flowers.training.event_checksum.use_fast_checksums, without which the images of a run take seconds"
    )
