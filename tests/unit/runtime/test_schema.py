from typing import Any

import pytest
from omegaconf import OmegaConf

from flowers.runtime.config import check_settings, load_config
from flowers.runtime.config_reference import PROGRAMS, settings_of
from flowers.runtime.schema import PROGRAM_SCHEMAS, key_names

REQUIRED = {
    "explain": ["run=a", "output=b"],
    "export": ["output=b"],
    "pack": ["photos=a", "output=b"],
    "train": ["run_dir=x"],
}

# Overrides that are wrong, by program, each with a part of the answer.
WRONG: dict[str, dict[str, str]] = {
    "train": {
        "head.cached_views=-1": "expected a whole number, at least 0",
        "head.epochs=five": "expected a whole number, at least 0",
        "head.epochs=2.5": "expected a whole number",
        "head.epochs=true": "expected a whole number",
        "finetune.epochs=-1": "at least 0",
        "finetune.backbone_lr=fast": "expected a number, above 0",
        "finetune.backbone_lr=0": "above 0",
        "finetune.compile=1": "expected true or false",
        "features.cache=maybe": "expected true or false",
        "features.cache_gb=-1": "expected a number, at least 0",
        "seed=-1": "at least 0",
        "seed=1e3": "expected a whole number",
        "optimizer.lr=fast": "expected a number, above 0",
        "optimizer.lr=0": "above 0",
        "optimizer.lr=nan": "above 0",
        "optimizer.weight_decay=-0.1": "at least 0",
        "+optimizer.momentum=1": "below 1",
        "+scheduler.warmup=1": "below 1",
        "+scheduler.gamma=2": "above 0 and at most 1",
        "model.architecture=": "that is not empty",
        "+model.std=[0,1,1]": "three numbers above 0",
        "+model.mean=[0,1]": "three numbers",
        "data.root=": "expected a text that is not empty",
        "data.image_size=0": "expected a whole number from 1 to 4096",
        "data.image_size=10000": "(a batch of 64 such images takes 76.8 GB)",
        "data.image_size=null": "expected a whole number",
        "data.resize=100": "expected at least data.image_size=224",
        "data.crop_scale=[2,3]": "expected [smallest, largest], above 0 and at most 1",
        "data.crop_scale=[0,0]": "above 0",
        "data.crop_scale=[0.5]": "expected [smallest, largest]",
        "data.crop_scale=[0.9,0.1]": "expected [smallest, largest]",
        "data.crop_scale=1": "expected [smallest, largest]",
        "data.crop_ratio=[-1,1]": "expected [smallest, largest], above 0",
        "data.hflip_prob=1.5": "expected a number from 0 to 1",
        "data.hue=0.6": "expected a number from 0 to 0.5",
        "data.brightness=-1": "at least 0",
        "data.batch_size=0": "at least 1",
        "data.num_workers=-1": "at least 0, or null",
        "data.val_fraction=1": "below 1",
        "data.test_fraction=0.9": "expected a sum below 1",
        "data.folds=1": "expected a whole number, at least 2, or 0",
        "data.on_corrupt=skp": "expected one of error, skip: did you mean skip?",
        "data.decoded_cache_fraction=1": "below 1",
        "trainer.accelerator=tpu": "expected one of auto, cpu, gpu, cuda, mps",
        "trainer.devices=0": "expected a number of devices",
        "trainer.devices=two": "expected a number of devices",
        "trainer.precision=bf16-true": "expected one of 32-true, bf16-mixed, 16-mixed, auto: did you mean bf16-mixed?",
        "trainer.precision=64-true": "expected one of 32-true",
        "trainer.deterministic=warm": "did you mean warn?",
        "trainer.log_every_n_steps=-1": "at least 0",
        "++trainer.gradient_clip_val=-1": "expected a number, at least 0, or null",
        "++trainer.accumulate_grad_batches=0": "at least 1",
        "++trainer.limit_train_batches=0": "above 0 and at most 1",
        "++trainer.limit_val_batches=1.5": "above 0 and at most 1",
        "++trainer.max_steps=0": "at least 1",
        "++trainer.profiler=simpel": "did you mean simple?",
        "callbacks.mid_epoch.minutes=-1": "callbacks.mid_epoch.minutes=-1: expected a number, above 0",
        "+head.foo=3": "head.foo: no such key: did you mean head.epochs?",
        "loss.label_smoothing=1": "below 1",
        "+lossy.label_smoothing=0.1": "no such key: did you mean loss.label_smoothing?",
        "+foo=1": "foo: no such key",
        "~data.root": "data.root is missing",
        "~head": "head is missing",
    },
    "evaluate": {
        "split=all": "expected one of train, val, test",
        "accelerator=tpu": "or null",
        "precision=bf16": "bf16-mixed",
    },
    "compare": {
        "runs=A": "expected at least two runs",
        "max_listed=-1": "at least 0",
        "split=train": "one of val, test",
    },
    "predict": {
        "confidence=2": "from 0 to 1, or null",
        "num_workers=-1": "at least 0",
        "photos=[1]": "expected a text",
    },
    "explain": {"output=": "not empty"},
    "export": {"calibration_images=0": "at least 1", "int8=1": "true or false", "min_agreement=2": "from 0 to 1"},
    "app": {"port=70000": "from 0 to 65535", "port=x": "a whole number", "confidence=-1": "from 0 to 1"},
    "sweep": {"sweep.trials=0": "at least 1", "sweep.seed=-1": "at least 0", "sweep.keep=-1": "or null"},
    "pack": {"shard_mb=0": "above 0", "workers=0": "at least 1", "data.val_fraction=-1": "at least 0"},
    "benchmark": {
        "rounds=0": "at least 1",
        "seconds=0": "above 0",
        "step_batch=1": "at least 2",
        "head.epochs=0": "at least 1",
    },
}


@pytest.fixture(scope="module", params=PROGRAMS)
def program(request: pytest.FixtureRequest) -> tuple[str, Any]:
    return request.param, load_config(REQUIRED.get(request.param, []), request.param)


def test_the_schema_lists_the_keys_of_the_configuration(program: tuple[str, Any]):
    name, _ = program
    documented = {setting.key for setting in settings_of(name)}
    assert documented <= {*key_names(PROGRAM_SCHEMAS[name])}


def test_check_settings_names_the_key_the_value_and_what_was_expected(program: tuple[str, Any]):
    name, cfg = program
    for override, answer in WRONG[name].items():
        key, _, value = override.lstrip("+~").partition("=")
        changed: Any = OmegaConf.create(OmegaConf.to_container(cfg))
        if override.startswith("~"):
            parent, _, last = key.rpartition(".")
            group: Any = OmegaConf.select(changed, parent) if parent else changed
            del group[last]
        else:
            OmegaConf.update(changed, key, OmegaConf.create(f"x: {value}").x, force_add=True)
        with pytest.raises(ValueError, match=r".") as error:
            check_settings(changed, name)
        assert answer in str(error.value), override
        assert str(error.value).startswith(key.partition(".")[0]), override
        assert "\n" not in str(error.value)
