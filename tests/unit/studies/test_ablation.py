import json
from pathlib import Path

import pytest
import torch

from flowers.evaluation.statistics import RunGroup
from flowers.runs.predictions import Predictions
from flowers.settings.config_reference import options_of
from flowers.studies.ablation import ablation_rows, arm_overrides, check_arms, make_arms
from tests.helpers import configuration


def test_make_arms_adds_each_part_alone_and_changes_the_best_by_each():
    arms = {arm.name: (arm.parts, arm.reference) for arm in make_arms(["a", "b", "c"], ["b", "a"])}
    assert arms == {
        "base": ((), ""),
        "base + a": (("a",), "base"),
        "base + b": (("b",), "base"),
        "base + c": (("c",), "base"),
        "best": (("a", "b"), "base"),
        "best + c": (("a", "b", "c"), "best"),
    }  # the best without a is the base with b


def test_make_arms_names_the_nearest_part():
    with pytest.raises(ValueError, match=r"recipe\.best: mixu: no such part: did you mean mixup\?"):
        make_arms(["mixup", "ema"], ["mixu"])


def test_arm_overrides_let_the_last_value_count():
    recipe = {"base": ["model=resnet18", "tta=none"], "settings": ["seed=3"], "parts": {"flip": ["tta=flip"]}}
    assert arm_overrides(recipe, make_arms(["flip"], [])[1]) == ["model=resnet18", "tta=flip", "seed=3"]


def test_check_arms_names_the_arm():
    arms = make_arms(["flip"], ["flip"])
    overrides = {"base": ["data=garden"], "base + flip": ["data=garden", "tta=flp"]}
    with pytest.raises(ValueError, match=r"recipe, in base \+ flip: tta=flp: .*did you mean flip\?"):
        check_arms(arms, overrides, folds=5)


def test_ablation_rows_pair_folds_and_correct_the_p_values(tmp_path: Path):
    def group(name: str, wrong: int) -> RunGroup:
        accuracies, folders = {}, {}
        for fold in range(2):
            run = tmp_path / name / str(fold)
            logits = torch.tensor([[0.0, 1.0]] * wrong + [[1.0, 0.0]] * (10 - wrong), dtype=torch.float64)
            paths = [f"{fold}-{number}" for number in range(10)]
            Predictions(paths, torch.zeros(10, dtype=torch.int64), logits, ["a", "b"]).save(run / "predictions/val.csv")
            val = {"accuracy": 1 - wrong / 10, "loss": 0.5, "n": 10, "interval": [0.0, 1.0]}
            result = {"val": val, "cost": {"seconds": {"head": 2.0, "finetune": 1.0}}}
            (run / "result.json").write_text(json.dumps(result))
            accuracies[f"seed=0 data.fold={fold}"], folders[f"seed=0 data.fold={fold}"] = 1 - wrong / 10, run
        return RunGroup(name, accuracies, folders, dict.fromkeys(folders, 10))

    arms = make_arms(["a", "b"], ["a"])
    groups = {arm.name: group(arm.name, wrong) for arm, wrong in zip(arms, (6, 0, 5, 4), strict=True)}
    rows = {row["recipe"]: row for row in ablation_rows(arms, groups)}
    assert rows["base"]["accuracy"] == pytest.approx(0.4)
    assert rows["base + a"]["difference"] == pytest.approx(0.6)
    assert rows["base + a"]["p"] == pytest.approx(3 * 2 / 2**12)  # twelve images gained, three comparisons
    low, high = rows["base + a"]["95 % interval"]
    assert low < 0.6 < high  # no spread between the folds
    assert rows["base"]["p"] == ""
    assert rows["base + a"]["seconds"] == 3.0
    assert rows["best + b"]["compared with"] == "base + a"


@pytest.mark.parametrize("name", options_of("recipe"))
def test_the_base_each_part_and_the_best_of_each_recipe_compose(name: str):
    recipe = configuration(f"recipe={name}", name="ablation").recipe.to_dict()
    arms = [arm for arm in make_arms(list(recipe["parts"]), recipe["best"]) if arm.reference in ("", "base")]
    check_arms(arms, {arm.name: arm_overrides(recipe | {"settings": []}, arm) for arm in arms}, folds=2)
