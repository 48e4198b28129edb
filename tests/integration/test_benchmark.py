import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from flowers.benchmark import main
from flowers.benchmarks.baseline import BaselineDataset, baseline_transform, training_images
from flowers.benchmarks.report import COLUMNS, finetune_stage, head_stage, predicted_rows
from flowers.data.datamodule import ImageDataModule
from flowers.runtime.timing import Measurement, flops_per_image, make_measurement, measure_interleaved, summarize
from tests.helpers import SMALL, configuration

OWN = [override for override in SMALL if not override.startswith(("head.", "finetune."))]
ROWS = {
    "decoding": {"plain": 100.0, "ours": 200.0, "limit": 1000.0},
    "input pipeline": {"plain": 50.0, "ours": 100.0, "limit": 500.0},
    "forward pass": {"plain": 10.0, "ours": 40.0, "limit": 50.0},
    "head pass": {"plain": 8.0, "ours": 20.0, "limit": 50.0},
    "head epoch": {"plain": 12.5, "ours": 0.5, "limit": None},
    "training step": {"plain": 2.0, "ours": 8.0, "limit": 16.0},
}
COUNTS = (80, 20)


@pytest.fixture(scope="module")
def measured(painted: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    output = tmp_path_factory.mktemp("benchmark") / "speeds.json"
    given = [f"data.root={painted}", "rounds=1", "seconds=0.05", "step_batch=4", "head.epochs=3", f"output={output}"]
    returned = main(configuration(*OWN, *given, name="benchmark"))
    written = json.loads(output.read_text(encoding="utf-8"))
    assert written == json.loads(json.dumps(returned))
    return dict(written)


def test_every_row_has_every_column_and_says_where_it_was_measured(measured: dict[str, Any]):
    assert list(measured["rows"]) == [*ROWS, "head stage, 3 epochs", "report, predicted", "head_only, predicted"]
    for name, row in measured["rows"].items():
        for column in COLUMNS:
            assert (row[column] is None) == (name == "head epoch" and column == "limit")
            assert row[column] is None or row[column] > 0
    assert measured["precision"] == "32-true"
    assert measured["photos"] == {"train": 50, "val": 10, "step": 4, "forward": measured["photos"]["forward"]}
    assert {"device", "versions", "git", "settings", "needed"} <= set(measured)
    assert measured["settings"]["rounds"] == 1


def test_the_medians_lie_in_their_spread(measured: dict[str, Any]):
    for key, spread in measured["spread"].items():
        name, column = key.split(", ")
        assert spread["min"] <= spread["median"] <= spread["max"]
        if name in ROWS:
            assert measured["rows"][name][column] == spread["median"]


def test_a_ratio_is_of_speeds(measured: dict[str, Any]):
    for row in measured["rows"].values():
        for other in ("plain", "limit"):
            ratio = row[f"ours/{other}"]
            if row[other] is None:
                assert ratio is None
            elif row["unit"] == "seconds":
                assert ratio == row[other] / row["ours"]
            else:
                assert ratio == row["ours"] / row[other]


def test_what_is_predicted_follows_from_the_rows_written(measured: dict[str, Any]):
    rows, settings = measured["rows"], measured["settings"]
    base = {name: rows[name] for name in ROWS}
    again = predicted_rows(base, (50, 10), settings["head"]["epochs"], settings["predict"], 1, False)
    assert again == rows


def test_the_head_stage_is_one_pass_and_epochs_on_features():
    assert head_stage(ROWS, COUNTS, epochs=50) == {"plain": 625.0, "ours": 5.0 + 25.0, "limit": 2.0}
    assert head_stage(ROWS, COUNTS, epochs=0) == dict.fromkeys(COLUMNS, 0.0)


def test_fine_tuning_waits_for_the_slower_of_loading_and_computing_or_for_both():
    beside = finetune_stage(ROWS, COUNTS, epochs=2, loaders=1, side_by_side=True)
    assert beside == {"plain": 2 * (40.0 + 2.0), "ours": 2 * (10.0 + 0.5), "limit": 2 * (5.0 + 0.4)}
    in_turns = finetune_stage(ROWS, COUNTS, epochs=2, loaders=1, side_by_side=False)
    assert in_turns["plain"] == pytest.approx(beside["plain"] + 2 * 100 / 50)
    assert in_turns["limit"] == beside["limit"]
    starved = finetune_stage({**ROWS, "input pipeline": ROWS["training step"]}, COUNTS, 1, 1, True)
    assert starved["plain"] == 100 / 2


def test_a_median_is_not_moved_by_one_bad_round():
    assert summarize([3.0, 1.0, 2.0, 900.0, 2.0]) == {"median": 2.0, "min": 1.0, "max": 900.0}


def test_rounds_are_interleaved_after_one_to_warm_up():
    calls = []

    def way(name: str) -> Measurement:
        return lambda seconds: calls.append((name, seconds)) or float(len(calls))  # type: ignore[func-returns-value]

    figures = measure_interleaved({"a": way("a"), "b": way("b")}, range(2), seconds=0.5)
    assert calls == [("a", 0), ("b", 0)] + [("a", 0.5), ("b", 0.5)] * 2
    assert figures == {"a": [3.0, 5.0], "b": [4.0, 6.0]}


def test_operations_are_two_a_weight_and_three_times_so_many_in_training():
    network = nn.Sequential(nn.Flatten(), nn.Linear(3 * 4 * 4, 10), nn.Linear(10, 5))
    forward = 2 * (48 * 10 + 10 * 5)
    assert flops_per_image(network, 4, training=False) == forward
    assert flops_per_image(network, 4, training=True) == 3 * forward - 2 * 48 * 10  # photos have no gradient
    assert all(parameter.grad is None for parameter in network.parameters())


def test_a_way_leaves_threads_and_determinism_as_they_were():
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    seen = []
    way = make_measurement(
        lambda: seen.append((torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())) or 1,  # type: ignore[func-returns-value]
        torch.device("cpu"),
        threads=1,
        deterministic=True,
    )
    assert way(0) > 0
    assert seen == [(1, True)]
    assert (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()) == before


def test_the_plain_way_sees_the_same_photos_and_labels(painted: Path):
    data = ImageDataModule(painted, image_size=32, resize=32)
    ours = data.train_dataloader().dataset
    settings = configuration(*OWN, f"data.root={painted}", name="benchmark").data
    plain = BaselineDataset(*training_images(data), baseline_transform(settings))
    assert len(plain) == len(ours) == 50  # type: ignore[arg-type]
    assert [plain[i][1] for i in range(50)] == [int(ours[i, 0][1]) for i in range(50)]
    photo = plain[0][0]
    assert (photo.shape, photo.dtype) == ((3, 32, 32), torch.float32)
    still = dict.fromkeys(("hflip_prob", "brightness", "contrast", "saturation", "hue"), 0.0)
    whole = {**settings, **still, "crop_scale": [1.0, 1.0], "crop_ratio": [1.0, 1.0]}
    same = BaselineDataset(*training_images(data), baseline_transform(whole))
    means = torch.stack([same[i][0].mean((1, 2)) for i in range(8)])
    centred = data.dataset("train")
    ours_means = torch.stack([(centred[i][0] / 255).mean((1, 2)) for i in range(8)])
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(means, (ours_means - mean) / std, atol=0.03, rtol=0)


def test_a_setting_that_measures_nothing_is_refused(painted: Path, tmp_path: Path):
    for wrong in ("rounds=0", "seconds=0.0", "head.epochs=0", "step_batch=1"):
        with pytest.raises(ValueError, match=r"wanted rounds >= 1"):
            main(configuration(*OWN, f"data.root={painted}", wrong, name="benchmark"))
    with pytest.raises(ValueError, match=r"no folder of images"):
        main(configuration(*OWN, f"data.root={tmp_path}/none", name="benchmark"))


def test_help_names_every_row_and_a_mistake_is_one_line():
    command = [sys.executable, "-m", "flowers.benchmark"]
    told = subprocess.run([*command, "--help"], capture_output=True, text=True, check=True).stdout
    assert all(name in told for name in (*ROWS, *COLUMNS, "report", "head_only"))
    done = subprocess.run([*command, "rouns=1"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (1, "error: rouns: no such key: did you mean rounds?\n")
