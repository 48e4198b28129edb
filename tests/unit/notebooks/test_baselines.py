import sys
from pathlib import Path

import pytest
from rich.console import Console

from flowers.data.datamodule import ImageDataModule
from flowers.runtime.files import read_json
from notebooks.baselines import baseline_table, hog_svm, load_run_result


def test_hog_svm_beats_chance_and_is_deterministic(painted: Path):
    data = ImageDataModule.from_settings(painted, image_size=48, resize=48, num_workers=0)
    result = hog_svm(data)
    low, high = result.interval
    assert result.accuracy > 0.2  # five classes
    assert low < result.accuracy <= high
    assert hog_svm(data).accuracy == result.accuracy


def test_hog_svm_names_the_extra_to_install(painted: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ValueError, match=r"pip install -e '.\[notebooks\]'"):
        hog_svm(ImageDataModule.from_settings(painted))


def test_load_run_result_returns_the_accuracy_and_seconds_of_the_run(trained: Path, capsys: pytest.CaptureFixture[str]):
    result = load_run_result(trained, "resnet18", "random")
    saved = read_json(trained / "result.json")
    assert (result.accuracy, result.seconds) == (saved["val"]["accuracy"], sum(saved["cost"]["seconds"].values()))
    Console(width=100).print(baseline_table([result]))
    assert f"{result.accuracy:.4f}" in capsys.readouterr().out
