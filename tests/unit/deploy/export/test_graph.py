import pytest
import torch
from torchvision.transforms import v2

from flowers.deploy.export.graph import ExportableClassifier
from flowers.models.classifier import ImageClassifier


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("resnet18", ["lily", "orchid"], image_size=32, resize=39).eval()


# Smaller and larger, both ways up, no resizing, odd margins, a line of pixels, a single one.
@pytest.mark.parametrize("size", [(30, 41), (400, 301), (39, 39), (50, 39), (39, 52), (123, 77), (1, 9), (1, 1)])
def test_the_graph_resizes_and_crops_as_training_did(model: ImageClassifier, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    photos = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    wanted = v2.Compose([v2.Resize(39, antialias=True), v2.CenterCrop(32)])(photos).float()
    off = (ExportableClassifier(model, 1.0).centred(photos) - wanted).abs()
    assert off.max() <= 1
    assert off.mean() < 0.03


def test_the_graph_normalises_and_calibrates_as_the_model_does(model: ImageClassifier):
    photos = torch.randint(0, 256, (3, 3, 39, 39), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        wanted = (model(v2.functional.center_crop(photos, [32, 32])) / 1.7).softmax(1)
        torch.testing.assert_close(ExportableClassifier(model, 1.7)(photos), wanted, atol=1e-5, rtol=0)
