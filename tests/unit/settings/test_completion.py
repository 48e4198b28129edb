from pathlib import Path

import pytest

from flowers.settings.completion import complete, completions
from flowers.settings.config_reference import options_of

COMMANDS = ["train", "evaluate", "schema"]


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("tr", ["train"]),
        ("", COMMANDS),
        ("train optimizer.l", ["optimizer.lr="]),
        ("train opt", ["optimizer.", "optimizer="]),
        ("train ++trainer.acc", ["++trainer.accelerator="]),
        ("train ~callbacks.pro", ["~callbacks.progress"]),
        ("train optimizer=adam", ["optimizer=adam", "optimizer=adamw"]),
        ("train model=resnet15", ["model=resnet152"]),
        ("train model=regnet_x_16", ["model=regnet_x_16gf"]),  # without a file in conf/
        ("train data/augmentation=l", ["data/augmentation=light"]),
        ("train hydra/launcher=j", ["hydra/launcher=joblib"]),
        ("train head.init=", ["head.init=random", "head.init=zero", "head.init=probe"]),
        ("train data.balance=s", ["data.balance=sampler"]),
        ("train features.cache=", ["features.cache=true", "features.cache=false"]),
        ("train seed=", ["seed=0"]),
        ("train data.root=", []),  # left to the shell, which completes files
        ("train resume=", []),
        ("train --mul", ["--multirun"]),
        ("train data=garden data.source.n", ["data.source.number="]),
        ("train experiment=quickstart data.source.n", ["data.source.number="]),
        ("sweep sweep.tr", ["sweep.trials="]),
        ("sweep finetune.dep", ["finetune.depth="]),
        ("evaluate tta=f", ["tta=flip", "tta=five_crop"]),
        ("evaluate optimizer.", []),
        ("schema k", []),
        ("unknown ", []),
    ],
)
def test_complete_returns_what_the_last_word_may_become(line: str, expected: list[str]):
    assert complete(line.split(" "), COMMANDS) == expected


def test_complete_knows_all_options_of_a_group():
    assert complete(["train", "trainer="], COMMANDS) == [f"trainer={each}" for each in [*options_of("trainer"), "null"]]


@pytest.mark.parametrize(
    ("line", "word", "expected"),
    [
        ("flowers train head.init=pr", "pr", ["probe"]),  # bash replaces what follows =
        ("flowers train head.init=pr", "head.init=pr", ["head.init=probe"]),  # without = in COMP_WORDBREAKS
        ("flowers train head.init=", "", ["random", "zero", "probe"]),
        ("flowers train head.ep", "head.ep", ["head.epochs="]),
        ("flowers tra", "tra", ["train"]),
        ("flowers ", "", COMMANDS),
    ],
)
def test_completions_begin_with_the_word_that_bash_replaces(line: str, word: str, expected: list[str]):
    assert completions(line, word, COMMANDS) == expected


def test_completion_offers_options_of_the_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "experiment").mkdir(parents=True)
    (tmp_path / "conf" / "experiment" / "completed.yaml").write_text("# @package _global_\nseed: 1\n")
    assert complete(["train", "experiment=comp"], COMMANDS) == ["experiment=completed"]
