"""Tables for the terminal, and report.html: one page that needs no other file and no network."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from rich import box
from rich.table import Table
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from flowers.data.images import ImageRoot
from flowers.data.splits import SPLITS, load_split
from flowers.evaluation.figures import figure_to_svg, plot_coverage, plot_curves, plot_reliability
from flowers.evaluation.gallery import (
    ScoredImage,
    find_mistakes,
    image_data_url,
    score_images,
    sort_by_uncertainty,
    thumbnail,
)
from flowers.evaluation.predictions import Predictions
from flowers.evaluation.statistics import RunGroup, mean_std
from flowers.runtime.files import atomic_write_text, read_json
from flowers.runtime.run_folder import RESULT_FILE, SPLIT_FILE


def score_tables(name: str, scores: Mapping[str, Any]) -> list[Table]:
    """`metrics.detailed` of the photos `name` for people: as a whole, by class, and which is taken for which."""
    error = scores["calibration"]["error"]
    whole = Table(name, "", "95 % interval", box=box.SIMPLE)
    whole.add_row("accuracy", f"{scores['accuracy']:.6f}", _format_interval(scores["interval"]))
    whole.add_row("top-2 accuracy", f"{scores['top2']['value']:.6f}", _format_interval(scores["top2"]["interval"]))
    whole.add_row("loss", f"{scores['loss']:.4f}", "")
    whole.add_row("calibration error", f"{error['before']:.4f}", "")
    whole.add_row("  calibrated", f"{error['after']:.4f}", "")
    whole.add_row("photos", str(scores["n"]), "")
    by_class = Table("class", "n", "precision", "recall", "F1", box=box.SIMPLE)
    averaged = {"mean of classes": {"n": scores["n"], **scores["macro"]}}
    for label, row in (scores["classes"] | averaged).items():
        by_class.add_row(label, str(row["n"]), *(_format_measured(row[name]) for name in ("precision", "recall", "f1")))
    confusion = Table("true \\ predicted", *scores["classes"], box=box.SIMPLE)
    for label, counts in zip(scores["classes"], scores["confusion"], strict=True):
        confusion.add_row(label, *map(str, counts))
    return [whole, by_class, confusion]


def ranking_table(scores: Mapping[str, Any], against_best: Mapping[str, Any]) -> Table:
    """Runs for people, the best first, each with what the best is ahead of it by (`paired.compare`)."""
    rows = Table("run", "accuracy", "best is ahead by", "95 % interval", "p", box=box.SIMPLE)
    for name, scored in scores.items():
        pair = against_best.get(name)
        ahead = [f"{pair['difference']:.4f}", _format_interval(pair["interval"]), f"{pair['p']:.3g}"] if pair else []
        rows.add_row(name, f"{scored['accuracy']:.4f}", *ahead)
    return rows


def _format_measured(number: Mapping[str, Any]) -> str:
    return (
        "none" if number["value"] is None else f"{number['value']:.3f} {_format_interval(number['interval'], 3, '-')}"
    )


def _format_interval(pair: Sequence[float], digits: int = 4, between: str = " to ") -> str:
    return f"{pair[0]:.{digits}f}{between}{pair[1]:.{digits}f}"


def run_group_table(recipes: list[RunGroup]) -> Table:
    """A row a recipe, for people."""
    rows = Table("recipe", "mean", "standard deviation", "runs", box=box.SIMPLE)
    for recipe in recipes:
        mean, deviation = mean_std(list(recipe.accuracies.values()))
        shown = f"{deviation:.4f}" if len(recipe.accuracies) > 1 else "one run"
        rows.add_row(recipe.name or "(no overrides)", f"{mean:.4f}", shown, str(len(recipe.accuracies)))
    return rows


_GALLERY_IMAGES = 24  # photos in a gallery


def write_report(
    path: Path,
    run_dir: Path,
    config: Mapping[str, Any],
    name: str,
    root: ImageRoot,
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
    said = score_images(predictions)
    page = Environment(
        loader=PackageLoader("flowers.evaluation", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
    ).get_template("report.html")
    text = page.render(
        name=name,
        config=config,
        scores=scores,
        classes=list(predictions.classes),
        result=read_json(run_dir / RESULT_FILE) if (run_dir / RESULT_FILE).exists() else None,
        counts=_split_counts(run_dir),
        curves=_curves(run_dir),
        reliability=figure_to_svg(plot_reliability(scores["calibration"]["bins"])),
        coverage=figure_to_svg(plot_coverage(scores["coverage"])),
        mistakes=_embed_images(root, find_mistakes(said)),
        mistaken=len(find_mistakes(said)),
        unsure=_embed_images(root, sort_by_uncertainty(said)),
        settings=_flatten_pairs(config),
    )
    atomic_write_text(path, text)


def _embed_images(root: ImageRoot, rows: Sequence[ScoredImage]) -> list[tuple[ScoredImage, str]]:
    return [(row, image_data_url(thumbnail(root / row.path))) for row in rows[:_GALLERY_IMAGES]]


def _curves(run_dir: Path) -> str | None:
    if not (run_dir / "tensorboard").is_dir():
        return None
    events = EventAccumulator(str(run_dir / "tensorboard")).Reload()
    tags = [tag for tag in events.Tags()["scalars"] if tag.startswith(("train/", "val/"))]
    scalars = {tag: [(event.step, event.value) for event in events.Scalars(tag)] for tag in tags}
    return figure_to_svg(plot_curves(scalars)) if scalars else None


def _split_counts(run_dir: Path) -> dict[str, Any] | None:
    """Photos of each class in each split, and how many have a double or a near one."""
    if not (run_dir / SPLIT_FILE).exists():
        return None
    rows = load_split(run_dir / SPLIT_FILE)
    sides = [side for side in SPLITS if any(row.split == side for row in rows)]
    labels = sorted({row.label for row in rows})
    table = {
        label: [sum(row.label == label and row.split == side for row in rows) for side in sides] for label in labels
    }
    groups = [row.group for row in rows]
    return {"sides": sides, "table": table, "doubles": len(groups) - len(set(groups)), "n": len(rows)}


def _flatten_pairs(config: Mapping[str, Any], prefix: str = "") -> list[tuple[str, Any]]:
    """`{"a": {"b": 1}}` as `[("a.b", 1)]`."""
    pairs = []
    for name, value in config.items():
        is_group = isinstance(value, Mapping) and value
        pairs += _flatten_pairs(value, f"{prefix}{name}.") if is_group else [(f"{prefix}{name}", value)]
    return pairs
