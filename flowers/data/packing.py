"""The program `flowers.pack`: check and split a folder of images, and write it into shards."""

from pathlib import Path

from filelock import FileLock
from omegaconf import DictConfig
from rich.console import Console

from flowers.data.datamodule import ImageDataModule
from flowers.data.shard_writer import write_shards
from flowers.data.splits import SPLITS
from flowers.runtime.hardware import available_cores
from flowers.runtime.text import one_line
from flowers.settings.config import to_container


def run_packing(cfg: DictConfig) -> int:
    """Write the images that the configuration `pack` names into shards, with their split.

    Returns:
        The number of images.

    Raises:
        ValueError: For invalid settings, or images or an output folder that cannot be used.
    """
    if not cfg.shard_mb > 0:
        raise ValueError(f"shard_mb={cfg.shard_mb}: expected more than 0")
    if cfg.workers is not None and cfg.workers < 1:
        raise ValueError(f"workers={cfg.workers}: expected at least 1, or null")
    root, output = Path(cfg.photos).resolve(), Path(cfg.output).resolve()
    if output.is_relative_to(root):
        raise ValueError(f"output={output} is inside photos={root}: give another folder")
    data = ImageDataModule(root, **to_container(cfg.data))
    records, classes = data.records, data.classes
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        shards = write_shards(root, records, classes, output, cfg.shard_mb, cfg.workers or available_cores())
    counts = ", ".join(f"{data.counts(split).total():,} {split}" for split in SPLITS)
    summary = f"{len(records):,} images ({counts}) in {shards} shards: {one_line(output)}"
    Console().print(summary, soft_wrap=True, highlight=False, markup=False)
    return len(records)
