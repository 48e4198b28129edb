"""A run as an object. What its folder holds is data: nothing in it is imported, called, resolved or fetched."""

from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from torch import Tensor

from flowers.data.dataset import ImageDataset
from flowers.data.images import pixels_of
from flowers.data.splits import SplitRecord, load_split, split_sha256
from flowers.models.backbones import local_weights, state_dict_sha256
from flowers.models.checkpoint_format import read_checkpoint
from flowers.models.network import Network, make_network
from flowers.runs.predictions import Predictions, load_run_predictions
from flowers.runs.rejection import Rejection, load_rejection
from flowers.runs.run_folder import SPLIT_FILE, find_checkpoint, load_result, run_dir_of
from flowers.runtime.hardware import available_cores, resolve_device_and_precision
from flowers.runtime.seeding import seeded
from flowers.runtime.text import one_line
from flowers.settings.schema.run_files import Hyperparameters, Result
from flowers.settings.schema.training import TrainSettings
from flowers.settings.validation import stored_settings

if TYPE_CHECKING:  # what a prediction does not need is imported where it is used
    from flowers.data.datamodule import ImageDataModule
    from flowers.features.extractor import Extraction

# How the images of a run are prepared and read, for a model that is shown them again.
_IMAGE_SETTINGS = (
    *("image_size", "resize", "interpolation", "bit_depth", "batch_size", "num_workers", "on_corrupt"),
    *("merge_similar_names", "max_megapixels", "table", "columns"),
    *("packed", "s3_endpoint", "retry_timeout", "cache_gb"),
)


