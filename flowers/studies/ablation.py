"""Ablations: what each part of a recipe adds, alone and within the best recipe, over folds and seeds."""

import itertools
import shutil
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

from filelock import FileLock, Timeout
from rich import box
from rich.console import Console
from rich.table import Table

from flowers.evaluation.comparison import pooled_predictions
from flowers.evaluation.statistics import RunGroup, difference_interval, holm, mcnemar
from flowers.evaluation.tables import format_interval, plain
from flowers.runs.run_folder import START_FILE, read_result
from flowers.runtime.files import atomic_write_text, read_json, write_json
from flowers.runtime.interrupt import resumable
from flowers.runtime.text import shell_setting, write_csv
from flowers.settings.config import compose_settings
from flowers.settings.overrides import check_overrides, hydra_context, parse_overrides, quote_override
from flowers.settings.schema.programs import AblationSettings
from flowers.settings.schema.training import TrainSettings
from flowers.settings.suggestions import did_you_mean
from flowers.training.in_process import group_override, train_in_process

RECIPE_FILE, TABLE_FILE, CSV_FILE = "recipe.json", "ablation.md", "ablation.csv"
_COLUMNS = ("recipe", "compared with", "accuracy", "difference", "95 % interval", "p", "seconds")


class Arm(NamedTuple):
    """One of the recipes that are compared.

    Attributes:
        name: "base", "base + mixup", "best", "best - mixup" and so on.
        parts: The names of its parts.
        reference: The name of the arm that it is compared with; empty for the base.
    """

    name: str
    parts: tuple[str, ...]
    reference: str


def run_ablation(settings: AblationSettings) -> None:
    """Train the runs that are left, and print and write the table. Several processes may share the runs of a folder.

    Raises:
        ValueError: The recipe is wrong, or the folder holds the runs of another one; or a run fails.
    """
    recipe = settings.recipe.to_dict() | {"settings": settings.settings, "folds": settings.folds}
    arms = make_arms(list(recipe["parts"]), recipe["best"])
    overrides = {arm.name: arm_overrides(recipe, arm) for arm in arms}
    check_arms(arms, overrides, settings.folds)
    folder = Path(settings.folder).resolve()
    _claim(folder, recipe)
    replicates = list(itertools.product(settings.seeds, range(settings.folds)))
    runs = list(itertools.product(replicates, arms))  # fold by fold, so that an unfinished table is balanced
    with resumable(f"python -m flowers.ablation … {shell_setting('folder', folder)}"):
        for number, ((seed, fold), arm) in enumerate(runs, start=1):
            run_dir = _run_dir(folder, arm, seed, fold)
            replicate = [f"seed={seed}", f"data.folds={settings.folds}", f"data.fold={fold}"]
            with _own(run_dir) as owned:
                if owned and read_result(run_dir) is None:
                    name = f"{number}/{len(runs)}  {arm.name}  fold {fold}"
                    _train([group_override(folder), *overrides[arm.name], *replicate], run_dir, name)
                if owned and not settings.keep_checkpoints:
                    shutil.rmtree(run_dir / "checkpoints", ignore_errors=True)
    left = sum(read_result(_run_dir(folder, arm, seed, fold)) is None for (seed, fold), arm in runs)
    if left:
        _console().print(f"{left} of {len(runs)} runs train in other processes, the last of which prints the table")
        return
    rows = ablation_rows(arms, {arm.name: _group(folder, arm, replicates) for arm in arms})
    _report(rows, folder, f"{settings.folds} folds, seeds {', '.join(map(str, settings.seeds))}")


def make_arms(parts: Sequence[str], best: Sequence[str]) -> list[Arm]:
    """Return the arms, of which no two have the same parts.

    Args:
        parts: The names of all parts.
        best: The parts of the best recipe.

    Raises:
        ValueError: The best recipe has an unknown part.
    """
    if unknown := [name for name in best if name not in parts]:
        raise ValueError(f"recipe.best: {unknown[0]}: no such part{did_you_mean(unknown[0], list(parts))}")
    whole = tuple(name for name in parts if name in best)
    candidates: list[tuple[str, tuple[str, ...], tuple[str, ...]]] = []
    candidates += [(f"base + {part}", (part,), ()) for part in parts]
    candidates += [("best", whole, ())]
    for part in parts:
        changed = tuple(name for name in parts if (name in best) != (name == part))
        candidates += [(f"best {'-' if part in best else '+'} {part}", changed, whole)]
    arms: dict[tuple[str, ...], Arm] = {(): Arm("base", (), "")}
    for name, combined, reference in candidates:
        arms.setdefault(combined, Arm(name, combined, arms[reference].name))
    return list(arms.values())


def arm_overrides(recipe: Mapping[str, Any], arm: Arm) -> list[str]:
    """Return the overrides of an arm. Of several with the same key, the last one counts."""
    lines = [*recipe["base"], *recipe["settings"], *(line for part in arm.parts for line in recipe["parts"][part])]
    by_key = {override.key_or_group: line for line, override in zip(lines, parse_overrides(lines), strict=True)}
    return list(by_key.values())


def check_arms(arms: Iterable[Arm], overrides: Mapping[str, Sequence[str]], folds: int) -> None:
    """Check the settings of all arms before anything is trained.

    Raises:
        ValueError: One of them is wrong; the message names the arm.
    """
    with hydra_context():  # arms of the same options are composed once
        for arm in arms:
            try:
                checked = check_overrides([*overrides[arm.name], f"data.folds={folds}", "run_dir=x"], "train")
                compose_settings(checked, TrainSettings)
            except ValueError as error:
                raise ValueError(f"recipe, in {arm.name}: {error}") from error


