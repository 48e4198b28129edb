import pytest
import torch

from flowers.features.frozen_backbone import FrozenBackbone
from flowers.features.tta import tta_views
from flowers.models.network import Network
from flowers.settings.preprocessing import Preprocessing

IMAGES = torch.randint(256, (2, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(("tta", "count"), [("none", 1), ("flip", 2), ("five_crop", 12)])
def test_tta_views_have_the_shape_of_the_images(tta, count):
    views = tta_views(IMAGES, tta)
    assert [(view.shape, view.dtype) for view in views] == [(IMAGES.shape, torch.uint8)] * count
    assert torch.equal(views[0], IMAGES)


@pytest.mark.parametrize("tta", ["flip", "five_crop"])
def test_features_with_tta_are_those_of_the_mirror_image(tta):
    model = Network("resnet18", ["a", "b"], preprocessing=Preprocessing(32, 32)).eval()
    frozen = FrozenBackbone(model, "32-true", tta)
    torch.testing.assert_close(frozen(IMAGES), frozen(IMAGES.flip(-1)), rtol=1e-4, atol=1e-4)


def test_head_of_mean_features_is_the_mean_of_the_logits():
    model = Network("resnet18", ["a", "b"], preprocessing=Preprocessing(32, 32)).eval()
    plain, flip = FrozenBackbone(model, "32-true"), FrozenBackbone(model, "32-true", "flip")
    head = model.head.requires_grad_(False)
    mean = (head(plain(IMAGES)) + head(plain(IMAGES.flip(-1)))) / 2
    torch.testing.assert_close(head(flip(IMAGES)), mean)
