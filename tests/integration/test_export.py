import json
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from PIL import Image

from flowers.data.images import read_image
from flowers.deploy.classifier import Classifier
from flowers.deploy.export.formats import load_onnx, load_pt2
from flowers.evaluation.predictions import load_predictions
from flowers.export import main
from flowers.runtime.files import read_json
from tests.helpers import configuration

FAST = ("rounds=1", "seconds=0", "batch=4", "calibration_images=16")


def exported_to(output: Path, run: Path, *overrides: str) -> dict[str, Any]:
    return dict(main(configuration(f"run={run}", f"output={output}", *FAST, *overrides, name="export")))


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # A network of 32 pixels that was hardly trained: many photos lie on the border of two classes.
    output = tmp_path_factory.mktemp("exports") / "new" / "exported"
    exported_to(output, trained, "int8_min_agreement=0.5")
    return output


def test_every_version_is_there_and_says_what_the_classifier_says(exported: Path, trained: Path, painted: Path):
    classifier = Classifier.load(trained, accelerator="cpu", precision="32-true")
    paths = [painted / path for path in load_predictions(trained / "predictions" / "val.csv").paths[:4]]
    for file, near in (("model.pt2", 2e-3), ("model.onnx", 2e-3), ("model.int8.onnx", 0.2)):
        read = load_pt2 if file.endswith(".pt2") else load_onnx
        program = read(exported / file)
        pixels = torch.stack([torch.tensor(np.asarray(read_image(path))).permute(2, 0, 1) for path in paths])
        wanted = classifier.probabilities(torch.as_tensor(classifier.eval_transform(pixels)))
        torch.testing.assert_close(program(pixels).double(), wanted, atol=near, rtol=0)
        assert torch.allclose(program(pixels[:1, :, :40, :31]).sum(1), torch.ones(1))  # another size, and batch


def test_the_lines_on_the_card_classify_a_photo(exported: Path, trained: Path, painted: Path, tmp_path: Path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    image = read_image(next(painted.rglob("*.jpg"), None) or next(painted.rglob("*.png")))
    turned = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # turn it back to see it
    turned.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    (code,) = re.findall(r"```python\n(.*?)```", (tmp_path / "README.md").read_text(encoding="utf-8"), re.DOTALL)
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=tmp_path, check=True)
    said = json.loads(done.stdout.replace("'", '"'))
    wanted = Classifier.load(trained, accelerator="cpu", precision="32-true")(tmp_path / "photo.jpg").probabilities
    assert said == pytest.approx(wanted, abs=2e-3)
    assert list(said) == read_json(trained / "result.json")["classes"]


def test_the_folder_says_what_it_is(exported: Path, trained: Path):
    assert {path.name for path in exported.iterdir()} == {
        *("model.pt2", "model.onnx", "model.int8.onnx"),
        *("README.md", "LICENCE.txt", "model.json", "parity.json"),
    }
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]
    facts, result = read_json(exported / "model.json"), read_json(trained / "result.json")
    assert facts["temperature"] == result["temperature"]
    assert facts["trained"]["digest"] == result["digest"]
    assert facts["exported"]["versions"]["onnxruntime"] == onnxruntime.__version__
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert f"{result['val']['accuracy']:.4f}" in card
    assert f"{result['test']['accuracy']:.4f}" in card
    assert "random numbers" in (exported / "LICENCE.txt").read_text(encoding="utf-8")
    report = read_json(exported / "parity.json")
    assert next(iter(report["versions"])) == "PyTorch"
    assert report["versions"]["ONNX"]["agreement"] == 1
    assert report["versions"]["PyTorch"]["accuracy"] == pytest.approx(result["val"]["accuracy"])


def test_the_int8_version_computes_in_8_bits_and_holds_no_path(exported: Path):
    model = onnx.load(exported / "model.int8.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert {prop.key for prop in model.metadata_props} >= {"classes", "temperature", "architecture"}
    for file in ("model.onnx", "model.int8.onnx", "model.pt2"):
        assert str(Path(__file__).parents[2]).encode() not in (exported / file).read_bytes()


def test_what_does_not_agree_is_not_exported(
    exported: Path, trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    def write(_: Any, folder: Path, *__: Any) -> dict[str, str]:
        shutil.copy(exported / "model.onnx", folder)
        return {"ONNX": "model.onnx"}

    monkeypatch.setattr("flowers.deploy.export.pipeline.write_programs", write)
    monkeypatch.setattr(
        "flowers.deploy.export.pipeline.load_onnx", lambda path: lambda photos: torch.eye(5)[:1].expand(len(photos), 5)
    )
    with pytest.raises(ValueError, match=r"ONNX gives \d+ of 10 val photos another label .*min_agreement=0.999"):
        exported_to(tmp_path / "out", trained, "int8=false")
    assert list(tmp_path.iterdir()) == []


def test_mistakes_are_answered_at_once(trained: Path, exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    with pytest.raises(ValueError, match="is there already"):
        exported_to(exported, trained)
    with pytest.raises(ValueError, match="no run there"):
        exported_to(tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match=r"photos of .* are no longer in .*photos=FOLDER"):
        exported_to(tmp_path / "out", trained, f"photos={tmp_path}/gone")
    shutil.copytree(trained, tmp_path / "run")
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ValueError, match=r"train the run to its end"):
        exported_to(tmp_path / "out", tmp_path / "run")
    monkeypatch.setattr("flowers.deploy.export.formats.REQUIRED_PACKAGES", ("onnx", "missing_onnx"))
    with pytest.raises(ValueError, match=r"needs missing_onnx: pip install 'flowers\[export\]'"):
        exported_to(tmp_path / "out", trained)
    assert not (tmp_path / "out").exists()
