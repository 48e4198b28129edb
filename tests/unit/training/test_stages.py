import pytest
import torch
from torch import Tensor, nn

from flowers.models.mixing import mixup
from flowers.models.network import Network
from flowers.training.stages import Activations, FinetuneStage, HeadStage
from flowers.training.task import FineTuning


@pytest.fixture
def task() -> FineTuning:
    torch.manual_seed(0)
    return FineTuning(Network("resnet18", ["a", "b", "c"]))


@pytest.fixture
def photos() -> Tensor:
    return torch.randint(256, (4, 3, 48, 48), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_a_frozen_backbone_stays_bit_for_bit_whatever_the_trainer_switches_on(task: FineTuning, photos: Tensor):
    task.start(HeadStage())
    backbone = task.network.backbone
    before = {name: value.clone() for name, value in backbone.state_dict().items()}
    task.train()
    task.set_mode()
    task(photos).sum().backward()
    assert all(weight.grad is None for weight in backbone.parameters())
    assert all(weight.grad is not None for weight in task.network.head.parameters())
    assert all(torch.equal(before[name], value) for name, value in backbone.state_dict().items())


def test_fine_tuning_frees_every_parameter_and_trains_batch_norm(task: FineTuning, photos: Tensor):
    task.start(HeadStage())
    task.start(FinetuneStage())
    backbone = task.network.backbone
    before = backbone.bn1.running_mean.clone()  # type: ignore[operator, union-attr]
    task(photos).sum().backward()
    assert all(weight.grad is not None for weight in task.parameters())
    assert not torch.equal(before, backbone.bn1.running_mean)  # type: ignore[arg-type, union-attr]


def test_dropout_is_off_while_the_backbone_is_frozen(photos: Tensor):
    alexnet = FineTuning(Network("alexnet", ["a", "b"]), stage=HeadStage())
    large = torch.nn.functional.interpolate(photos, 64)
    assert torch.equal(alexnet(large), alexnet(large))
    alexnet.start(FinetuneStage())
    assert not torch.equal(alexnet(large), alexnet(large))


def test_image_sizes_share_the_epochs_of_the_stage(task: FineTuning):
    sizes = FinetuneStage(epochs=5, image_sizes=[32, 48]).image_inputs(task.network).sides
    assert sizes == [32, 32, 32, 48, 48]
    assert FinetuneStage(epochs=5).image_inputs(task.network).sides == []


def test_mixed_images_have_probabilities_as_targets(task: FineTuning, photos: Tensor):
    inputs = HeadStage(mixing=mixup).image_inputs(task.network)
    logits, targets = inputs.training_logits(task.network, photos, torch.tensor([0, 1, 2, 0]), stage_epoch=0)
    assert logits.shape == targets.shape == (4, 3)
    torch.testing.assert_close(targets.sum(1), torch.ones(4))


def test_activations_of_two_dimensions_pass_the_last_blocks():
    network = Network("resnet18", ["a", "b", "c"]).eval()
    doubled = nn.Linear(512, 512, bias=False)
    doubled.weight.data = 2 * torch.eye(512)
    features = torch.rand(2, 512)
    assert torch.equal(Activations(doubled).logits(network, features), network.logits(2 * features))


def test_state_dict_is_that_of_the_network_both_ways(task: FineTuning):
    state = {name: value + 1 for name, value in task.network.state_dict().items()}
    assert task.state_dict().keys() == state.keys()
    task.load_state_dict(state)
    assert all(torch.equal(value, state[name]) for name, value in task.network.state_dict().items())


def test_last_checkpoint_of_the_head_stage_leaves_out_what_the_stage_does_not_change(task: FineTuning):
    state = task.state_dict()
    assert set(HeadStage().changed_weights(state)) == {"head.weight", "head.bias"}
    assert FinetuneStage().changed_weights(state).keys() == state.keys()
