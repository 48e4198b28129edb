import numpy as np
import pytest
import torch
from matplotlib.figure import Figure

from flowers.evaluation.class_curves import class_areas, class_curves
from flowers.evaluation.confusion import count_confusion
from flowers.evaluation.figures import plot_class_curves, plot_confusion
from flowers.runs.predictions import Predictions
from flowers.training import pictures
from flowers.training.trackers.tracker import Picture


def predictions(seed: int) -> Predictions:
    generator = torch.Generator().manual_seed(seed)
    labels = torch.arange(60) % 3
    logits = torch.randn(60, 3, generator=generator).double()
    return Predictions([f"{index}.png" for index in range(60)], labels, logits, ["a", "bb", "a long name"])


def figures(seed: int) -> dict[str, Figure]:
    given = predictions(seed)
    curves = class_curves(given, class_areas(given))
    return {"confusion": plot_confusion(count_confusion(given), given.classes), "curves": plot_class_curves(curves)}


@pytest.mark.parametrize("name", ["confusion", "curves"])
def test_draw_with_the_layout_of_the_job_before_draws_the_same(name: str):
    pictures.draw(figures(1)[name], (name, "x"))
    again, alone = (pictures.draw(figures(2)[name], texts).image for texts in ((name, "x"), ()))
    assert np.array_equal(np.asarray(again), np.asarray(alone))


def test_encoded_is_jpeg_for_photos_and_png_for_figures():
    pixels = np.zeros((4, 5, 3), np.uint8)
    assert Picture(pixels, shows_photos=True).encoded.startswith(b"\xff\xd8")
    assert Picture(pixels).encoded == Picture(pixels).png
