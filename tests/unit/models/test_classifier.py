import pytest
import torch
from torch import Tensor

from flowers.models.classifier import ImageClassifier


@pytest.fixture(scope="module")
def model() -> ImageClassifier:
    torch.manual_seed(0)
    return ImageClassifier("resnet18", classes=["a", "b", "c"])


@pytest.fixture
def photos() -> Tensor:
    return torch.randint(256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_photos_become_logits_and_so_do_their_features(model: ImageClassifier, photos: Tensor):
    model.set_stage("head", epochs=1)
    logits = model(photos)
    assert logits.shape == (4, 3)
    assert torch.equal(logits, model(model.features(photos)))


def test_a_frozen_backbone_stays_bit_for_bit_whatever_the_trainer_switches_on(model: ImageClassifier, photos: Tensor):
    model.set_stage("head", epochs=1)
    before = {name: value.clone() for name, value in model.backbone.state_dict().items()}
    model.train()
    model.set_mode()
    loss = model(photos).sum()
    loss.backward()
    assert all(weight.grad is None for weight in model.backbone.parameters())
    assert all(weight.grad is not None for weight in model.head.parameters())
    assert all(torch.equal(before[name], value) for name, value in model.backbone.state_dict().items())


def test_fine_tuning_frees_every_parameter_and_trains_batch_norm(model: ImageClassifier, photos: Tensor):
    model.set_stage("head", epochs=1)
    model.set_stage("finetune", epochs=1)
    before = model.backbone.bn1.running_mean.clone()  # type: ignore[operator, union-attr]
    model(photos).sum().backward()
    assert all(weight.grad is not None for weight in model.parameters())
    assert not torch.equal(before, model.backbone.bn1.running_mean)  # type: ignore[arg-type, union-attr]


def test_dropout_is_off_while_the_backbone_is_frozen(photos: Tensor):
    alexnet = ImageClassifier("alexnet", classes=["a", "b"])
    alexnet.set_stage("head", epochs=1)
    large = torch.nn.functional.interpolate(photos, 64)
    assert torch.equal(alexnet(large), alexnet(large))
    alexnet.set_stage("finetune", epochs=1)
    assert not torch.equal(alexnet(large), alexnet(large))


def test_the_digest_of_the_weights_tells_models_apart():
    digests = set()
    for seed in (0, 0, 1):
        torch.manual_seed(seed)
        digests.add(ImageClassifier("resnet18", classes=["a", "b"]).hparams["weights_digest"])
    assert len(digests) == 2
