import csv
from pathlib import Path

import pytest
from filelock import FileLock

from flowers.ablation import main
from flowers.settings.overrides import quote_override
from tests.helpers import TINY, configuration, program_here


def settings(photos: Path, folder: Path) -> list[str]:
    fixed = ",".join(map(quote_override, [*TINY[:-2], "head.epochs=0", "finetune.epochs=1", f"data.root={photos}"]))
    recipe = ["recipe.base=[]", "recipe.best=[smoothing]", "~recipe.parts.mixup", "~recipe.parts.flip"]
    return [*recipe, f"settings=[{fixed}]", "folds=2", f"folder={folder}"]


@pytest.mark.slow
def test_ablation_trains_what_is_left_and_writes_the_same_table(
    painted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
):
    given = settings(painted, tmp_path / "ablation")
    (tmp_path / "ablation" / "base").mkdir(parents=True)
    with FileLock(tmp_path / "ablation" / "base" / ".seed-0-fold-0.lock"):  # as another process that trains it
        main(configuration(*given, name="ablation"))
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines[:3]] == ["2/4", "3/4", "4/4"]
    assert lines[3:] == ["1 of 4 runs train in other processes, the last of which prints the table"]
    main(configuration(*given, name="ablation"))
    assert capsys.readouterr().out.startswith("1/4 ")
    table = (tmp_path / "ablation" / "ablation.md").read_text()
    with (tmp_path / "ablation" / "ablation.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["recipe"] for row in rows] == ["base", "base + smoothing"]
    assert float(rows[1]["low"]) <= float(rows[1]["difference"]) <= float(rows[1]["high"])
    runs = sorted((tmp_path / "ablation").glob("*/seed-*/result.json"))
    assert len(runs) == 4
    assert not list((tmp_path / "ablation").glob("*/*/checkpoints"))
    runs[0].unlink()
    (runs[0].parent / "started.yaml").unlink()
    main(configuration(*given, name="ablation"))

    def without_seconds(text: str) -> list[str]:
        return [line.rpartition("| ")[0].rpartition("| ")[0] for line in text.splitlines()]

    assert without_seconds((tmp_path / "ablation" / "ablation.md").read_text()) == without_seconds(table)
    for other in ("recipe.best=[]", "folds=3"):
        with pytest.raises(ValueError, match="it holds the runs of another recipe"):
            main(configuration(*given, other, name="ablation"))


def test_wrong_part_is_one_line_before_anything_is_trained(tmp_path: Path):
    done = program_here("recipe.best=[mixp]", f"folder={tmp_path}/a", name="ablation")
    assert done.returncode == 1
    assert done.stderr == "error: recipe.best: mixp: no such part: did you mean mixup?\n"
    assert not (tmp_path / "a").exists()
