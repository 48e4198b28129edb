import csv
import json
import re
import shutil
import signal
import subprocess
import threading
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
import yaml
from lightning import Callback, LightningModule, Trainer
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.data.datamodule import ImageDataModule
from flowers.models.backbones import build_backbone, state_dict_sha256
from flowers.models.checkpoint_format import read_checkpoint
from flowers.runs.resume import expand_resume_args
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT
from flowers.runtime.files import read_json, short_name
from flowers.runtime.seeding import seeded
from flowers.runtime.text import read_csv
from flowers.settings.config import build_parts
from flowers.train import main
from flowers.training.checks import check_config
from flowers.training.experiment import run_training
from flowers.training.in_process import train_in_process
from flowers.training.stage_plan import StagePlan, check_stages
from flowers.training.stages import FinetuneStage
from flowers.training.task import FineTuning
from flowers.training.trackers.csv import image_file
from tests.helpers import SMALL, TINY, configuration, csv_curves, curves, program, program_here, weights

REPRODUCIBLE = (
    "format_version",
    "val",
    "best_epoch",
    "classes",
    "seed",
    "digest",
    "device",
    "precision",
    "versions",
    "git",
)


def backbone_is_unchanged(run: Path, name: str) -> tuple[bool, int]:
    """Return whether the backbone is the one that the run started from, and the epochs of the checkpoint."""
    model = Run(run / name).network()
    epochs = read_checkpoint(run / name)["epoch"] + 1
    return state_dict_sha256(model.backbone) == model.hparams["weights_digest"], epochs


def test_run_folder_holds_every_file_of_a_run(trained: Path):
    files = {path.relative_to(trained).as_posix() for path in trained.rglob("*") if path.is_file()}
    expected = {".lock", "config.yaml", "started.yaml", "split.csv", "result.json", BEST_CHECKPOINT, LAST_CHECKPOINT}
    expected |= {"predictions/val.csv", "predictions/test.csv"}
    assert expected <= files
    evaluated = {
        "report.html",
        "mistakes.csv",
        "report-test.html",
        "mistakes-test.csv",
    }  # the fixture is shared with tests of evaluate
    assert all(file.startswith(("csv/", "tensorboard/")) for file in files - expected - evaluated)


def test_result_json_holds_accuracy_interval_and_cost(trained: Path):
    result = read_json(trained / "result.json")
    val = result["val"]
    assert val["n"] == 10
    assert result["test"]["n"] == 5
    assert val["interval"][0] < val["accuracy"] < val["interval"][1] or val["accuracy"] in (0, 1)
    assert set(result["cost"]["seconds"]) == {"head", "finetune"}
    assert result["cost"]["peak_memory_bytes"] > 1e8
    assert torch.__version__.startswith(result["versions"]["torch"])
    with (trained / "split.csv").open(encoding="utf-8") as file:
        assert len(list(csv.DictReader(file))) == 60


def test_backbone_changes_only_in_the_finetune_stage(painted: Path, trained: Path, tmp_path: Path):
    frozen = [f"data.root={painted}", "finetune.epochs=0", "head.epochs=1"]
    for views in (0, 1):
        run = tmp_path / f"views{views}"
        run_training(configuration(*TINY, *frozen, f"run_dir={run}", f"head.cached_views={views}"))
        assert backbone_is_unchanged(run, BEST_CHECKPOINT) == (True, 1)
    assert backbone_is_unchanged(trained, LAST_CHECKPOINT) == (False, 4)


def test_head_stage_last_checkpoint_needs_the_initial_backbone(painted: Path, tmp_path: Path):
    recipe = [*TINY, f"data.root={painted}", "finetune.epochs=0"]
    run_training(configuration(*recipe, f"run_dir={tmp_path}"))
    assert not [name for name in weights(tmp_path) if name.startswith("backbone.")]
    with pytest.raises(ValueError, match=r"head-stage checkpoint needs the backbone .* use best\.ckpt"):
        Run(tmp_path / LAST_CHECKPOINT).network()
    run_training(configuration(*recipe, f"run_dir={tmp_path}", f"resume={tmp_path}", "head.epochs=3"))
    assert read_checkpoint(tmp_path / LAST_CHECKPOINT)["epoch"] + 1 == 3


