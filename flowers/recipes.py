"""A multirun's runs by recipe: what they have in common but for the seed or the fold."""

from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from omegaconf import OmegaConf
from rich import box
from rich.table import Table
from scipy.stats import ttest_ind, ttest_rel

from flowers import results
from flowers.paired import spread

_DRAWS = ("seed", "data.fold", "data.split_seed")  # of which a recipe's runs differ


class Recipe(NamedTuple):
    """Its overrides, and the accuracy of each of its runs by the overrides of seed and fold."""

    name: str
    accuracies: dict[str, float]

    @property
    def mean(self) -> float:
        """Over its runs."""
        return spread(list(self.accuracies.values()))[0]


def load(folder: Path, split: str) -> list[Recipe]:
    """The recipes of the finished runs below `folder`, best mean first. Raises ValueError where there are none."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for overrides in sorted(folder.glob("*/.hydra/overrides.yaml")):
        result = overrides.parent.parent / results.RESULT
        if not result.is_file():
            continue
        given = [str(line) for line in OmegaConf.load(overrides)]
        drawn = [line for line in given if line.partition("=")[0] in _DRAWS]
        scored = results.load(result)
        if split not in scored:
            raise ValueError(f"{result} has no score of {split}: wanted a split= that the runs scored, such as val")
        found[" ".join(line for line in given if line not in drawn)][" ".join(drawn)] = scored[split]["accuracy"]
    if not found:
        raise ValueError(f"multirun={folder}: no finished run there: give the folder of a multirun")
    common = set.intersection(*(set(name.split()) for name in found)) if len(found) > 1 else set()
    shortened = {name: " ".join(part for part in name.split() if part not in common) or name for name in found}
    recipes = [Recipe(shortened[name], accuracies) for name, accuracies in found.items()]
    return sorted(recipes, key=lambda recipe: -recipe.mean)


def table(recipes: list[Recipe]) -> Table:
    """A row a recipe, for people."""
    rows = Table("recipe", "mean", "standard deviation", "runs", box=box.SIMPLE)
    for recipe in recipes:
        mean, deviation = spread(list(recipe.accuracies.values()))
        shown = f"{deviation:.4f}" if len(recipe.accuracies) > 1 else "one run"
        rows.add_row(recipe.name or "(no overrides)", f"{mean:.4f}", shown, str(len(recipe.accuracies)))
    return rows


def verdict(recipes: list[Recipe]) -> str:
    """Whether the best differs from the next by more than chance, by a t-test over their runs at the level of 5 %."""
    if len(recipes) < 2:
        return "one recipe: nothing to compare it with"
    best, second = recipes[:2]
    if min(len(best.accuracies), len(second.accuracies)) < 2:
        return "the best and the next have too few runs to tell them apart: give two seeds or more"
    shared = sorted(best.accuracies.keys() & second.accuracies.keys())
    if len(shared) == len(best.accuracies) == len(second.accuracies):  # the same seeds or folds: paired
        first, other = ([recipe.accuracies[draw] for draw in shared] for recipe in (best, second))
        same = len({round(a - b, 12) for a, b in zip(first, other, strict=True)}) == 1
        p = float(first == other) if same else float(ttest_rel(first, other).pvalue)
        name = "paired t-test"
    else:
        p = float(ttest_ind(list(best.accuracies.values()), list(second.accuracies.values()), equal_var=False).pvalue)
        name = "Welch's t-test"
    if p < 0.05:
        return f"the best is better than the next ({name}, p = {p:.3g})"
    return f"no difference shown between the best and the next ({name}, p = {p:.3g})"
