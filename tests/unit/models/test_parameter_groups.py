import pytest
import torch
from torch import nn
from torchvision import models

from flowers.models.backbones import build_backbone
from flowers.models.parameter_groups import backbone_blocks, backbone_groups, freeze_first_blocks, frozen_modules


@pytest.fixture(name="resnet", scope="module")
def make_resnet():
    with torch.device("meta"):
        return models.resnet18()


def names(network: nn.Module, modules: list[nn.Module]) -> list[str]:
    found = {id(module): name for name, module in network.named_modules()}
    return [found[id(module)] for module in modules]


def test_backbone_blocks_are_the_stages_of_a_cnn(resnet):
    blocks = [names(resnet, block) for block in backbone_blocks(resnet)]
    assert blocks == [["conv1", "bn1"], ["layer1"], ["layer2"], ["layer3"], ["layer4"], ["fc"]]


def test_backbone_blocks_are_the_layers_of_a_transformer():
    with torch.device("meta"):
        network, _ = build_backbone("vit_b_16", None, {})
    blocks = [names(network, block) for block in backbone_blocks(network)]
    assert len(blocks) == 13
    assert blocks[0] == ["conv_proj"]
    assert blocks[-1] == ["encoder.layers.encoder_layer_11", "encoder.ln"]


def test_freeze_first_blocks_leaves_the_last_ones(resnet):
    resnet.requires_grad_(True)
    freeze_first_blocks(resnet, depth=2)
    trained = {name.partition(".")[0] for name, parameter in resnet.named_parameters() if parameter.requires_grad}
    assert trained == {"layer4", "fc"}
    assert names(resnet, frozen_modules(resnet, 2)) == ["conv1", "bn1", "layer1", "layer2", "layer3"]
    assert frozen_modules(resnet, 99) == frozen_modules(resnet, None) == []


def test_backbone_groups_hold_each_trained_parameter_once(resnet):
    resnet.requires_grad_(True)
    for settings in (
        {},
        {"layer_decay": 0.5},
        {"norm_weight_decay": 0.0},
        {"layer_decay": 0.5, "norm_weight_decay": 0},
    ):
        groups = backbone_groups(resnet, 1.0, **settings)
        grouped = [id(parameter) for group in groups for parameter in group["params"]]
        assert sorted(grouped) == sorted(map(id, resnet.parameters()))
        assert len({group["name"] for group in groups}) == len(groups)
    freeze_first_blocks(resnet, depth=1)
    assert sum(len(group["params"]) for group in backbone_groups(resnet, 1.0)) == 2


def test_layer_decay_multiplies_the_rate_of_each_block(resnet):
    resnet.requires_grad_(True)
    rates = {id(each): group["lr"] for group in backbone_groups(resnet, 0.1, 0.5) for each in group["params"]}
    found = [rates[id(layer.weight)] for layer in (resnet.fc, resnet.layer4[0].conv1, resnet.bn1, resnet.conv1)]
    assert found == pytest.approx([0.1, 0.05, 0.1 / 32, 0.1 / 32])


def test_norm_weight_decay_is_that_of_vectors(resnet):
    resnet.requires_grad_(True)
    decayed, spared = sorted(backbone_groups(resnet, 0.1, 1.0, 0.0), key=lambda group: group["name"])
    assert "weight_decay" not in decayed
    assert spared["weight_decay"] == 0
    assert {parameter.ndim for parameter in spared["params"]} == {1}
    assert 1 not in {parameter.ndim for parameter in decayed["params"]}
