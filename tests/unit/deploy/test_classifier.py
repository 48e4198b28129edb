import io
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image, ImageOps
from torch.utils.data import DataLoader

from flowers.deploy.classifier import Classifier
from flowers.deploy.gradcam import grad_cam
from flowers.runs.predictions import load_predictions
from flowers.runs.run_folder import BEST_CHECKPOINT
from flowers.runtime.files import read_json


def test_classifier_predicts_what_the_run_predicted_for_its_validation_images(trained: Path, painted: Path):
    classifier = Classifier.load(trained, accelerator="cpu", precision="32-true")
    expected = load_predictions(trained / "predictions" / "val.csv")
    temperature = read_json(trained / "result.json")["temperature"]
    pixels = torch.stack([classifier.pixels(painted / path) for path in expected.paths])
    torch.testing.assert_close(classifier.probabilities(pixels), expected.probabilities(temperature), atol=1e-6, rtol=0)
    first = classifier(painted / expected.paths[0])
    assert first.label == expected.classes[int(expected.predicted[0])]
    assert first.probability == max(first.probabilities.values())
    assert sum(first.probabilities.values()) == pytest.approx(1)


def test_classifier_takes_a_file_or_an_image_of_any_mode(trained: Path, tmp_path: Path):
    classifier = Classifier.load(trained / BEST_CHECKPOINT, accelerator="cpu")
    image = Image.effect_mandelbrot((60, 40), (-2, -1, 1, 1), 30)
    image.save(tmp_path / "gray.png")
    assert classifier(tmp_path / "gray.png") == classifier(image) == classifier(image.convert("RGB"))


def test_load_does_not_calibrate_a_checkpoint_outside_a_run_folder(trained: Path, tmp_path: Path):
    alone = tmp_path / "a" / "b" / "alone.ckpt"
    alone.parent.mkdir(parents=True)
    alone.write_bytes((trained / BEST_CHECKPOINT).read_bytes())
    assert Classifier.load(alone).temperature == 1


def test_classifier_rejects_what_is_stranger_than_the_validation_images(rejecting: Path, painted: Path):
    classifier = Classifier.load(rejecting, "cpu", "32-true")
    val = load_predictions(rejecting / "predictions" / "val.csv")
    known = [classifier(painted / path) for path in val.paths]
    scores = [prediction.strangeness for prediction in known]
    assert classifier.rejection is not None
    assert scores == pytest.approx(classifier.rejection.val_scores.tolist(), abs=1e-3)
    assert sum(prediction.rejected for prediction in known) <= 0.2 * len(known)
    strangest = val.paths[int(classifier.rejection.val_scores.argmax())]
    assert Classifier.load(rejecting, "cpu", "32-true", reject=0.9)(painted / strangest).rejected
    off = Classifier.load(rejecting, "cpu", "32-true", reject=0)(painted / val.paths[0])
    assert (off.label, off.strangeness, off.rejected) == (known[0].label, None, False)
    pixels = classifier.pixels(painted / val.paths[0])[None]
    assert grad_cam(classifier, pixels).strangeness == pytest.approx(scores[:1], abs=1e-3)


def test_load_names_what_is_not_a_run(tmp_path: Path):
    with pytest.raises(ValueError, match=f"run={tmp_path}"):
        Classifier.load(tmp_path)
    (tmp_path / "x.ckpt").write_text("no")
    with pytest.raises(ValueError, match=r"x\.ckpt"):
        Classifier.load(tmp_path / "x.ckpt")


def test_stream_sends_no_model_to_its_workers(trained: Path, painted: Path, monkeypatch: pytest.MonkeyPatch):
    sizes = []

    class Loader(DataLoader[Any]):
        def __init__(self, dataset: Any, *args: Any, **kwargs: Any) -> None:
            sizes.append(len(pickle.dumps(dataset)))
            super().__init__(dataset, *args, **kwargs)

    monkeypatch.setattr("flowers.deploy.classifier.DataLoader", Loader)
    file = str(painted / "rose" / "00002.jpg")
    classifier = Classifier.load(trained, "cpu", "32-true")
    assert list(classifier.stream([file])) == [(file, classifier(file))]
    assert sizes[0] < 10_000


