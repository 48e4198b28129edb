import shutil
from pathlib import Path

import pytest
from PIL import Image

from flowers.evaluate import main as evaluate
from flowers.learning_curve import check_source, main
from flowers.runs.resume import write_start
from flowers.runtime.files import read_json
from flowers.runtime.text import read_csv
from tests.helpers import SMALL, TINY, configuration


def test_learning_curve_of_a_run_reaches_its_report(trained: Path, tmp_path: Path):
    run = tmp_path / "run"
    shutil.copytree(trained, run)
    settings = [f"run={run}", "fractions=[0.2,0.35,0.5,1.0]", "seeds=[0,1]", "accelerator=cpu", "precision=32-true"]
    twice = main(configuration(*settings, name="learning_curve"))
    content = read_json(run / "learning_curve.json")
    assert 0 <= twice == content["twice"]["accuracy"] <= 1
    header, *rows = read_csv(run / "learning_curve.csv")
    assert header == ["training_photos", "seed", "accuracy", "correct", "validation_photos"]
    assert len(rows) == 4 * 2
    assert all(float(row[2]) == pytest.approx(int(row[3]) / int(row[4])) for row in rows)
    with Image.open(run / "learning_curve.png") as picture:
        assert min(picture.size) > 300
    evaluate(configuration(f"run={run}", name="evaluate"))
    page = (run / "report.html").read_text(encoding="utf-8")
    assert "<h2>How many photos?</h2>" in page
    assert f"twice the photos ({content['twice']['photos']}) would give" in page


def test_a_run_has_its_own_photos():
    assert check_source(["data=folder", "data.root=a"]) == ["data=folder", "data.root=a"]
    with pytest.raises(ValueError, match=r"data\.root=a: run=b has its own photos and model"):
        check_source(["run=b", "data.root=a"])


def test_finetuning_needs_a_run():
    with pytest.raises(ValueError, match="stage=finetune trains with the settings of a run: give run=FOLDER"):
        main(configuration("data=folder", "data.root=a", "stage=finetune", name="learning_curve"))


@pytest.mark.slow
def test_finetuning_trains_each_part_once(trained: Path, painted: Path, tmp_path: Path):
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "started.yaml").unlink()
    quick = ["finetune.epochs=0", "head.epochs=1", f"data.root={painted}"]
    write_start(run, [*TINY, *quick], is_resumed=False)
    settings = [f"run={run}", "fractions=[0.4,0.7,1.0]", "seeds=[0,1]", "stage=finetune"]
    first = main(configuration(*settings, name="learning_curve"))
    states = {path: path.stat().st_mtime_ns for path in (run / "learning_curve").rglob("result.json")}
    assert len(states) == 6
    assert main(configuration(*settings, name="learning_curve")) == first
    assert {path: path.stat().st_mtime_ns for path in states} == states
    assert read_json(run / "learning_curve.json")["stage"] == "finetune"


def test_finetuning_starts_no_download_and_writes_through_no_link(
    trained: Path, painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    monkeypatch.setenv("TORCH_HOME", str(tmp_path / "torch"))
    run = Path(shutil.copytree(trained, tmp_path / "run"))
    (run / "started.yaml").unlink()  # it may name other weights than the checkpoint
    write_start(run, [*SMALL, f"data.root={painted}", "model.weights=IMAGENET1K_V1"], is_resumed=False)
    settings = [f"run={run}", "fractions=[0.4,0.7,1.0]", "seeds=[0,1]", "stage=finetune"]
    with pytest.raises(ValueError, match="a run folder starts no download"):
        main(configuration(*settings, name="learning_curve"))
    assert not (run / "learning_curve").exists()
    (tmp_path / "elsewhere").mkdir()
    for link in (run / "learning_curve", run / "learning_curve" / "seed-0-3"):
        link.parent.mkdir(exist_ok=True)
        link.symlink_to(tmp_path / "elsewhere")
        with pytest.raises(ValueError, match=f"{link.name} is a link, through which nothing is written"):
            main(configuration(*settings, name="learning_curve"))
        link.unlink()
    assert not list((tmp_path / "elsewhere").iterdir())
