"""What a source of images has: `ImageDataModule` knows no more of the place where its images come from."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

from torch.utils.data import Sampler

from flowers.data.images import ImageBytes
from flowers.data.samplers import EpochSampler, SampleKeys
from flowers.data.splits import ImageRecord, SplitRecord


class ImageSource(Protocol):
    """Images with their labels, found and checked on first use. `str(source)` is its place, for messages.

    Dataloader workers get a copy: what takes long to send, such as lists of images, is best left out of the pickle.
    """

    @property
    def images(self) -> Sequence[ImageRecord]:
        """The images that can be read. Those with a group are split already, and not split again.

        Raises:
            ValueError: The images cannot be used.
        """

    @property
    def paths(self) -> Sequence[str]:
        """The paths of all images, found without reading them."""

    @property
    def classes(self) -> Sequence[str]:
        """The names of the classes, in any order, also of those without an image that can be read."""

    @property
    def gray_peaks(self) -> Sequence[int]:
        """The largest value of each grayscale image of more than 8 bits; see `ImageCheck`."""

    @property
    def max_pixels(self) -> int:
        """The most pixels of an image; see `flowers.data.images.read_image`."""

    @property
    def is_sequential(self) -> bool:
        """Whether images are read in parts, such as shards, of which each process takes its own.

        A training image is then drawn once in an epoch, and an epoch depends on the number of processes.
        """

    def __truediv__(self, path: str, /) -> Path | ImageBytes:
        """Return an image, by its path, for `flowers.data.images.read_image`."""

    def sort(self, records: list[SplitRecord]) -> list[SplitRecord]:
        """Return the images of a split in the order in which they are numbered and evaluated."""

    def training_batches(self, paths: Sequence[str], order: EpochSampler, batch_size: int) -> Sampler[Any]:
        """Return what yields the batches of `(index, seed)` of this process, as a function of seed and epoch.

        Args:
            paths: The training images.
            order: The order of images that can be read in any order, with the seed and the number of the process.
            batch_size: Images of a batch of this process.
        """

    def reading_order(self, paths: Sequence[str], keys: SampleKeys | None) -> Any:
        """Return the sampler that yields `keys` in their order; None for all images in theirs."""
