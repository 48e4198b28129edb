"""Say which setting helps where a network cannot train on its batches: images too small, or a batch of one image."""

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import chain

import torch
from lightning import Trainer
from torch import nn
from torch.func import functional_call
from torch.utils.data import BatchSampler

from flowers.data.datamodule import ImageDataModule
from flowers.models.network import Network
from flowers.runtime.machine_errors import machine_error_text
from flowers.training.stages import FinetuneStage, Stage

_ONE_VALUE = "Expected more than 1 value per channel when training"  # of BatchNorm, in torch
_USUAL_SIDES = (224, 256, 299, 384)


def check_last_batch(stage: Stage, network: Network, data: ImageDataModule, trainer: Trainer) -> None:
    """Check that the network can train on the last batch of an epoch if it has one image.

    Raises:
        ValueError: It cannot, because it normalizes over a batch.
    """
    images = math.ceil(data.counts("train").total() / trainer.world_size)  # of each process
    batch_size, limit = data.per_rank_batch_size(trainer.world_size), trainer.limit_train_batches
    if isinstance(stage, FinetuneStage) and (images % batch_size == 1 or batch_size == 1):
        batches = math.ceil(images / batch_size)
        is_trained = limit >= (batches if isinstance(limit, int) else 1.0) or batch_size == 1
        is_last_smaller = stage.cached_views or _has_smaller_last_batch(data)
        if is_trained and is_last_smaller and not _takes_one_image(stage, network):
            raise ValueError(_last_batch_text(network, data, trainer.world_size))


@contextmanager
def explained_input_errors(stage: Stage, network: Network, data: ImageDataModule, trainer: Trainer) -> Iterator[None]:
    """Put the error of a network about the size of its images, or of a batch, into one line with what helps.

    Raises:
        ValueError: The network raised such an error.
    """
    try:
        yield
    except (RuntimeError, ValueError, AssertionError) as error:  # torchvision and timm raise each of them
        if _ONE_VALUE in str(error):
            raise ValueError(_last_batch_text(network, data, trainer.world_size)) from error
        is_other = isinstance(error, ValueError) or machine_error_text(error) is not None
        if not is_other and (text := _image_size_text(stage, network)):
            raise ValueError(text) from error
        raise


def _has_smaller_last_batch(data: ImageDataModule) -> bool:
    """Return whether an epoch ends with what is left; shards have batches of equal size."""
    records = data.source.sort([record for record in data.records if record.split == "train"])
    order = data.train_sampler([data.class_numbers[record.label] for record in records])
    batches = data.source.training_batches([record.path for record in records], order, data.batch_size)
    return isinstance(batches, BatchSampler) or data.batch_size == 1


def _last_batch_text(network: Network, data: ImageDataModule, processes: int) -> str:
    images, batch_size = data.counts("train").total(), data.batch_size
    sizes = chain(range(batch_size - processes, 0, -processes), range(batch_size + processes, 4 * images, processes))
    per_process = math.ceil(images / processes)
    helps = next((size for size in sizes if size > processes and per_process % (size // processes) != 1), None)
    advice = f"use data.batch_size={helps}" if helps and per_process > 1 else "add training images"
    return (
        f"data.batch_size={batch_size}: of {images} training images, a batch has only one"
        f"{' in each process' if processes > 1 else ''}, and {network.hparams['architecture']} cannot normalize over "
        f"it (BatchNorm): {advice}"
    )


def _image_size_text(stage: Stage, network: Network) -> str | None:
    """Return which size of images the network does not take, and one that it takes; None if that is not the error."""
    side = network.preprocessing.image_size
    sides = stage.backbone_sides(side) or [side]
    failed = next((each for each in sides if not _passes(stage, network, each)), None)
    if failed is None:
        return None
    found = _working_side(lambda each: _passes(stage, network, each), failed)
    if found is None:
        return None
    is_own = failed == side
    setting = f"data.image_size={side}" if is_own else f"finetune.image_sizes=[{','.join(map(str, sides))}]"
    return (
        f"{setting}: {network.hparams['architecture']} does not take images of {failed} x {failed} pixels: "
        f"use {f'data.image_size={found}' if is_own else f'{found} in place of {failed}'}"
    )


def _working_side(passes: Callable[[int], bool], failed: int) -> int | None:
    """Return a side of images that a network takes, if possible the smallest above `failed`; None if none is found."""
    works = next((side for side in (2 * failed, 4 * failed, *_USUAL_SIDES) if passes(side)), None)
    low = failed
    while works is not None and works - low > 1:
        middle = (low + works) // 2
        low, works = (low, middle) if passes(middle) else (middle, works)
    return works


def _takes_one_image(stage: Stage, network: Network) -> bool:
    """Return whether the network trains on a batch of one image. One that also fails on two has another problem."""
    sides = stage.backbone_sides(network.preprocessing.image_size) or [network.preprocessing.image_size]
    return _passes(stage, network, sides[0], 1) or not _passes(stage, network, sides[0], 2)


def _passes(stage: Stage, network: Network, side: int, count: int = 2) -> bool:
    """Return whether the backbone takes a batch of images in a stage.

    On the meta device a pass computes shapes only: it changes neither weights nor statistics, and draws nothing.
    """
    backbone, modes = network.backbone, [(module, module.training) for module in network.modules()]
    state = {
        name: torch.empty_like(tensor, device="meta")
        for name, tensor in chain(backbone.named_parameters(), backbone.named_buffers())
    }
    try:
        stage.set_mode(network)
        with torch.no_grad():
            functional_call(_Uncompiled(backbone), {f"backbone.{name}": tensor for name, tensor in state.items()},
                            (torch.empty(count, 3, side, side, device="meta"),))  # fmt: skip
    except (RuntimeError, ValueError, AssertionError):
        return False
    finally:
        for module, is_training in modes:
            module.training = is_training
    return True


class _Uncompiled(nn.Module):
    """Calls a backbone as it was before `nn.Module.compile`."""

    def __init__(self, backbone: nn.Module) -> None:
        super().__init__()
        self.backbone = backbone

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """Return the features (B, F)."""
        return torch.as_tensor(self.backbone.forward(images))
