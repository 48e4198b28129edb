"""The program `flowers.pack`: check and split a folder of images, and write it into shards."""

from pathlib import Path

from filelock import FileLock
from rich.console import Console

from flowers.data.datamodule import ImageDataModule
from flowers.data.shard_writer import write_shards
from flowers.data.sources.build import photos_setting
from flowers.data.sources.table import table_root
from flowers.data.splits import SPLITS
from flowers.runtime.hardware import available_cores
from flowers.runtime.text import one_line
from flowers.settings.schema.programs import PackSettings


def run_packing(settings: PackSettings) -> int:
    """Write the images that the configuration `pack` names into shards, with their split.

    Returns:
        The number of images.

    Raises:
        ValueError: For invalid settings, or images or an output folder that cannot be used.
    """
    root, output = Path(settings.photos).resolve(), Path(settings.output).resolve()
    photos = photos_setting(root)
    if photos["table"]:
        root = table_root(root, None)
    elif output.is_relative_to(root):
        raise ValueError(f"output={output} is inside photos={root}: give another folder")
    data = ImageDataModule.from_settings(**photos, **settings.data.to_dict())
    records, classes = data.records, data.classes
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        workers, peak = settings.workers or available_cores(), max(data.source.gray_peaks, default=0)
        shards = write_shards(root, records, classes, output, settings.shard_mb, workers, peak)
    counts = ", ".join(f"{data.counts(split).total():,} {split}" for split in SPLITS)
    summary = f"{len(records):,} images ({counts}) in {shards} shards: {one_line(output)}"
    Console().print(summary, soft_wrap=True, highlight=False, markup=False)
    return len(records)
