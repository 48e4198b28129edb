"""Which parameters of a backbone are trained, and with which learning rate and weight decay."""

from typing import Any

from torch import nn

_WRAPPER_SHARE = 0.9  # a child with more of the parameters than this is the network itself, and its children count


def backbone_blocks(backbone: nn.Module) -> list[list[nn.Module]]:
    """Return the blocks of a network, the first one first: the stages of a CNN, the layers of a transformer.

    A normalization belongs to the block before it. Parameters of no child, such as position embeddings, are in no
    block.
    """
    children = [child for child in backbone.children() if _size(child)]
    while wrapper := next((child for child in children if _is_wrapper(child, backbone)), None):
        index = children.index(wrapper)
        children[index : index + 1] = [child for child in wrapper.children() if _size(child)]
    blocks: list[list[nn.Module]] = []
    for child in children:
        if blocks and all(parameter.ndim <= 1 for parameter in child.parameters()):
            blocks[-1].append(child)
        else:
            blocks.append([child])
    return blocks


def frozen_modules(backbone: nn.Module, depth: int | None) -> list[nn.Module]:
    """Return the modules of all blocks but the last `depth`; none if `depth` is None or covers all blocks."""
    blocks = backbone_blocks(backbone)
    frozen = blocks[: max(0, len(blocks) - depth)] if depth else []
    return [module for block in frozen for module in block]


def freeze_first_blocks(backbone: nn.Module, depth: int | None) -> None:
    """Freeze all parameters but those of the last `depth` blocks; None or as many as there are freezes none."""
    if not frozen_modules(backbone, depth):
        return
    backbone.requires_grad_(False)
    for block in backbone_blocks(backbone)[-(depth or 0) :]:
        for module in block:
            module.requires_grad_(True)


def backbone_groups(
    backbone: nn.Module, lr: float | None, layer_decay: float = 1.0, norm_weight_decay: float | None = None
) -> list[dict[str, Any]]:
    """Return the parameters of a backbone that are trained, in groups of one learning rate and weight decay.

    Args:
        backbone: The network.
        lr: The learning rate of its last layer; None for that of the optimizer, without `layer_decay`.
        layer_decay: The learning rate of each layer is this times that of the next one; above 0 and at most 1 (BEiT,
            arXiv:2106.08254). The layers of a network of timm are those that timm names, otherwise they are the blocks.
        norm_weight_decay: Weight decay of biases and of normalization layers; None for that of the optimizer.
    """
    assert lr is not None or layer_decay == 1
    scales = _layer_scales(backbone, layer_decay) if layer_decay < 1 else {}
    rate = {} if lr is None else {"lr": lr}
    groups: dict[str, dict[str, Any]] = {}
    for parameter in backbone.parameters():
        if not parameter.requires_grad:
            continue
        scale, is_norm = scales.get(id(parameter), 1.0), norm_weight_decay is not None and parameter.ndim <= 1
        name = "backbone" + (f"_x{scale:.4g}" if layer_decay < 1 else "") + ("_norm" if is_norm else "")
        settings: dict[str, Any] = {key: value * scale for key, value in rate.items()}
        if is_norm:
            settings["weight_decay"] = norm_weight_decay
        groups.setdefault(name, {"name": name, "params": [], **settings})["params"].append(parameter)
    return list(groups.values())


def _layer_scales(backbone: nn.Module, layer_decay: float) -> dict[int, float]:
    """Return the factor of the learning rate by the id of the parameter."""
    if hasattr(backbone, "group_matcher"):
        from timm.optim import param_groups_layer_decay  # type: ignore[attr-defined]  # of timm itself

        groups = param_groups_layer_decay(backbone, layer_decay=layer_decay)
        return {id(parameter): group["lr_scale"] for group in groups for parameter in group["params"]}
    blocks = backbone_blocks(backbone)
    scales = {id(parameter): layer_decay ** (len(blocks) - 1) for parameter in backbone.parameters()}
    for index, block in enumerate(reversed(blocks)):
        scales |= {id(parameter): layer_decay**index for module in block for parameter in module.parameters()}
    return scales


def _is_wrapper(child: nn.Module, backbone: nn.Module) -> bool:
    return _size(child) > _WRAPPER_SHARE * _size(backbone) and any(map(_size, child.children()))


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