def test_an_image_has_one_answer_however_it_is_given(trained: Path, painted: Path, tmp_path: Path):
    classifier = Classifier.load(trained, "cpu", "32-true")
    with Image.open(painted / "rose" / "00002.jpg") as image:
        upright = image.convert("RGB")
    exif = Image.Exif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    turned = tmp_path / "turned.png"
    upright.transpose(Image.Transpose.ROTATE_90).save(turned, exif=exif)
    with Image.open(turned) as image:
        given: list[Any] = [turned, str(turned), turned.read_bytes(), io.BytesIO(turned.read_bytes()), image]
        array = np.asarray(ImageOps.exif_transpose(image))
        answers = [classifier(each) for each in (*given, array)]
        given[3].seek(0)
        streamed = [answer for _, answer in classifier.stream([*given, array])]
    assert {answer for answer in streamed if isinstance(answer, str)} == set()
    assert [answer[1] for answer in streamed] == pytest.approx([answers[0].probability] * 6)  # a batch rounds otherwise
    assert answers == [answers[0]] * 6
    with Image.open(turned) as image:
        assert classifier(np.asarray(image)) != answers[0]  # an array has no EXIF data
    assert classifier(np.asarray(upright.convert("L"))) == classifier(upright.convert("L"))


@pytest.mark.parametrize(
    "pixels",
    [
        np.zeros((8, 8, 3), dtype=np.float32),
        np.zeros((8, 8, 4), dtype=np.uint8),
        np.zeros((1, 8, 8, 3), dtype=np.uint8),
        np.zeros((0, 8, 3), dtype=np.uint8),
        np.zeros(8, dtype=np.uint8),
    ],
)
def test_other_arrays_are_named(trained: Path, pixels: Any):
    classifier = Classifier.load(trained, "cpu", "32-true")
    with pytest.raises(ValueError, match=r"^an array \w+ \(.*\): expected the pixels of one image, uint8, \(H, W, 3\)"):
        classifier(pixels)
    assert next(str(reason) for _, reason in classifier.stream([pixels])).startswith("an array ")


@pytest.mark.parametrize("image", [torch.zeros(8, 8, 3, dtype=torch.uint8), [1, 2], None])
def test_what_is_no_image_is_named(trained: Path, image: Any):
    classifier = Classifier.load(trained, "cpu", "32-true")
    expected = f"a {type(image).__name__}: expected a path, bytes, an open binary file, a Pillow image or a NumPy array"
    with pytest.raises(ValueError, match=f"^{expected}$"):
        classifier(image)
    assert list(classifier.stream([image])) == [(image, expected)]


def test_classifier_refuses_files_of_more_pixels_than_asked_for(trained: Path, painted: Path):
    classifier = Classifier.load(trained, "cpu", max_megapixels=1e-4)
    file = painted / "rose" / "00002.jpg"
    with pytest.raises(ValueError, match="over the limit of 100"):
        classifier(file)
    assert "over the limit of 100" in str(next(classifier.stream([file]))[1])


def test_classifier_may_be_used_by_several_threads_at_once(trained: Path, painted: Path):
    classifier = Classifier.load(trained, "cpu", "32-true")
    pixels = [classifier.pixels(path)[None] for path in sorted(painted.glob("*/*.jpg"))[:12]]
    predicted = [classifier.probabilities(image) for image in pixels]
    explained = [grad_cam(classifier, image) for image in pixels]
    with ThreadPoolExecutor(8) as pool:
        predictions = [pool.submit(classifier.probabilities, image) for image in pixels * 3]
        explanations = [pool.submit(grad_cam, classifier, image) for image in pixels * 3]
        for future, expected in zip(predictions, predicted * 3, strict=True):
            assert torch.equal(future.result(), expected)
        for pair, (probabilities, heat_map, _) in zip(explanations, explained * 3, strict=True):
            assert torch.equal(pair.result()[0], probabilities)
            assert torch.equal(pair.result()[1], heat_map)
