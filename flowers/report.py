"""One page that says what a run is and how good: a file that needs no other, nor a network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers import atomic, figures, gallery, photos, results, split
from flowers.predictions import Predictions
from flowers.run import SPLIT

_SHOWN = 24  # photos in a gallery


def write(
    path: Path,
    run_dir: Path,
    config: Mapping[str, Any],
    name: str,
    root: photos.Root,
    predictions: Predictions,
    scores: Mapping[str, Any],
) -> None:
    """Writes the page on `predictions` of the photos `name`, which lie below `root`.

    Args:
        path: of the page.
        run_dir: of the run; its curves, split and result are shown.
        config: the run's whole configuration.
        name: of the photos: a split, or the user's folder.
        root: the folder of the photos.
        predictions: what the model said of them.
        scores: `metrics.detailed` of that.
    """
    said = gallery.said(predictions)
    page = Environment(
        loader=PackageLoader("flowers", "."), autoescape=True, undefined=StrictUndefined, trim_blocks=True
    ).get_template("report.html")
    text = page.render(
        name=name,
        config=config,
        scores=scores,
        classes=list(predictions.classes),
        result=results.load(run_dir / results.RESULT) if (run_dir / results.RESULT).exists() else None,
        counts=_counts(run_dir),
        curves=_curves(run_dir),
        reliability=figures.svg(figures.reliability(scores["calibration"]["bins"])),
        coverage=figures.svg(figures.coverage(scores["coverage"])),
        mistakes=_pictures(root, gallery.mistakes(said)),
        mistaken=len(gallery.mistakes(said)),
        unsure=_pictures(root, gallery.least_sure(said)),
        settings=_flat(config),
    )
    atomic.write_text(path, text)


def _pictures(root: photos.Root, rows: Sequence[gallery.Said]) -> list[tuple[gallery.Said, str]]:
    return [(row, gallery.embedded(gallery.thumbnail(root / row.path))) for row in rows[:_SHOWN]]


def _curves(run_dir: Path) -> str | None:
    if not (run_dir / "tensorboard").is_dir():
        return None
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    return figures.svg(figures.curves(scalars)) if scalars else None


def _counts(run_dir: Path) -> dict[str, Any] | None:
    """Photos of each class in each split, and how many have a double or a near one."""
    if not (run_dir / SPLIT).exists():
        return None
    rows = split.load(run_dir / SPLIT)
    sides = [side for side in split.SPLITS if any(row.split == side for row in rows)]
    labels = sorted({row.label for row in rows})
    table = {
        label: [sum(row.label == label and row.split == side for row in rows) for side in sides] for label in labels
    }
    groups = [row.group for row in rows]
    return {"sides": sides, "table": table, "doubles": len(groups) - len(set(groups)), "n": len(rows)}


def _flat(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `[("a.b", 1)]`."""
    pairs = []
    for name, value in config.items():
        is_group = isinstance(value, Mapping) and value
        pairs += _flat(value, f"{prefix}{name}.") if is_group else [(f"{prefix}{name}", value)]
    return pairs