def test_checkpoint_alone_classifies_an_image(trained: Path):
    model = Run(trained / BEST_CHECKPOINT).network().eval()
    assert model.classes == ["daisy", "dandelion", "rose", "sunflower", "tulip"]
    assert (model.hparams["image_size"], model.hparams["resize"]) == (32, 32)
    assert model(torch.zeros(1, 3, 32, 32, dtype=torch.uint8)).shape == (1, 5)
    assert model.hparams["split_digest"] == read_json(trained / "result.json")["digest"]["split"]


IMAGE_TAGS = {
    "val_best/class_curves",
    "train/photos",
    "val/photos",
    "val/confusion",
    "val/surest_mistakes",
    "val/least_sure",
}


def test_tensorboard_holds_curves_images_and_hyperparameters(trained: Path):
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    tags = events.Tags()
    assert {
        "train/loss",
        "train/accuracy",
        "val/loss",
        "val/accuracy",
        "train/lr/head",
        "train/lr/backbone",
        "train/photos_per_second",
    } <= set(tags["scalars"])
    assert set(tags["images"]) == IMAGE_TAGS
    assert len(events.Scalars("val/accuracy")) == 4
    assert "_hparams_/session_start_info" in events.summary_metadata
    assert (
        str(trained / BEST_CHECKPOINT).encode()
        in events.Tensors("best_checkpoint/text_summary")[0].tensor_proto.string_val[0]
    )


def test_csv_holds_the_numbers_and_images_of_tensorboard(trained: Path):
    events = EventAccumulator(str(trained / "tensorboard")).Reload()
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in events.Tags()["scalars"]}
    assert {name: points for name, points in csv_curves(trained).items() if name != "train/epoch"} == scalars
    images = {f"csv/{image_file(tag, event.step)}" for tag in events.Tags()["images"] for event in events.Images(tag)}
    assert images == {path.relative_to(trained).as_posix() for path in (trained / "csv").rglob("*.png")}
    settings = yaml.safe_load((trained / "csv" / "hparams.yaml").read_text(encoding="utf-8"))
    assert settings["optimizer.lr"] == 0.002
    assert settings["best_checkpoint"] == str(trained / BEST_CHECKPOINT)


