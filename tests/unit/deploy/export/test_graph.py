import pytest
import torch
from torchvision.transforms import v2

from flowers.data.transforms import eval_transform
from flowers.deploy.classifier import Classifier
from flowers.deploy.export.graph import ExportableClassifier
from flowers.models.classifier import ImageClassifier
from flowers.settings.preprocessing import Preprocessing


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("resnet18", ["lily", "orchid"], image_size=32, resize=39).eval()


# Smaller and larger, landscape and portrait, no resizing, odd margins, one row of pixels, one pixel.
@pytest.mark.parametrize("size", [(30, 41), (400, 301), (39, 39), (50, 39), (39, 52), (123, 77), (1, 9), (1, 1)])
def test_graph_resizes_and_crops_like_torchvision(model: ImageClassifier, size: tuple[int, int]):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    expected = v2.Compose([v2.Resize(39, antialias=True), v2.CenterCrop(32)])(images).float()
    differences = (ExportableClassifier(model, 1.0).resize_and_crop(images) - expected).abs()
    assert differences.max() <= 1
    assert differences.mean() < 0.03


@pytest.mark.parametrize("size", [(30, 41), (400, 301), (39, 39), (50, 39), (123, 77), (1, 9)])
def test_graph_resizes_with_a_cubic_kernel_like_torchvision(size: tuple[int, int]):
    model = ImageClassifier("resnet18", ["lily", "orchid"], image_size=32, resize=39, interpolation="bicubic").eval()
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (2, 3, *size), dtype=torch.uint8, generator=generator)
    expected = eval_transform(Preprocessing(32, 39, "bicubic"))(images).float()
    differences = (ExportableClassifier(model, 1.0).resize_and_crop(images) - expected).abs()
    assert differences.max() <= 1
    assert differences.mean() < 0.03
    is_resized = min(size) != 39
    assert torch.equal(expected, eval_transform(Preprocessing(32, 39))(images).float()) != is_resized


def test_graph_normalizes_and_calibrates_like_the_model(model: ImageClassifier):
    images = torch.randint(0, 256, (3, 3, 39, 39), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = (model(v2.functional.center_crop(images, [32, 32])) / 1.7).softmax(1)
        torch.testing.assert_close(ExportableClassifier(model, 1.7)(images), expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("tta", ["flip", "five_crop"])
def test_graph_averages_the_views_of_test_time_augmentation(model: ImageClassifier, tta: str):
    images = torch.randint(0, 256, (3, 3, 39, 39), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    with torch.inference_mode():
        expected = Classifier(model, 1.7, tta=tta).probabilities(v2.functional.center_crop(images, [32, 32]))
        torch.testing.assert_close(ExportableClassifier(model, 1.7, tta)(images).double(), expected, atol=1e-3, rtol=0)