@dataclass(frozen=True)
class Run:
    """A trained run: its settings, its network, its photos and its scores. A file is read when it is first used.

    Use `Run.open` to make one. `run.replace(tta="flip")` is the run as it computes in another way.

    Attributes:
        checkpoint: The checkpoint whose weights count.
        root: Where the photos are now, a folder or an address; None for where they were in training.
        accelerator: What computes features; None: as in training. Likewise `precision`, `tta` and `engine`.
        max_megapixels: The most megapixels of an image; None: as in training.
        root_key: The setting that `root` comes from, for messages.
        needs_settings: Whether a checkpoint without settings, which Lightning alone has trained, is refused.
    """

    checkpoint: Path
    root: str | None = None
    accelerator: str | None = None
    precision: str | None = None
    tta: str | None = None
    engine: str | None = None
    max_megapixels: float | None = None
    root_key: str = "root"
    needs_settings: bool = True

    @classmethod
    def open(cls, path: str | Path | None, root: str | None = None) -> Self:
        """Return the run of a folder, with its best checkpoint, or of a checkpoint.

        Raises:
            ValueError: There is no run. Each attribute raises one for a file that is missing or damaged.
        """
        return cls(find_checkpoint(path), root)

    def replace(self, **changes: Any) -> Self:
        """Return the run with other attributes."""
        return replace(self, **changes)

    @property
    def folder(self) -> Path:
        """The run folder."""
        return run_dir_of(self.checkpoint)

    @cached_property
    def content(self) -> dict[str, Any]:
        """The content of the checkpoint in today's format; see `read_checkpoint`."""
        return read_checkpoint(self.checkpoint, is_run=self.needs_settings)

    @property
    def hparams(self) -> Hyperparameters:
        """What the checkpoint says of its network."""
        return Hyperparameters.model_construct(**self.content["hyper_parameters"])

    @cached_property
    def settings(self) -> TrainSettings:
        """The settings of the training, but for what is replaced; see `stored_settings`."""
        trained = stored_settings(self.content["hyper_parameters"]["config"] or {})
        device = {"accelerator": self.accelerator, "precision": self.precision}
        if asked := {name: value for name, value in device.items() if value}:
            trained = trained.replace(trainer=trained.trainer.replace(**asked))
        return trained.replace(tta=self.tta or trained.tta)

    @cached_property
    def result(self) -> Result | None:
        """The content of result.json; None if the run has not finished."""
        return load_result(self.folder)

    @property
    def temperature(self) -> float:
        """What logits are divided by; 1 for a run that has not finished."""
        return 1.0 if self.result is None else self.result.temperature

    @cached_property
    def stored_split(self) -> list[SplitRecord] | None:
        """The lines of split.csv, which may be another one than that of the checkpoint; None if there is no file."""
        file = self.folder / SPLIT_FILE
        return load_split(file) if file.is_file() else None

    @cached_property
    def split(self) -> list[SplitRecord]:
        """The photos of train, val and test.

        Raises:
            ValueError: split.csv is missing, or is not that of the checkpoint.
        """
        records, file, advice = self.stored_split, self.folder / SPLIT_FILE, "name the images with photos=FOLDER"
        if records is None:
            raise ValueError(f"{self.checkpoint} is not in a run folder (no {file}): {advice}")
        is_same = split_sha256(records) == self.hparams.split_digest
        if not is_same or {record.label for record in records} != {*self.hparams.classes}:
            raise ValueError(f"{file} is not the split that {self.checkpoint} was trained on: {advice}")
        return records

    def predictions(self, split: str = "val") -> Predictions:
        """Return the predictions of a split that the training saved; see `load_run_predictions`."""
        return load_run_predictions(self.folder, split)

    def rejection(self, reject: float | None = None) -> Rejection | None:
        """Return what rejects images of none of the classes; see `load_rejection`."""
        return load_rejection(self.folder, reject, self.content["state_dict"]["head.weight"].shape[1])

    def network(self, trained: bool = True) -> Network:
        """Return the network, in evaluation mode on the CPU.

        Args:
            trained: False for the network before training, whose backbone has not seen the labels. Its weights are read
                from this machine only: a run folder starts no download.

        Raises:
            ValueError: The weights are damaged, or those before training cannot be had again.
        """
        network, hparams = make_network(self.checkpoint, self.content), self.hparams
        if trained or state_dict_sha256(network.backbone) == hparams.weights_digest:  # only its head was trained
            return network
        weights = self.settings.model.weights
        found = None if weights is None else local_weights(hparams.architecture, weights)
        with seeded(self.settings.seed):
            first = Network(hparams.architecture, hparams.classes, found, hparams.options, network.preprocessing)
        if first.hparams["weights_digest"] != hparams.weights_digest:
            raise ValueError(
                f"model.weights={weights}: not the weights that {self.checkpoint} was trained from: restore them"
            )
        return first

    @property
    def photos(self) -> str:
        """Where the photos are now.

        A run folder may come from a stranger: it does not say where to connect. An address in its settings counts only
        if the user gives the same one.

        Raises:
            ValueError: The run had its photos at an address, and `root` is None.
        """
        stored = str(self.settings.data.root)
        if self.root is None and "://" in stored:
            raise ValueError(
                "the photos of the run are at an address, to which a run folder alone does not connect: give "
                f"{self.root_key}={one_line(stored)} to read them there, or {self.root_key}=FOLDER"
            )
        return stored if self.root is None else self.root

    @property
    def max_pixels(self) -> int:
        """The most pixels of an image."""
        if self.max_megapixels is not None or not hasattr(self.settings, "data"):
            return pixels_of(self.max_megapixels)
        return pixels_of(self.settings.data.given().get("max_megapixels"))

    @property
    def image_settings(self) -> dict[str, Any]:
        """The settings of `ImageDataModule.from_settings` for the photos, where they are now."""
        settings = self._preparation | {"root": self.photos}
        if not settings.get("packed") and not settings.get("table"):
            settings["layout"] = self.settings.data.given().get("layout")  # None for a run older than the setting
        if self.root in (None, self.settings.data.root):
            return settings
        from flowers.data.sources.build import is_packed

        return settings | {"packed": is_packed(self.photos), "s3_endpoint": None}

    @property
    def _preparation(self) -> dict[str, Any]:
        asked = {} if self.max_megapixels is None else {"max_megapixels": self.max_megapixels}
        given = self.settings.data.given() | asked
        settings = {name: given[name] for name in _IMAGE_SETTINGS if name in given}
        # The settings may be those of a stranger, or of another machine: they start no thousand processes here.
        limits = {"num_workers": max(available_cores(), 8), "batch_size": 1024}
        return settings | {name: min(settings[name], most) for name, most in limits.items() if settings.get(name)}

    def data(self, photos: str | Path | None = None, whole: bool = False, **changes: Any) -> "ImageDataModule":
        """Return the photos of the run, in its split, or those of a folder, as the network was shown them.

        Args:
            photos: A folder with one subfolder for each class, or a table, in place of the photos of the run.
            whole: Whether to return all photos where those of the run are, also if they are not in its split.
            changes: Other settings of `ImageDataModule.from_settings`; None is as in training.

        Raises:
            ValueError: The photos or their split are gone, or they are at an address that `root` does not name.
        """
        from flowers.data.datamodule import ImageDataModule
        from flowers.data.sources.build import photos_setting, split_settings

        changes = {name: value for name, value in changes.items() if value is not None}
        if photos is not None:
            # Classes may be called train and val. The folder may be without splits, though the run had some.
            is_split = self.settings.data.given().get("layout") != "classes"
            layout = "auto" if is_split else "classes"
            settings = self._preparation | {"packed": False, "layout": layout} | photos_setting(photos)
            return ImageDataModule.from_settings(**settings | changes)
        settings = self.image_settings | changes
        if not whole:
            _ = self.split  # the file must be that of the checkpoint
            settings |= split_settings(self.folder / SPLIT_FILE, settings)
        return ImageDataModule.from_settings(**settings)

    def loose_photos(
        self, folder: str | Path, names: list[str], digests: list[str]
    ) -> "tuple[ImageDataModule, ImageDataset]":
        """Return photos below a folder that belong to no class, as the network was shown those of the run.

        Args:
            folder: The folder.
            names: Their paths, absolute or in the folder.
            digests: Their SHA-256, hexadecimal.
        """
        data = self.data(folder)
        depth = data.preprocessing.known_bit_depth  # none is measured: the folder is none of classes
        data = data.resized(replace(data.preprocessing, bit_depth=depth))
        labels = [0] * len(names)
        return data, ImageDataset(data.source, names, labels, digests, data.eval_transform, bit_depth=depth)

    def extraction(self, network: Network) -> "Extraction":
        """Return how features are computed by a network of this run, such as `self.network()`.

        Raises:
            ValueError: This machine has no such device, or cannot run the engine.
        """
        from flowers.features.extractor import Extraction

        trainer, features = self.settings.trainer, self.settings.features
        device, precision = resolve_device_and_precision(trainer.accelerator, trainer.precision)
        return Extraction(device, precision, features.replace(engine=self.engine_of(network)), self.settings.tta)

    def engine_of(self, network: Network) -> str:
        """Return what computes features: that of the training only for a backbone that was never trained."""
        trained = self.settings.features.engine
        # The weights, whose digest takes time, are asked only where they decide.
        return self.engine or (trained if trained == "pytorch" or network.has_untrained_backbone() else "pytorch")

    def features(self, split: str = "val") -> Tensor:
        """Return the features (N, F) of the photos of a split by the trained network, on the CPU."""
        from flowers.features.extractor import extract_features

        network, data = self.network(), self.data()
        return extract_features(network, data, data.dataset(split), split, self.extraction(network))
