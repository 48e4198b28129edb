from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import save_file

from flowers.evaluation.rejection_scores import auroc, cross_fitted_rejections, rejection_scores
from flowers.features.strangeness import Strangeness
from flowers.runs.rejection import Rejection, load_rejection, rejection_threshold
from flowers.runs.run_folder import REJECTION_FILE


@pytest.fixture
def rejection() -> Rejection:
    scores = torch.randn(200, generator=torch.Generator().manual_seed(0))
    return Rejection(Strangeness(8, 2, 3), scores, 0.05)


def test_rejection_threshold_is_the_conformal_quantile():
    scores = torch.arange(1.0, 100)[torch.randperm(99)]
    assert rejection_threshold(scores, 0.05) == 95.5
    assert rejection_threshold(scores, 0.01) == 99.5
    with pytest.raises(ValueError, match=r"reject=0.005: expected at least 0.0100 with 99 validation images"):
        rejection_threshold(scores, 0.005)


@pytest.mark.parametrize("share", [0.05, 0.2])
def test_rejection_threshold_keeps_its_share_of_false_rejections_in_the_mean(share: float):
    generator = torch.Generator().manual_seed(0)
    draws = torch.randn(2000, 59 + 41, generator=generator)
    rates = [float((row[59:] > rejection_threshold(row[:59], share)).float().mean()) for row in draws]
    assert share - 1 / 60 - 0.005 < np.mean(rates) < share + 0.005  # at most `share`, less by at most 1 / (N + 1)


def test_cross_fitted_rejections_are_about_the_share():
    scores = torch.randn(4000, generator=torch.Generator().manual_seed(1))
    rejected = cross_fitted_rejections(scores, 0.05)
    assert rejected is not None
    assert 0.035 < float(rejected.float().mean()) < 0.065
    assert cross_fitted_rejections(scores[:30], 0.05) is None


def test_auroc_is_the_share_of_pairs_in_the_right_order():
    area = auroc(torch.tensor([1.0, 2.0, 3.0]), torch.tensor([2.5, 3.0, 9.0, 0.5]))
    assert area["value"] == pytest.approx((2 + 2.5 + 3 + 0) / 12)
    assert area["interval"][0] < area["value"] < area["interval"][1]
    scores = torch.randn(300, generator=torch.Generator().manual_seed(0))
    assert auroc(scores, scores + 100)["value"] == 1


def test_auroc_of_one_stranger_and_one_image_says_next_to_nothing():
    area = auroc(torch.tensor([0.0]), torch.tensor([1.0]))
    assert area["value"] == 1
    assert area["interval"] == pytest.approx([0.2065, 1], abs=1e-4)  # as Wilson's of one image of one


def test_rejection_scores_count_strangers_above_the_threshold(rejection: Rejection):
    scores = rejection_scores(rejection, torch.tensor([rejection.threshold, 9.0, 9.0, -9.0]))
    assert scores["rejected_strangers"]["value"] == 0.5
    assert scores["auroc"]["n"] == 4
    assert scores["false_rejections"]["n"] == 200


def test_rejection_is_loaded_as_it_was_saved_with_the_share_that_is_asked_for(rejection: Rejection, tmp_path: Path):
    rejection.save(tmp_path)
    loaded = load_rejection(tmp_path)
    assert loaded is not None
    assert (loaded.threshold, loaded.share, loaded.tta) == (rejection.threshold, 0.05, "none")
    other = load_rejection(tmp_path, 0.5)
    assert other is not None
    assert other.threshold == rejection_threshold(rejection.val_scores, 0.5)
    assert load_rejection(tmp_path, 0) is None
    with pytest.raises(ValueError, match=r"reject=0.001: expected at least"):
        load_rejection(tmp_path, 0.001)


def test_load_rejection_says_how_to_make_what_is_missing_or_damaged(rejection: Rejection, tmp_path: Path):
    assert load_rejection(tmp_path) is None
    with pytest.raises(
        ValueError, match=rf"no {REJECTION_FILE}: python -m flowers.evaluate run=.* reject=0.1 makes it"
    ):
        load_rejection(tmp_path, 0.1)
    rejection.save(tmp_path)
    content = (tmp_path / REJECTION_FILE).read_bytes()
    for damaged in (
        b"",
        content[:100],
        content.replace(b"val_scores", b"val_scorez"),
        content.replace(b"0.05", b"x.05"),
        content.replace(b"none", b"nine"),
    ):
        (tmp_path / REJECTION_FILE).write_bytes(damaged)
        with pytest.raises(ValueError, match=r"is damaged: delete it; python -m flowers.evaluate"):
            load_rejection(tmp_path)
    rejection.save(tmp_path)
    with pytest.raises(ValueError, match="is damaged"):
        load_rejection(tmp_path, width=len(rejection.strangeness.center) + 1)


def test_load_rejection_makes_no_weight_larger_than_that_of_the_file(rejection: Rejection, tmp_path: Path):
    rejection.save(tmp_path)
    path, side = tmp_path / REJECTION_FILE, 1_000_000  # side x side numbers: more than any machine has
    with safe_open(path, "pt") as file:
        metadata, tensors = file.metadata(), {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    save_file(tensors | {"center": torch.zeros(side), "gains": torch.zeros(side)}, path, metadata)
    with pytest.raises(ValueError, match="is damaged") as raised:
        load_rejection(tmp_path)
    assert "size mismatch for weight" in str(raised.value.__cause__)
