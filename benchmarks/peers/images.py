"""The images of a split as tensors, for the peers that have no dataset of their own."""

from collections.abc import Callable

import torch
from PIL import Image
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset


class Images(Dataset[tuple[Tensor, int]]):
    """The images of a split, with their class numbers.

    Args:
        rows: The path and the class number of each image.
        transform: Maps a PIL image to a tensor.
    """

    def __init__(self, rows: list[tuple[str, int]], transform: Callable[[Image.Image], Tensor]) -> None:
        self.rows, self.transform = rows, transform

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        path, label = self.rows[index]
        return self.transform(Image.open(path).convert("RGB")), label


def train_epoch(
    model: nn.Module,
    loader: DataLoader[tuple[Tensor, int]],
    optimizer: torch.optim.Optimizer,
    loss: Callable[[Tensor, Tensor], Tensor] = nn.functional.cross_entropy,
) -> None:
    """Train for one epoch."""
    model.train()
    for inputs, targets in loader:
        optimizer.zero_grad()
        torch.autograd.backward(loss(model(inputs), torch.as_tensor(targets)))
        optimizer.step()


@torch.inference_mode()
def predict(model: nn.Module, images: Images) -> Tensor:
    """Return the logits (N, C) of a split."""
    model.eval()
    return torch.cat([model(inputs) for inputs, _ in DataLoader(images, batch_size=64, num_workers=2)])
