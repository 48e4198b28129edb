import pytest
import torch

from flowers.models.mixing import cutmix, mixup, mixup_or_cutmix

LABELS = torch.tensor([0, 1, 2, 0])
IMAGES = LABELS[:, None, None, None].float().expand(4, 3, 8, 8)  # each pixel says which class its image has


@pytest.mark.parametrize("mixing", [mixup, cutmix, mixup_or_cutmix])
def test_mixing_gives_each_class_the_share_of_its_pixels(mixing):
    torch.manual_seed(0)
    for _ in range(5):
        images, targets = mixing(3)(IMAGES, LABELS)
        torch.testing.assert_close(targets.sum(1), torch.ones(4))
        torch.testing.assert_close(images.mean((1, 2, 3)), targets @ torch.arange(3.0))


def test_mixup_blends_and_cutmix_pastes():
    torch.manual_seed(0)
    blended, pasted = mixup(3, alpha=1.0)(IMAGES, LABELS)[0], cutmix(3)(IMAGES, LABELS)[0]
    assert len(blended[1].unique()) == 1
    assert set(pasted.unique().tolist()) <= {0.0, 1.0, 2.0}
