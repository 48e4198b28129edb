from pathlib import Path

import pytest
import torch
from PIL import Image

from flowers.models.backbones import build_backbone
from flowers.probe import main
from flowers.runtime.files import read_json
from tests.helpers import configuration, program_here


@pytest.fixture(name="given")
def make_settings(painted: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "cache"))
    backbone, _ = build_backbone("resnet18", None, {})
    torch.save(backbone.state_dict() | {"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, tmp_path / "r18.pt")
    models = f"models=[resnet18:{tmp_path}/r18.pt,mobilenet_v3_small:null,resnet18:DEFALT]"
    size = ["data.image_size=32", "data.resize=32", "data.num_workers=0"]
    return [models, "data=folder", f"data.root={painted}", *size, "folds=3", "accelerator=cpu", "precision=32-true"]


def test_probe_ranks_backbones_and_remembers_them(given: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]):
    best = main(configuration(*given, f"output={tmp_path}/a", name="probe"))
    first = capsys.readouterr().out
    found = read_json(tmp_path / "a" / "probe.json")
    names = [(row["architecture"], bool(row["weights"])) for row in found["backbones"]]
    assert sorted(names) == [("mobilenet_v3_small", False), ("resnet18", True)]
    assert best == found["backbones"][0]["accuracy"] >= found["backbones"][1]["accuracy"]
    assert found["backbones"][0]["p_against_best"] is None
    assert 0 <= found["backbones"][1]["p_against_best"] <= 1
    assert "mobilenet_v3_small:random" in first
    with Image.open(tmp_path / "a" / "accuracy_cost.png") as picture:
        assert min(picture.size) > 300
    main(configuration(*given, f"output={tmp_path}/b", name="probe"))
    assert "measured earlier" in capsys.readouterr().out
    again = read_json(tmp_path / "b" / "probe.json")
    assert [row | {"is_remembered": False} for row in again["backbones"]] == found["backbones"]


def test_probe_of_nothing_that_works_is_one_line(given: list[str]):
    done = program_here(*given[1:], "models=[resnet18:DEFALT]", name="probe")
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith("error: none of the 1 backbones works; the last one: ")
    assert "did you mean DEFAULT?" in last
