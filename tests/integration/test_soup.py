from pathlib import Path

import pytest
import torch

from flowers.evaluate import main as evaluate
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT
from flowers.runtime.files import read_json
from flowers.soup import main
from flowers.training.experiment import run_training
from flowers.training.soup import average_weights
from tests.helpers import TINY, configuration, program_here, weights


@pytest.fixture(name="seeds", scope="module")
def train_seeds(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with the runs of two orders of the photos, and one with a useless learning rate."""
    folder = tmp_path_factory.mktemp("seeds")
    common = [*TINY, "head.epochs=2", "finetune.epochs=1", "data.test_fraction=0.1", f"data.root={painted}"]
    run_training(configuration(*common, f"run_dir={folder}/a"))
    start = weights(folder / "a", LAST_CHECKPOINT)
    backbone = folder / "backbone.pt"
    kept = {name.removeprefix("backbone."): value for name, value in start.items() if name.startswith("backbone.")}
    torch.save(kept | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, backbone)
    for name, more in {"b": ["seed=1"], "c": ["seed=2"], "d": ["optimizer.lr=1e-9", "finetune.epochs=0"]}.items():
        run_training(configuration(*common, *more, f"model.weights={backbone}", f"run_dir={folder}/{name}"))
    return folder


def test_soup_is_a_run_folder_that_scores_what_it_says(seeds: Path, tmp_path: Path):
    given = [f"runs=[{seeds}/b,{seeds}/c,{seeds}/d]", f"output={tmp_path}/soup"]
    accuracy = main(configuration(*given, name="soup"))
    result = read_json(tmp_path / "soup" / "result.json")
    best = max(read_json(seeds / name / "result.json")["val"]["accuracy"] for name in "bcd")
    assert accuracy == result["val"]["accuracy"] >= best
    assert result["soup"]["tried"] == 3
    assert result["soup"]["members"]
    assert result["test"]["n"] > 0
    assert evaluate(configuration(f"run={tmp_path}/soup", name="evaluate")) == accuracy
    with pytest.raises(ValueError, match="the folder is not empty"):
        main(configuration(*given, name="soup"))


def test_soup_of_equal_runs_is_the_run_to_the_bit(seeds: Path):
    weight = weights(seeds / "b", BEST_CHECKPOINT)
    assert all(torch.equal(value, weight[name]) for name, value in average_weights([weight] * 3).items())


def test_soup_refuses_runs_from_other_weights_in_one_line(seeds: Path, tmp_path: Path):
    done = program_here(f"runs=[{seeds}/a,{seeds}/b]", f"output={tmp_path}/soup", name="soup")
    assert done.returncode == 1
    assert "has another weights_digest than" in done.stderr
    assert done.stderr.count("\n") == 1
    assert not (tmp_path / "soup").exists()


def test_soup_needs_two_finished_runs(tmp_path: Path):
    with pytest.raises(ValueError, match="found 0 finished runs with a checkpoint, expected at least two"):
        main(configuration(f"multirun={tmp_path}", f"output={tmp_path}/soup", name="soup"))