def _claim(folder: Path, recipe: Mapping[str, Any]) -> None:
    """Write the recipe into a new folder, or check that the folder holds the runs of this recipe."""
    if (folder / RECIPE_FILE).exists():
        if read_json(folder / RECIPE_FILE) != recipe:
            raise ValueError(
                f"folder={folder}: it holds the runs of another recipe or other folds: give another folder"
            )
        return
    folder.mkdir(parents=True, exist_ok=True)
    write_json(recipe, folder / RECIPE_FILE)


def _run_dir(folder: Path, arm: Arm, seed: int, fold: int) -> Path:
    return folder / arm.name.replace(" ", "") / f"seed-{seed}-fold-{fold}"


@contextmanager
def _own(run_dir: Path) -> Iterator[bool]:
    """Hold a run, unless another process trains it: yields whether this one may."""
    run_dir.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(run_dir.with_name(f".{run_dir.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _train(overrides: Sequence[str], run_dir: Path, name: str) -> None:
    start = time.perf_counter()
    checked = check_overrides([*overrides, f"hydra.run.dir={quote_override(run_dir)}"], "train")
    resume = [f"resume={quote_override(run_dir)}"] if (run_dir / START_FILE).is_file() else []
    train_in_process([*checked, *resume])
    result = read_result(run_dir)
    assert result is not None
    seconds = time.perf_counter() - start
    _console().print(f"{name}  accuracy {result['val']['accuracy']:.4f}  {seconds:.1f} s", soft_wrap=True)


def _console() -> Console:
    return Console(highlight=False, markup=False, width=None if Console().is_terminal else 160)


def _group(folder: Path, arm: Arm, replicates: Iterable[tuple[int, int]]) -> RunGroup:
    folders = {f"seed={seed} data.fold={fold}": _run_dir(folder, arm, seed, fold) for seed, fold in replicates}
    results = {key: read_result(run_dir) for key, run_dir in folders.items()}
    accuracies = {key: result["val"]["accuracy"] for key, result in results.items() if result}
    counts = {key: result["val"]["n"] for key, result in results.items() if result}
    return RunGroup(arm.name, accuracies, folders, counts)


def ablation_rows(arms: Sequence[Arm], groups: Mapping[str, RunGroup]) -> list[dict[str, Any]]:
    """Return a row of `_COLUMNS` for each arm.

    The interval is that of the mean difference over folds and seeds, corrected for folds that share training images.
    `p` is McNemar's, over the images of all folds with the first seed, with Holm's correction for all comparisons.

    Args:
        arms: The arms.
        groups: The finished runs of each arm.
    """
    rows: list[dict[str, Any]] = []
    p_values: dict[str, float] = {}
    for arm in arms:
        group = groups[arm.name]
        results = [result for run_dir in group.folders.values() if (result := read_result(run_dir))]
        seconds = [sum(result["cost"]["seconds"].values()) for result in results]
        row: dict[str, Any] = {"recipe": arm.name, "compared with": arm.reference, "accuracy": group.mean}
        row |= {"difference": "", "95 % interval": "", "p": "", "seconds": sum(seconds) / len(seconds)}
        if arm.reference:
            reference = groups[arm.reference]
            differences = [group.accuracies[key] - reference.accuracies[key] for key in group.accuracies]
            row["difference"] = sum(differences) / len(differences)
            row["95 % interval"] = difference_interval(differences, group.overlap, group.images)
            pooled = [pooled_predictions(each, "val") for each in (reference, group)]
            p_values[arm.name] = mcnemar(*pooled)["p"]
        rows.append(row)
    adjusted = dict(zip(p_values, holm([*p_values.values()]), strict=True))
    return [row | {"p": adjusted.get(str(row["recipe"]), "")} for row in rows]


def _report(rows: Sequence[Mapping[str, Any]], folder: Path, replicates: str) -> None:
    """Print the table, and write it as Markdown and CSV."""
    table = Table(*_COLUMNS, box=box.SIMPLE)
    lines = [f"| {' | '.join(_COLUMNS)} |", "|" + " --- |" * len(_COLUMNS)]
    for row in rows:
        cells = [
            row["recipe"],
            row["compared with"],
            f"{row['accuracy']:.4f}",
            f"{row['difference']:+.4f}" if row["compared with"] else "",
            format_interval(row["95 % interval"]) if row["compared with"] else "",
            f"{row['p']:.3g}" if row["compared with"] else "",
            f"{row['seconds']:.1f}",
        ]
        table.add_row(*map(plain, cells))
        lines.append(f"| {' | '.join(cells)} |")
    console = _console()
    console.print(table)
    console.print(
        f"means over {replicates}; intervals corrected for shared training images; p: McNemar over the images of all "
        f"folds of the first seed, Holm's correction for all {len(rows) - 1}; "
        "from p = 0.05 on, a recipe cannot be told apart from the one that it is compared with",
        soft_wrap=True,
    )
    atomic_write_text(folder / TABLE_FILE, "\n".join(lines) + "\n")
    values = [
        [
            *(row[name] for name in _COLUMNS[:4]),
            *(row["95 % interval"] or ("", "")),
            *(row[name] for name in _COLUMNS[5:]),
        ]
        for row in rows
    ]
    write_csv(folder / CSV_FILE, [[*_COLUMNS[:4], "low", "high", *_COLUMNS[5:]], *values])
    console.print(f"{folder / TABLE_FILE}", soft_wrap=True)
