from pathlib import Path

import jsonschema
import pytest
import yaml

from flowers.settings.config import load_config
from flowers.settings.experiment_file import write_experiment
from flowers.settings.json_schema import json_schema


@pytest.fixture(autouse=True)
def working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_new_experiment_is_short_commented_and_valid(working_directory: Path):
    path = write_experiment("my-first_1")
    assert path == Path("conf/experiment/my-first_1.yaml")
    lines = path.read_text(encoding="utf-8").splitlines()
    assert lines[:2] == ["# @package _global_", "# flowers train experiment=my-first_1"]
    deltas = [line for line in lines if line and not line.startswith("#")]
    assert len(deltas) <= 15
    assert all("  # " in line for line in deltas if not line.endswith(":"))
    assert max(map(len, lines)) <= 120
    jsonschema.Draft7Validator(json_schema("experiment")).validate(yaml.safe_load(path.read_text(encoding="utf-8")))


def test_programs_find_an_experiment_of_the_working_directory(working_directory: Path):
    path = write_experiment("mine")
    path.write_text(path.read_text(encoding="utf-8").replace("epochs: 5", "epochs: 7"), encoding="utf-8")
    cfg = load_config(["experiment=mine", "run_dir=x"])
    assert (cfg.head.epochs, cfg.optimizer.to_dict()["_target_"]) == (7, "torch.optim.AdamW")
    with pytest.raises(ValueError, match=r"experiment=mime: no such option: did you mean mine\?"):
        load_config(["experiment=mime", "run_dir=x"])


@pytest.mark.parametrize("name", ["", "../x", "a.b", "1e5", "a b", "x=1", "-x", "null", "True", "ä", "a" * 101, "a\n"])
def test_a_bad_name_is_refused_in_one_line(name: str, working_directory: Path):
    with pytest.raises(ValueError, match="not a name of an experiment: expected a letter") as caught:
        write_experiment(name)
    assert "\n" not in str(caught.value)
    assert list(working_directory.iterdir()) == []


def test_an_experiment_is_never_overwritten(working_directory: Path):
    path = write_experiment("mine")
    path.write_text("# mine\n")
    for name in ("mine", "report"):
        with pytest.raises(ValueError, match=rf"experiment/{name}\.yaml exists already"):
            write_experiment(name)
    assert path.read_text() == "# mine\n"
    assert not (working_directory / "conf" / "experiment" / "report.yaml").exists()