@pytest.mark.slow
def test_run_killed_in_each_stage_and_in_a_checkpoint_ends_like_an_uninterrupted_one(painted: Path, tmp_path: Path):
    recipe = [*TINY, f"data.root={painted}", "model.architecture=mobilenet_v3_small", "scheduler=cosine"]
    recipe += ["head.cached_views=2", "+callbacks.kill._target_=tests.helpers.KillAt", "logger=[tensorboard,csv]"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(configuration(*recipe, f"run_dir={whole}"))
    first = program(*recipe, f"hydra.run.dir={killed}", KILL_AT="1.0")
    second = program(f"resume={killed}", KILL_AT="3.1")
    third = program(f"resume={killed}", KILL_AT="3.save")
    last = program(f"resume={killed}")
    assert [done.returncode for done in (first, second, third)] == [-signal.SIGKILL] * 3
    assert last.returncode == 0, last.stderr

    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        found, expected = weights(killed, name), weights(whole, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    killed_result, whole_result = (read_json(run / "result.json") for run in (killed, whole))
    assert {key: killed_result[key] for key in REPRODUCIBLE} == {key: whole_result[key] for key in REPRODUCIBLE}
    assert curves(killed) == curves(whole)
    found_rows, expected_rows = csv_curves(killed), csv_curves(whole)
    del found_rows["train/photos_per_second"], expected_rows["train/photos_per_second"]
    assert found_rows == expected_rows


@pytest.mark.parametrize("at", ["2.1", "2.2", "1.0"])
def test_sigterm_saves_at_the_next_step_and_the_run_resumes_to_the_same_bits(
    at: str, painted: Path, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = [*TINY, f"data.root={painted}", "data.test_fraction=0.1", f"run_dir={tmp_path}"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    monkeypatch.setenv("KILL_AT", at)
    monkeypatch.setenv("KILL_SIGNAL", str(int(signal.SIGTERM)))
    with pytest.raises(SystemExit) as error:
        run_training(configuration(*recipe))
    assert error.value.code == 130
    stopped = read_checkpoint(tmp_path / LAST_CHECKPOINT)
    assert ("mid_epoch" in stopped) == (
        at == "2.1"
    )  # else the epoch ended first: it takes no time, or no step was left
    assert stopped["progress"]["epochs_done"] == {"2.1": 2, "2.2": 3, "1.0": 2}[at]
    monkeypatch.delenv("KILL_AT")
    run_training(configuration(*recipe, f"resume={tmp_path}"))
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        found, expected = weights(tmp_path, name), weights(tiny, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


@pytest.mark.parametrize("is_finished", [False, True])
def test_lost_best_checkpoint_is_replaced_and_said(
    is_finished: bool, painted: Path, tiny: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
):
    run = tmp_path / "run"
    shutil.copytree(tiny, run)
    (run / BEST_CHECKPOINT).unlink()
    recipe = [*TINY, f"data.root={painted}", "data.test_fraction=0.1", f"run_dir={run}", f"resume={run}"]
    run_training(configuration(*recipe, *([] if is_finished else ["finetune.epochs=3"])))
    assert "best.ckpt is missing" in caplog.text
    assert read_checkpoint(run / BEST_CHECKPOINT)["progress"]["epochs_done"] == (4 if is_finished else 5)
    assert "best.ckpt" not in {path.suffix for path in run.rglob("*.part")}


def test_schedule_ends_where_max_steps_ends_the_run(painted: Path, tmp_path: Path):
    recipe = [*TINY, f"data.root={painted}", f"run_dir={tmp_path}", "head.epochs=0", "scheduler=cosine"]
    run_training(configuration(*recipe, "++trainer.max_steps=6", "trainer.log_every_n_steps=1"))
    rates = [rate for _, rate in curves(tmp_path)["train/lr/backbone"]]
    assert len(rates) == 6
    assert rates[-1] < 0.1 * max(rates)


def test_same_command_gives_the_same_result(painted: Path, tmp_path: Path):
    runs = []
    for name in "ab":
        main(
            configuration(
                *TINY, f"data.root={painted}", f"run_dir={tmp_path / name}", "head.epochs=1", "finetune.epochs=1"
            )
        )
        runs.append(read_json(tmp_path / name / "result.json"))
    assert {key: runs[0][key] for key in REPRODUCIBLE} == {key: runs[1][key] for key in REPRODUCIBLE}


def test_trainer_overrides_set_clipping_accumulation_and_precision(painted: Path, tmp_path: Path):
    overrides = ["++trainer.gradient_clip_val=1", "++trainer.accumulate_grad_batches=2", "trainer.precision=bf16-mixed"]
    run_training(configuration(*TINY, *overrides, f"data.root={painted}", f"run_dir={tmp_path}", "scheduler=one_cycle"))
    last = read_checkpoint(tmp_path / LAST_CHECKPOINT)
    assert last["global_step"] == last["progress"]["steps"] == 8  # 4 epochs of 50 images: 4 batches of 16, 2 steps
    assert read_json(tmp_path / "result.json")["precision"] == "bf16-mixed"


def test_run_folder_is_not_overwritten(tiny: Path, painted: Path):
    before = (tiny / "result.json").read_bytes()
    with pytest.raises(ValueError, match="already holds a run"):
        run_training(configuration(*TINY, f"data.root={painted}", f"run_dir={tiny}"))
    assert (tiny / "result.json").read_bytes() == before


def test_refused_start_leaves_the_run_resumable(painted: Path, tmp_path: Path):
    start = [*TINY, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", f"hydra.run.dir={tmp_path}/run"]
    train_in_process([*start, "head.cached_views=0"])
    with pytest.raises(ValueError, match="already holds a run"):
        train_in_process([*start, "seed=7"])
    assert "the images or their split differ from" in program_here(f"resume={tmp_path}/run", "data.split_seed=9").stderr
    resumed = expand_resume_args([f"resume={tmp_path}/run"])
    assert "head.cached_views=0" in resumed
    assert not {"seed=7", "data.split_seed=9"} & set(resumed)


def test_moved_run_keeps_its_best_score(painted: Path, tmp_path: Path):
    first, moved = tmp_path / "first", tmp_path / "moved"
    recipe = (*TINY, f"data.root={painted}", "callbacks.best.monitor=val/loss", "callbacks.best.mode=min")
    run_training(configuration(*recipe, f"run_dir={first}", "finetune.epochs=0"))
    shutil.copytree(first, moved)
    before = (first / BEST_CHECKPOINT).read_bytes()
    worse = "optimizer.lr=1", "finetune.backbone_lr=1"
    run_training(configuration(*recipe, f"run_dir={moved}", f"resume={moved}", "finetune.epochs=1", *worse))
    assert read_json(moved / "result.json")["best_epoch"] == read_json(first / "result.json")["best_epoch"]
    assert (moved / BEST_CHECKPOINT).read_bytes() == before


@pytest.mark.parametrize(
    ("lengths", "expected"),
    [
        (["finetune.epochs=1"], "finetune.epochs=1: expected at least 2, the epochs that"),
        (["head.epochs=3"], "head.epochs=3: the head stage of"),
        (["head.epochs=1", "finetune.epochs=9"], "has ended: resume it with head.epochs=2"),
    ],
)
def test_resume_refuses_to_change_what_is_trained(lengths: list[str], expected: str, tiny: Path, painted: Path):
    overrides = [f"data.root={painted}", f"run_dir={tiny}", f"resume={tiny}", *lengths]
    with pytest.raises(ValueError, match=re.escape(expected)):
        run_training(configuration(*TINY, *overrides))


def test_resume_with_more_epochs_and_other_batches_ends_with_the_hyperparameters_of_a_whole_run(
    painted: Path, tmp_path: Path
):
    """One cycle moves the momentum, too; a batch of the head stage holds several steps unless gradients are clipped."""
    recipe = [*TINY, f"data.root={painted}", "finetune.epochs=0", "optimizer=sgd", "scheduler=one_cycle"]
    longer = ["head.epochs=4", "data.batch_size=7", "++trainer.gradient_clip_val=1", "optimizer.lr=0.01"]
    resumed, whole = tmp_path / "resumed", tmp_path / "whole"
    run_training(configuration(*recipe, f"run_dir={resumed}"))
    run_training(configuration(*recipe, *longer, f"run_dir={resumed}", f"resume={resumed}"))
    run_training(configuration(*recipe, *longer, f"run_dir={whole}"))
    found, expected = (read_checkpoint(run / LAST_CHECKPOINT) for run in (resumed, whole))
    groups = [each["optimizer_states"][0]["param_groups"] for each in (found, expected)]
    assert groups[0] == groups[1]
    assert found["lr_schedulers"] == expected["lr_schedulers"]


def test_non_finite_validation_loss_stops_the_run_before_a_checkpoint(painted: Path, tmp_path: Path):
    overrides = ["optimizer.lr=1e37", "data.batch_size=64", "head.epochs=1", "finetune.epochs=0"]
    with pytest.raises(ValueError, match="validation loss became"):
        run_training(configuration(*SMALL, *overrides, f"data.root={painted}", f"run_dir={tmp_path / 'run'}"))
    assert not (tmp_path / "run" / LAST_CHECKPOINT).exists()


def test_non_finite_training_loss_stops_the_run_before_a_checkpoint(painted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=r"training loss became (nan|inf).*smaller optimizer.lr"):
        run_training(configuration(*SMALL, f"data.root={painted}", f"run_dir={tmp_path / 'run'}", "optimizer.lr=1e37"))
    assert not (tmp_path / "run" / BEST_CHECKPOINT).exists()


def test_no_epoch_at_all_is_refused(painted: Path, tmp_path: Path):
    with pytest.raises(ValueError, match="expected at least 1 epoch in one of them"):
        run_training(
            configuration(*TINY, f"data.root={painted}", f"run_dir={tmp_path}", "head.epochs=0", "finetune.epochs=0")
        )


def test_multirun_continues_after_a_failed_job_and_writes_the_table(painted: Path, tmp_path: Path):
    done = program_here("-m", *TINY, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", "seed=0,1",
                   "optimizer.lr=0.001,1e37", f"hydra.sweep.dir={tmp_path}")  # fmt: skip
    assert done.returncode == 1
    with (tmp_path / "runs.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 4
    assert [row["accuracy"] != "" for row in rows] == [True, True, False, False]
    assert float(rows[0]["accuracy"]) >= float(rows[1]["accuracy"])
    failed = rows[-1]["run"]
    assert "Traceback" in (tmp_path / failed / "train.log").read_text(encoding="utf-8")
    assert "Traceback" not in done.stdout + done.stderr
    assert "2 of 4 runs failed" in done.stderr
    good = json.loads((tmp_path / rows[0]["run"] / "result.json").read_text(encoding="utf-8"))
    assert good["val"]["accuracy"] == float(rows[0]["accuracy"])
    settings = [yaml.safe_load((tmp_path / row["run"] / "config.yaml").read_text(encoding="utf-8")) for row in rows]
    assert {each["group"] for each in settings} == {short_name(tmp_path)}


def test_a_multirun_resumes_what_is_left(painted: Path, tmp_path: Path):
    folder = tmp_path / "my runs (1)"
    recipe = [*TINY, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", "seed=0,1,2"]
    program_here("-m", *recipe, f"hydra.sweep.dir={folder}")
    runs = [folder / str(number) for number in range(3)]
    scores = [read_json(run / "result.json")["val"] for run in runs]
    table = [row[:-1] for row in read_csv(folder / "runs.csv")]  # all but the seconds
    (runs[1] / "result.json").unlink()
    shutil.rmtree(runs[2])
    finished = (runs[0] / "result.json").stat().st_mtime_ns
    assert_one_line(program_here(f"resume={folder}", "seed=3"), "a multirun resumes with its own settings")
    done = program_here("-m", f"resume={folder}")
    assert (done.returncode, (runs[0] / "result.json").stat().st_mtime_ns) == (0, finished), done.stderr
    assert "has finished already, with accuracy" in done.stderr + done.stdout
    assert [read_json(run / "result.json")["val"] for run in runs] == scores
    assert [row[:-1] for row in read_csv(folder / "runs.csv")] == table
    assert sorted(path.name for path in folder.iterdir() if path.is_dir()) == ["0", "1", "2"]
    (runs[1] / "started.yaml").write_text("cwd: /\noverrides: [seed=7]\n", encoding="utf-8")
    assert program_here("-m", f"resume={folder}").returncode == 1
    assert "holds another run, with other settings" in (runs[1] / "train.log").read_text(encoding="utf-8")


def test_a_job_that_is_wrong_from_the_start_does_not_stop_the_others(painted: Path, tmp_path: Path):
    recipe = [*TINY, f"data.root={painted}", "head.epochs=1", "finetune.epochs=0", "optimizer.lr=-1,0.001"]
    done = program_here("-m", *recipe, f"hydra.sweep.dir={tmp_path}")
    assert done.returncode == 1
    assert "warning: optimizer.lr=-1: expected a number, above 0: jobs with this value will fail" in done.stderr
    assert [(tmp_path / name / "result.json").exists() for name in ("0", "1")] == [False, True]
    assert_one_line(program_here("-m", *recipe, "optimizer.lr=-1,-2"), "optimizer.lr=-1: expected a number, above 0")


def test_user_error_is_one_line_without_traceback(tmp_path: Path):
    for overrides, message in (
        (["data=folder", "data.root=/nowhere", f"hydra.run.dir={tmp_path}/run"], "/nowhere"),
        ([f"resume={tmp_path}"], "no run there"),
    ):
        assert_one_line(program_here(*overrides), message)


def assert_one_line(done: subprocess.CompletedProcess[str], message: str) -> None:
    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert message in done.stderr
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("data.val_fraction=1.5", "data.val_fraction=1.5"),
        ("data.image_size=300", "data.image_size=300"),
        ("data.decoded_cache_fraction=2", "data.decoded_cache_fraction=2"),
        ("model.weights=/nowhere.pth", "model.weights=/nowhere.pth"),
        ("model.architecture=resnet19", "model.architecture=resnet19"),
        ("trainer.accelerator=cuda", "accelerator=cuda"),
        ("trainer.strategy=fsdp", "trainer.strategy=fsdp"),
        ("head.epochs=-1", "head.epochs=-1"),
        ("head.cached_views=-1", "head.cached_views=-1"),
    ],
)
def test_invalid_setting_is_refused_before_anything_is_downloaded_or_written(
    override: str, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    if override == "trainer.accelerator=cuda" and torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    monkeypatch.setenv("FLOWERS_DATA", str(tmp_path / "data"))
    settings = ["data=flower_photos", "model=resnet18", "model.weights=null", "trainer=cpu", "data.source.url=x:"]
    with pytest.raises(ValueError, match=re.escape(message)) as error:
        run_training(configuration(*settings, f"run_dir={tmp_path}/run", override))
    assert "\n" not in str(error.value)
    assert list(tmp_path.iterdir()) == []


def test_user_error_leaves_only_the_files_of_hydra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    overrides = ["data=flower_photos", "trainer=cpu", "model.weights=/nowhere.pth", f"hydra.run.dir={tmp_path}/run"]
    monkeypatch.setenv("FLOWERS_DATA", str(tmp_path / "data"))
    assert_one_line(program_here(*overrides), "model.weights=/nowhere.pth")
    assert {path.name for path in tmp_path.rglob("*")} <= {
        *("run", "train.log", ".hydra", "config.yaml", "hydra.yaml", "overrides.yaml")
    }


def test_extra_callbacks_see_every_epoch_of_both_stages(painted: Path, tmp_path: Path):
    class Recording(Callback):
        def __init__(self) -> None:
            self.epochs: list[tuple[str, int]] = []

        def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.epochs.append((cast(FineTuning, pl_module).stage.name, trainer.current_epoch))

    recording = Recording()
    epochs = "head.epochs=1", "finetune.epochs=1"
    run_training(configuration(*TINY, f"data.root={painted}", f"run_dir={tmp_path}", *epochs), [recording])
    assert recording.epochs == [("head", 0), ("finetune", 1)]


RECIPE = (
    "callbacks=ema",
    "callbacks.ema.decay=0.7",
    "mixing=mixup_or_cutmix",
    "optimizer=adamw",
    "scheduler=cosine",
    "finetune.layer_decay=0.7",
    "finetune.norm_weight_decay=0",
    "finetune.depth=3",
    "finetune.image_sizes=[24,32]",
    "data/augmentation=strong",
    "head.init=probe",
    "data.balance=sampler",
    "tta=flip",
)


@pytest.fixture(name="recipe_run", scope="module")
def train_recipe(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run with every part of a recipe that draws or averages."""
    run = tmp_path_factory.mktemp("recipe")
    run_training(configuration(*TINY, *RECIPE, f"data.root={painted}", "data.test_fraction=0.1", f"run_dir={run}"))
    return run


@pytest.mark.parametrize("at", ["2.1", "3.2"])
def test_recipe_killed_inside_an_epoch_resumes_to_the_same_bits(
    at: str, painted: Path, recipe_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = [*TINY, *RECIPE, f"data.root={painted}", "data.test_fraction=0.1", f"run_dir={tmp_path}"]
    recipe += ["+callbacks.kill._target_=tests.helpers.KillAt"]
    monkeypatch.setenv("KILL_AT", at)
    monkeypatch.setenv("KILL_SIGNAL", str(int(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        run_training(configuration(*recipe))
    monkeypatch.delenv("KILL_AT")
    run_training(configuration(*recipe, f"resume={tmp_path}"))
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        found, expected = weights(tmp_path, name), weights(recipe_run, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)


def test_best_checkpoint_of_an_average_holds_the_weights_that_were_validated(painted: Path, tmp_path: Path):
    """Lightning puts the raw weights into a weights-only checkpoint, under the score of the averaged ones."""
    overrides = [*TINY, "callbacks=ema", "callbacks.ema.decay=0.9", "head.epochs=0", f"data.root={painted}"]
    cfg = configuration(*overrides, f"run_dir={tmp_path}", "finetune.backbone_lr=0.01")
    run_training(cfg)
    best = read_checkpoint(tmp_path / BEST_CHECKPOINT)
    last = read_checkpoint(tmp_path / LAST_CHECKPOINT)
    assert "current_model_state" not in best
    assert not torch.equal(last["state_dict"]["head.weight"], last["current_model_state"]["head.weight"])
    printed = dict(curves(tmp_path)["val/loss"])[best["progress"]["steps"] - 1]
    data = ImageDataModule.from_settings(**build_parts(cfg.data), seed=0)
    trainer = Trainer(logger=False, enable_progress_bar=False, enable_checkpointing=False, accelerator="cpu")
    scores = trainer.validate(FineTuning(Run(tmp_path / BEST_CHECKPOINT).network()), data, verbose=False)[0]
    assert scores["val/loss"] == pytest.approx(printed, rel=1e-7)
    evaluated = read_json(tmp_path / "result.json")["val"]["accuracy"]
    assert evaluated == pytest.approx(scores["val/accuracy"], abs=1e-7)


CACHED = ("finetune.depth=1", "finetune.cached_views=2", "callbacks=ema", "head.epochs=1", "finetune.epochs=2",
          "data.balance=weights")  # fmt: skip


def test_run_on_cached_activations_killed_inside_an_epoch_resumes_to_the_same_bits(
    painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    recipe = [*TINY, *CACHED, f"data.root={painted}", "+callbacks.kill._target_=tests.helpers.KillAt"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run_training(configuration(*recipe, f"run_dir={whole}"))
    monkeypatch.setenv("KILL_AT", "2.1")
    monkeypatch.setenv("KILL_SIGNAL", str(int(signal.SIGTERM)))
    with pytest.raises(SystemExit):
        run_training(configuration(*recipe, f"run_dir={killed}"))
    assert "mid_epoch" in read_checkpoint(killed / LAST_CHECKPOINT)
    monkeypatch.delenv("KILL_AT")
    run_training(configuration(*recipe, f"run_dir={killed}", f"resume={killed}"))
    for name in (BEST_CHECKPOINT, LAST_CHECKPOINT):
        found, expected = weights(killed, name), weights(whole, name)
        assert all(torch.equal(found[key], expected[key]) for key in expected)
    assert curves(killed) == curves(whole)


@pytest.mark.parametrize(
    ("setting", "expected"),
    [
        ("finetune.depth=null", "expected finetune.depth, the number of trained blocks, or finetune.cached_views=0"),
        ("finetune.image_sizes=[24]", "expected finetune.image_sizes=null, or finetune.cached_views=0"),
        ("finetune.compile=true", "expected finetune.compile=false, or"),
        ("mixing=mixup", "expected mixing=null, or"),
        ("finetune.depth=9", "ResNet cannot be split before its last 9 blocks: it has 5 of them"),
        ("finetune.cached_views=3000000", "of free memory: expected fewer views"),
    ],
)
def test_cached_activations_refuse_what_needs_images(setting: str, expected: str, painted: Path, tmp_path: Path):
    settings = [*TINY, "head.epochs=0", "finetune.depth=1", "finetune.cached_views=2", setting]
    with pytest.raises(ValueError, match=re.escape(expected)):
        run_training(configuration(*settings, f"data.root={painted}", f"run_dir={tmp_path}"))


def test_cached_activations_refuse_several_processes(painted: Path):
    data = ImageDataModule.from_settings(painted, batch_size=16)
    trainer: Any = SimpleNamespace(world_size=2)
    with pytest.raises(ValueError, match=r"finetune\.cached_views=2 with 2 processes: expected trainer\.devices=1"):
        check_stages([StagePlan(FinetuneStage(cached_views=2), 1, 1)], data, trainer)


def test_resume_inside_an_epoch_refuses_another_order_of_the_images(painted: Path):
    data = ImageDataModule.from_settings(painted, batch_size=16, balance="sampler")
    plans, trainer = [StagePlan(FinetuneStage(), 1, 1, None, "data.batch_size=16")], SimpleNamespace(world_size=1)
    with pytest.raises(
        ValueError, match=r"with data\.batch_size=16, found data\.batch_size=16 and data\.balance=sampler"
    ):
        check_stages(plans, data, trainer)  # type: ignore[arg-type]


def test_weights_of_the_classes_are_given_once():
    with pytest.raises(ValueError, match=r"data\.balance=weights with loss\.class_weights: expected one of them"):
        check_config(configuration(*TINY, "data.root=x", "run_dir=x", "data.balance=weights", "loss.class_weights=[1]"))


def test_a_step_on_cached_activations_is_that_on_images(painted: Path, tmp_path: Path):
    # One step only: after many, rounding ends elsewhere.
    settings = ["finetune.depth=1", "head.epochs=0", "finetune.epochs=1", "+trainer.limit_train_batches=1"]
    settings += ["data/augmentation=none", "optimizer=sgd", f"data.root={painted}"]  # Adam turns rounding into steps
    for views in (0, 1):
        run = [f"finetune.cached_views={views}", f"run_dir={tmp_path / str(views)}"]
        run_training(configuration(*TINY, *settings, *run))
    for name, points in curves(tmp_path / "0").items():
        values = [value for _, value in curves(tmp_path / "1")[name]]
        assert values == pytest.approx([value for _, value in points], rel=1e-4), name
    found, expected = weights(tmp_path / "1"), weights(tmp_path / "0")
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        assert torch.allclose(found[key].float(), value.float(), rtol=1e-4, atol=1e-4), key


def test_depth_trains_the_last_blocks_only(painted: Path, tmp_path: Path):
    overrides = [*TINY, "finetune.depth=1", "head.epochs=0", "finetune.epochs=1", f"data.root={painted}"]
    run_training(configuration(*overrides, f"run_dir={tmp_path}"))
    model = Run(tmp_path / BEST_CHECKPOINT).network()
    with seeded(0):
        start = build_backbone("timm/test_resnet", None, {})[0].state_dict()
    weights = model.backbone.state_dict().items()
    assert {name.partition(".")[0] for name, value in weights if not torch.equal(value, start[name])} == {"layer4"}


@pytest.mark.parametrize("init", ["zero", "probe"])
def test_head_starts_as_asked(init: str, painted: Path, tmp_path: Path):
    class FirstHead(Callback):
        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            self.weight = pl_module.state_dict()["head.weight"].clone()

    first = FirstHead()
    overrides = [*TINY, f"head.init={init}", "head.epochs=1", "finetune.epochs=0", f"data.root={painted}"]
    before = set(threading.enumerate())
    run_training(configuration(*overrides, f"run_dir={tmp_path}"), [first])
    assert not set(threading.enumerate()) - before  # the writers of TensorBoard's files have ended
    assert (first.weight == 0).all() == (init == "zero")


@pytest.mark.parametrize("experiment", ["best", "best_small"])
def test_best_experiments_run_with_random_weights(experiment: str, painted: Path, tmp_path: Path):
    small = [*SMALL[:5], "model.weights=null", *SMALL[9:11], f"data.root={painted}", f"run_dir={tmp_path}"]
    small += ["finetune.epochs=1"]
    if experiment == "best":  # of the same kind, and smaller
        pytest.importorskip("timm")
        small += ["model.architecture=convnext_atto"]
    else:
        small += ["finetune.cached_views=2"]
    run_training(configuration(*small, f"experiment={experiment}"))
    result = read_json(tmp_path / "result.json")
    assert result["best_epoch"] == 1
    hparams = read_checkpoint(tmp_path / BEST_CHECKPOINT)["hyper_parameters"]
    assert hparams["config"]["tta"] == "flip"
    assert hparams["mean"] == pytest.approx([0.485, 0.456, 0.406])


def test_image_sizes_take_turns_over_the_finetune_stage(painted: Path, tmp_path: Path):
    class Sizes(Callback):
        def __init__(self) -> None:
            self.seen: list[tuple[int, int]] = []

        def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
            def note(_: object, inputs: tuple[torch.Tensor]) -> None:
                if trainer.training and (found := (trainer.current_epoch, inputs[0].shape[-1])) not in self.seen:
                    self.seen.append(found)

            pl_module.get_submodule("network.backbone").register_forward_pre_hook(note)

    sizes = Sizes()
    overrides = [*TINY, "head.epochs=1", "finetune.epochs=3", "finetune.image_sizes=[16,24]", f"data.root={painted}"]
    run_training(configuration(*overrides, "head.cached_views=0", f"run_dir={tmp_path}"), [sizes])
    assert sizes.seen == [(0, 32), (1, 16), (2, 16), (3, 24)]
