import sys
from pathlib import Path

import pytest
from rich.console import Console

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.baselines import baseline_table, hog_svm, load_run_result
from flowers.runtime.files import read_json


def test_histograms_and_a_machine_learn_shapes(painted: Path):
    data = ImageDataModule(painted, image_size=48, resize=48, num_workers=0)
    entry = hog_svm(data)
    low, high = entry.interval
    assert entry.accuracy > 0.2  # of five kinds, better than by chance
    assert low < entry.accuracy <= high
    assert hog_svm(data).accuracy == entry.accuracy


def test_a_run_says_how_good_and_how_dear_it_was(trained: Path, capsys: pytest.CaptureFixture[str]):
    entry = load_run_result(trained, "resnet18", "random")
    result = read_json(trained / "result.json")
    assert (entry.accuracy, entry.seconds) == (result["val"]["accuracy"], sum(result["cost"]["seconds"].values()))
    Console(width=100).print(baseline_table([entry]))
    assert f"{entry.accuracy:.4f}" in capsys.readouterr().out


def test_the_extra_is_named_where_it_lacks(painted: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "skimage.feature", None)
    with pytest.raises(ValueError, match=r"pip install 'flowers\[notebooks\]'"):
        hog_svm(ImageDataModule(painted))
