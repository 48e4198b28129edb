"""Shows where in photos a class shows: `python -m flowers.explain --help`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig
from PIL.Image import Image

from flowers.program import program

log = logging.getLogger(__name__)


def explain(cfg: DictConfig) -> int:
    """Writes a picture for each photo that `cfg` names, below `cfg.output`; returns how many could be read."""
    from rich.console import Console

    from flowers import photos, progress, run
    from flowers.classifier import Classifier
    from flowers.explanation import explanation

    trained, output, label = str(cfg.run), Path(str(cfg.output)), None if cfg.label is None else str(cfg.label)
    files = photos.listed(run.plain(cfg)["photos"])
    pictures = _pictures(files, output)
    classifier = Classifier.load(trained, cfg.accelerator, cfg.precision)
    console, written = Console(soft_wrap=True, markup=False, highlight=False), 0
    for file, path in progress.bar(list(zip(files, pictures, strict=True)), "Explaining"):
        image = _read(file)
        if image is None:
            continue
        picture, caption = explanation(classifier, image, label)
        _save(picture, path)
        console.print(f"{path}: {caption}")
        written += 1
    if not written:
        raise ValueError(f"none of {len(files)} files could be read: wanted photos (JPEG, PNG, WebP, BMP, GIF, TIFF)")
    return written


def _read(file: Path) -> Image | None:
    """The photo; None, and a line that says why, where there is none."""
    from flowers import photos

    try:
        return photos.read(file)
    except MemoryError:
        raise
    except Exception as error:  # a stranger's bytes make Pillow raise anything
        log.warning("passed over, %s: %s", file, photos.reason(error))
        return None


def _save(picture: Image, path: Path) -> None:
    from flowers import atomic

    try:
        with atomic.writing(path) as beside:
            picture.save(beside, "PNG")
    except OSError as error:
        raise ValueError(f"{path} cannot be written: {error.strerror}") from error


def _pictures(files: Sequence[Path], output: Path) -> list[Path]:
    """The picture of each photo: its path below the folder that all are in, below `output`, with ".png" added."""
    absolute = [Path(os.path.normpath(file.absolute())) for file in files]  # not resolved: a link keeps its name
    if any(file.is_relative_to(output.resolve()) for file in map(Path.resolve, files)):
        raise ValueError(f"output={output} holds photos that are to be explained: give another folder")
    top = os.path.commonpath([file.parent for file in absolute])
    return [output / f"{file.relative_to(top)}.png" for file in absolute]


main = program(explain, "explain")

if __name__ == "__main__":
    main()
