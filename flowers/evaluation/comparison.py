"""Compare trained runs: image by image, or over seeds and folds."""

from collections import defaultdict
from pathlib import Path

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from flowers.evaluation.metrics import score
from flowers.evaluation.predictions import load_run_predictions
from flowers.evaluation.report import ranking_table, run_group_table
from flowers.evaluation.statistics import RunGroup, group_verdict, mcnemar, mcnemar_verdict
from flowers.runtime.files import read_json, write_json
from flowers.runtime.run_folder import RESULT_FILE, require_run_dir

_REPLICATE_KEYS = ("seed", "data.fold", "data.split_seed")  # of which a recipe's runs differ


def load_run_groups(folder: Path, split: str) -> list[RunGroup]:
    """The recipes of the finished runs below `folder`, best mean first. Raises ValueError where there are none."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml")):
        result = overrides.parent.parent / RESULT_FILE
        if not result.is_file():
            continue
        given = [str(line) for line in OmegaConf.load(overrides)]
        drawn = [line for line in given if line.partition("=")[0] in _REPLICATE_KEYS]
        scored = read_json(result)
        if split not in scored:
            raise ValueError(f"{result} has no score of {split}: wanted a split= that the runs scored, such as val")
        found[" ".join(line for line in given if line not in drawn)][" ".join(drawn)] = scored[split]["accuracy"]
    if not found:
        raise ValueError(f"multirun={folder}: no finished run there: give the folder of a multirun")
    common = set.intersection(*(set(name.split()) for name in found)) if len(found) > 1 else set()
    shortened = {name: " ".join(part for part in name.split() if part not in common) or name for name in found}
    recipes = [RunGroup(shortened[name], accuracies) for name, accuracies in found.items()]
    return sorted(recipes, key=lambda recipe: -recipe.mean)


def run_comparison(cfg: DictConfig) -> None:
    """Compares the runs that `cfg` names pair by pair, the best first; prints tables, and writes JSON where asked."""

    console = Console(highlight=False)
    if cfg.multirun:
        found = load_run_groups(Path(cfg.multirun), cfg.split)
        console.print(run_group_table(found))
        console.print(group_verdict(found), soft_wrap=True)
        return
    if not cfg.runs or len(cfg.runs) < 2:
        raise ValueError("which runs? Give runs='[A,B]' with two folders or more, or multirun=FOLDER")
    folders = [require_run_dir(str(folder)) for folder in cfg.runs]
    said = {str(folder): load_run_predictions(folder, cfg.split) for folder in folders}
    best, *others = sorted(said, key=lambda name: -score(said[name])["accuracy"])
    compared = {other: mcnemar(said[other], said[best]) for other in others}
    console.print(ranking_table({name: score(said[name]) for name in (best, *others)}, compared))
    for other, pair in compared.items():
        console.print(f"{best} against {other}: {mcnemar_verdict(pair)}", soft_wrap=True)
        for word in ("gained", "lost"):
            shown = ", ".join(pair[word][: cfg.max_listed]) + (", …" if len(pair[word]) > cfg.max_listed else "")
            console.print(f"  {word} {len(pair[word])}" + (f": {shown}" if shown else ""), soft_wrap=True)
    if cfg.output:
        write_json({"best": best, "against": compared}, cfg.output)
