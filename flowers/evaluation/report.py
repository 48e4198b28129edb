"""report.html: one page about a run that needs no other file and no network."""

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.data.images import ImageRoot
from flowers.data.splits import SPLITS, group_summary, load_split
from flowers.evaluation.calibration import FEW_IMAGES
from flowers.evaluation.confusion import MATRIX_CLASSES
from flowers.evaluation.figures import (
    figure_to_svg,
    plot_class_curves,
    plot_coverage,
    plot_curves,
    plot_learning_curve,
    plot_reliability,
)
from flowers.evaluation.gallery import (
    ScoredImage,
    find_mistakes,
    image_data_url,
    score_images,
    sort_by_uncertainty,
    thumbnail,
)
from flowers.evaluation.metrics import is_imbalanced, sorted_metrics
from flowers.evaluation.power_law import describe_learning_curve, read_learning_curve
from flowers.evaluation.tables import REJECTION_LABELS, sort_by_f1
from flowers.runs.predictions import Predictions
from flowers.runs.run_folder import SPLIT_FILE, read_result
from flowers.runtime.files import atomic_write_text
from flowers.runtime.text import one_line, printable
from flowers.settings.overrides import flatten

log = logging.getLogger(__name__)

_GALLERY_IMAGES = 24
_MAX_EVENT_BYTES = 2**30


def write_report(
    path: Path,
    run_dir: Path,
    config: Mapping[str, Any],
    name: str,
    root: ImageRoot,
    predictions: Predictions,
    scores: Mapping[str, Any],
) -> None:
    """Write the page about a run's predictions.

    Args:
        path: The page.
        run_dir: The run folder; the page shows its curves, split and result if they are there.
        config: The configuration of the run.
        name: What was scored: a split, or a folder.
        root: Where the images are.
        predictions: The predictions of these images.
        scores: The result of `compute_metrics` for them.
    """
    scored = score_images(predictions)
    learning = read_learning_curve(run_dir)
    mistakes = find_mistakes(scored)
    page = Environment(
        loader=PackageLoader("flowers.evaluation", "templates"),
        autoescape=True,
        finalize=_printable,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template("report.html")
    text = page.render(
        name=name,
        config=config,
        scores=scores,
        metrics=sorted_metrics(scores),
        is_imbalanced=is_imbalanced(scores),
        classes=list(predictions.classes),
        by_f1=sort_by_f1(scores),
        rows=MATRIX_CLASSES,
        few=FEW_IMAGES,
        result=_whole_result(run_dir),
        counts=_split_counts(run_dir),
        curves=_curves(run_dir),
        learning=learning and figure_to_svg(plot_learning_curve(learning, is_page=True)),
        learned=learning and describe_learning_curve(learning),
        reliability=figure_to_svg(plot_reliability(scores["calibration"]["bins"])),
        class_curves=figure_to_svg(plot_class_curves(scores["curves"])) if scores["curves"] else None,
        coverage=figure_to_svg(plot_coverage(scores["coverage"])),
        rejection=scores.get("rejection"),
        rejection_labels=REJECTION_LABELS,
        mistakes=_embed_images(root, mistakes),
        mistake_count=len(mistakes),
        uncertain=_embed_images(root, sort_by_uncertainty(scored)),
        settings=[
            (key, value) for key, value in flatten(config).items() if not value or not isinstance(value, Mapping)
        ],
    )
    atomic_write_text(path, text)


def _whole_result(run_dir: Path) -> dict[str, Any] | None:
    """Return result.json; None if the run has not finished, or if what the page shows is not in it."""
    result = read_result(run_dir)
    shown = ("best_epoch", "device", "precision", "versions", "digest")
    is_whole = result is not None and all(result.get(key) is not None for key in shown)
    return result if is_whole and result and result["cost"].get("peak_memory_bytes") is not None else None


def _printable(value: Any) -> Any:
    """Escape what a page cannot show: control characters and invalid bytes in names."""
    return printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _embed_images(root: ImageRoot, rows: Sequence[ScoredImage]) -> list[tuple[ScoredImage, str]]:
    return [(row, image_data_url(thumbnail(root, row.path))) for row in rows[:_GALLERY_IMAGES]]


def _curves(run_dir: Path) -> str | None:
    files = [path for path in (run_dir / "tensorboard").glob("*tfevents*") if path.name.startswith("events.out.")]
    if not files:
        return None
    # A FIFO would be waited for, and the page shows a few thousand numbers.
    if not all(path.is_file() for path in files) or sum(path.stat().st_size for path in files) > _MAX_EVENT_BYTES:
        log.warning("%s: expected files of at most 1 GiB: the page has no curves", one_line(run_dir / "tensorboard"))
        return None
    try:
        events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    except Exception as error:  # TensorBoard raises anything for damaged events
        log.warning("%s: %s: the page has no curves", one_line(run_dir / "tensorboard"), one_line(error)[:200])
        return None
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    return figure_to_svg(plot_curves(scalars)) if scalars else None


def _split_counts(run_dir: Path) -> dict[str, Any] | None:
    """Return the images of each class in each split, and the groups of near duplicates that stay in one split."""
    if not (run_dir / SPLIT_FILE).exists():
        return None
    rows = load_split(run_dir / SPLIT_FILE)
    counts = Counter((row.label, row.split) for row in rows)
    sides = [side for side in SPLITS if any(split == side for _, split in counts)]
    labels = sorted({label for label, _ in counts})
    table = {label: [counts[label, side] for side in sides] for label in labels}
    return {"sides": sides, "table": table, "groups": group_summary(rows), "n": len(rows)}
