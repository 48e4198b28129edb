"""Shows where in photos a class shows: `python -m flowers.explain --help`."""

import logging
import os
from collections.abc import Sequence
from pathlib import Path

from omegaconf import DictConfig

from flowers.program import program

log = logging.getLogger(__name__)


def explain(cfg: DictConfig) -> int:
    """Writes a picture for each photo that `cfg` names, below `cfg.output`; returns how many could be read."""
    from rich.console import Console

    from flowers import atomic, photos, progress, run
    from flowers.classifier import Classifier

    given = run.plain(cfg)
    label = None if given["label"] is None else str(given["label"])
    files = photos.listed(given["photos"])
    pictures = _pictures(files, Path(str(given["output"])))
    classifier = Classifier.load(str(given["run"]), given["accelerator"], given["precision"])

    from flowers.explanation import explanation

    console, written = Console(soft_wrap=True, markup=False, highlight=False), 0
    for file, path in progress.bar(list(zip(files, pictures, strict=True)), "Explaining"):
        try:
            image = photos.read(file)
        except MemoryError:
            raise
        except Exception as error:  # a stranger's bytes make Pillow raise anything
            log.warning("passed over, %s: %s", file, photos.reason(error))
            continue
        picture, caption = explanation(classifier, image, label)
        with atomic.writing(path) as beside:
            picture.save(beside, "PNG")
        console.print(f"{path}: {caption}")
        written += 1
    if not written:
        raise ValueError(
            f"none of the {len(files)} files could be read: wanted photos (JPEG, PNG, WebP, BMP, GIF, TIFF)"
        )
    return written


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
