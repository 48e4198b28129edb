import base64
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from fastapi.testclient import TestClient
from PIL import Image

from flowers.data.images import read_image
from flowers.deploy.app_settings import ServerSettings
from flowers.deploy.classifier import Classifier
from flowers.deploy.export.formats import EXPORTERS, ExportSource, ImageProgram, OnnxExporter, TorchExportExporter
from flowers.deploy.export.model_card import render_model_card
from flowers.deploy.export.pipeline import Reference, write_programs
from flowers.deploy.export.web_page import RUNTIME_FILES
from flowers.deploy.inference_server import InferenceServer
from flowers.deploy.web_app import build_app
from flowers.export import main
from flowers.runs.predictions import load_predictions
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, LAST_CHECKPOINT
from flowers.runtime.files import read_json
from tests.helpers import configuration

FAST = ("rounds=1", "seconds=0", "batch=4", "calibration_images=16")


def export(output: Path, run: Path, *overrides: str) -> dict[str, Any]:
    return dict(main(configuration(f"run={run}", f"output={output}", *FAST, *overrides, name="export")))


def code_blocks(card: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", card.read_text(encoding="utf-8"), re.DOTALL)


class RenamedExporter(TorchExportExporter):
    """Shows what a contributor adds: one class and one entry in `EXPORTERS`."""

    name = "renamed"
    file_name = "renamed.pt2"
    description = "`renamed.pt2` is a test."


class WrongExporter(OnnxExporter):
    """Writes a file whose program predicts the first class for every image."""

    def write(self, source: ExportSource, path: Path) -> None:
        path.touch()

    def load(self, path: Path) -> ImageProgram:
        return lambda images: torch.eye(5)[:1].expand(len(images), 5)


class UninstalledExporter(TorchExportExporter):
    packages = ("missing_package",)


@pytest.fixture
def exporters() -> Iterator[list[Any]]:
    """The list of exporters, which a test may change."""
    original = list(EXPORTERS)
    yield EXPORTERS
    EXPORTERS[:] = original


@pytest.fixture(scope="module")
def exported(trained: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    # The network has 32 pixels and is hardly trained: many images are near the border of two classes.
    output = tmp_path_factory.mktemp("exports") / "new" / "exported"
    formats = ",".join(exporter.format for exporter in EXPORTERS)
    package = tmp_path_factory.mktemp("onnxruntime-web")
    for name in ("package.json", *RUNTIME_FILES):
        (package / name).parent.mkdir(parents=True, exist_ok=True)
        (package / name).write_text('{"name": "onnxruntime-web", "version": "1.2.3"}')
    export(output, trained, f"formats=[{formats}]", f"web_runtime={package}", "int8_min_agreement=0.5")
    return output


def test_every_version_predicts_what_the_classifier_predicts(exported: Path, trained: Path, painted: Path):
    classifier = Classifier.load(trained, accelerator="cpu", precision="32-true")
    paths = [painted / path for path in load_predictions(trained / "predictions" / "val.csv").paths[:4]]
    images = torch.stack([torch.tensor(np.asarray(read_image(path))).permute(2, 0, 1) for path in paths])
    expected = classifier.probabilities(torch.as_tensor(classifier.eval_transform(images)))
    for exporter in EXPORTERS:
        program = exporter.load(exported / exporter.file_name)
        tolerance = 0.2 if exporter.format in ("int8", "web") else 2e-3
        torch.testing.assert_close(program(images).double(), expected, atol=tolerance, rtol=0)
        assert torch.allclose(
            program(images[:1, :, :40, :31]).sum(1).float(), torch.ones(1)
        )  # another image and batch size


def test_exported_files_reject_what_the_classifier_rejects(
    exporters: list[Any], rejecting: Path, painted: Path, tmp_path: Path
):
    exporters[:] = [each for each in exporters if each.format not in ("int8", "web")]
    output = tmp_path / "exported"
    report = export(output, rejecting, "formats=[torch_export,onnx,hub]")
    assert report["versions"]["ONNX"]["rejection_agreement"] == 1
    classifier = Classifier.load(rejecting, accelerator="cpu", precision="32-true")
    path = painted / load_predictions(rejecting / "predictions" / "val.csv").paths[0]
    image = torch.tensor(np.asarray(read_image(path))).permute(2, 0, 1)[None]
    expected = classifier(path)
    for exporter in exporters:
        *probabilities, strangeness = exporter.load(output / exporter.file_name)(image)[0].tolist()
        assert strangeness == pytest.approx(expected.strangeness, abs=2e-2)
        assert max(probabilities) == pytest.approx(expected.probability, abs=2e-3)
    stored = {prop.key: prop.value for prop in onnx.load(output / "model.onnx").metadata_props}
    assert classifier.rejection is not None
    assert float(stored["strangeness_threshold"]) == classifier.rejection.threshold
    assert read_json(output / "model.json")["rejection"]["reject"] == 0.2
    assert "none of these" in (output / "README.md").read_text(encoding="utf-8")


def test_web_page_has_an_int8_model_that_was_compared(exported: Path, trained: Path):
    weights = [
        tensor for tensor in onnx.load(exported / "web" / "model.onnx").graph.initializer if len(tensor.dims) == 4
    ]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert read_json(exported / "parity.json")["versions"]["web page"]["file"] == "web/model.onnx"
    settings, facts = read_json(exported / "web" / "settings.json"), read_json(exported / "model.json")
    assert settings["classes"] == read_json(trained / "result.json")["classes"]
    assert settings["threshold"] is None
    assert base64.b64decode(settings["model"]).hex() == facts["files"]["web/model.onnx"]


def test_run_its_folder_for_a_hub_and_its_onnx_program_answer_the_same(exported: Path, trained: Path, painted: Path):
    files = sorted(painted.glob("*/*"))[:50]
    sent = [("files", (file.name, file.read_bytes())) for file in files]
    answers = []
    for run in (trained, exported):
        app = build_app(InferenceServer(Classifier.load(run, "cpu", "32-true"), ServerSettings()))
        with TestClient(app, base_url="http://localhost") as client:
            model = client.get("/model").json()
            answers.append((client.post("/predict", files=sent).json()["predictions"], model["digests"]))
    assert answers[0] == answers[1]
    predictions, _ = answers[0]
    assert len(predictions) == 50
    program = onnxruntime.InferenceSession(exported / "model.onnx")
    for file, answer in zip(files, predictions, strict=True):
        photos = np.asarray(read_image(file)).transpose(2, 0, 1)[None]
        (probabilities,) = program.run(["probabilities"], {"photos": photos})
        named = dict(zip(model["classes"], probabilities[0].tolist(), strict=True))
        assert named == pytest.approx(answer["probabilities"], abs=2e-3)


def test_code_on_the_model_card_classifies_an_image(exported: Path, trained: Path, painted: Path, tmp_path: Path):
    shutil.copytree(exported, tmp_path, dirs_exist_ok=True)
    image = read_image(next(painted.rglob("*.jpg"), None) or next(painted.rglob("*.png")))
    rotated = image.transpose(Image.Transpose.ROTATE_90)
    exif = Image.Exif()
    exif[0x0112] = 6  # tells viewers to rotate it back
    rotated.save(tmp_path / "photo.jpg", exif=exif, quality=100, subsampling=0)
    onnx_code, *hub_code = code_blocks(tmp_path / "README.md")
    expected = Classifier.load(trained, accelerator="cpu", precision="32-true")(tmp_path / "photo.jpg").probabilities
    for code, tolerance in ((onnx_code, 2e-3), ("".join(hub_code), 1e-6)):
        command = [sys.executable, "-I", "-c", code]
        process = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=True)
        probabilities = json.loads(process.stdout.replace("'", '"'))
        assert probabilities == pytest.approx(expected, abs=tolerance)
        assert list(probabilities) == read_json(trained / "result.json")["classes"]


def test_five_lines_of_torchvision_give_the_logits_of_the_run(exported: Path, trained: Path, painted: Path):
    code = code_blocks(exported / "README.md")[1]
    assert len(code.splitlines()) == 5
    assert "flowers" not in code
    names: dict[str, Any] = {}
    exec(code.replace('"config.', f'"{exported}/config.').replace('"model.', f'"{exported}/model.'), names)
    reads = Classifier.load(exported, accelerator="cpu", precision="32-true")
    ran = Classifier.load(trained, accelerator="cpu", precision="32-true")
    predictions = load_predictions(trained / "predictions" / "val.csv")
    pixels = torch.stack([ran.pixels(painted / path) for path in predictions.paths])
    logits = names["model"](ran.model.normalize(pixels)).detach()
    torch.testing.assert_close(logits, predictions.logits.float(), atol=1e-4, rtol=1e-4)
    torch.testing.assert_close(reads.logits(reads.features(pixels)), ran.logits(ran.features(pixels)), atol=0, rtol=0)
    assert (reads.classes, reads.temperature, reads.tta) == (ran.classes, ran.temperature, ran.tta)
    config, result = read_json(exported / "config.json"), read_json(trained / "result.json")
    assert config["split_digest"] == result["digest"]["split"]
    assert config["metrics"]["val"]["accuracy"] == result["val"]["accuracy"]


def test_a_folder_for_a_hub_needs_no_extra_and_rejects(rejecting: Path, painted: Path, tmp_path: Path):
    output = tmp_path / "hub"
    export(output, rejecting, "formats=[hub]", "reject=0.3")
    assert {path.name for path in output.iterdir()} == {
        *("model.safetensors", "config.json", "rejection.safetensors"),
        *("README.md", "LICENSE.txt", "model.json", "parity.json"),
    }
    classifier, run = Classifier.load(output, "cpu", "32-true"), Classifier.load(rejecting, "cpu", "32-true")
    image = painted / load_predictions(rejecting / "predictions" / "val.csv").paths[0]
    assert classifier(image)[:4] == run(image)[:4]
    assert classifier.rejection is not None
    assert run.rejection is not None
    assert classifier.rejection.threshold < run.rejection.threshold
    assert "onnxruntime" not in (output / "README.md").read_text(encoding="utf-8")


def test_exported_folder_describes_itself(exported: Path, trained: Path):
    assert {path.name for path in exported.iterdir()} == {
        *(exporter.file_name.partition("/")[0] for exporter in EXPORTERS),
        *("README.md", "LICENSE.txt", "config.json", "model.json", "parity.json"),
    }
    assert [path.name for path in exported.parent.iterdir()] == ["exported"]
    facts, result = read_json(exported / "model.json"), read_json(trained / "result.json")
    assert facts["temperature"] == result["temperature"]
    assert facts["trained"]["digest"] == result["digest"]
    assert facts["exported"]["versions"]["onnxruntime"] == onnxruntime.__version__
    card = (exported / "README.md").read_text(encoding="utf-8")
    assert f"{result['val']['accuracy']:.4f}" in card
    assert f"{result['test']['accuracy']:.4f}" in card
    assert "random numbers" in (exported / "LICENSE.txt").read_text(encoding="utf-8")
    report = read_json(exported / "parity.json")
    assert next(iter(report["versions"])) == "PyTorch"
    assert report["versions"]["ONNX"]["agreement"] == 1
    assert report["versions"]["PyTorch"]["accuracy"] == pytest.approx(result["val"]["accuracy"])
    assert report["limits"] == {"min_agreement": 0.999, "int8_min_agreement": 0.5}


def test_int8_file_computes_in_8_bits_and_no_file_contains_a_path(exported: Path):
    model = onnx.load(exported / "model.int8.onnx")
    weights = [tensor for tensor in model.graph.initializer if len(tensor.dims) == 4]
    assert {tensor.data_type for tensor in weights} == {onnx.TensorProto.INT8}
    assert {prop.key for prop in model.metadata_props} >= {"classes", "temperature", "architecture"}
    for file in ("model.onnx", "model.int8.onnx", "model.pt2"):
        assert str(Path(__file__).parents[2]).encode() not in (exported / file).read_bytes()


def test_added_exporter_is_in_the_report_and_on_the_card(exporters: list[Any], trained: Path, tmp_path: Path):
    exporters[:] = [RenamedExporter()]
    report = export(tmp_path / "out", trained / BEST_CHECKPOINT)
    assert report["versions"]["renamed"]["file"] == "renamed.pt2"
    assert read_json(tmp_path / "out" / "parity.json")["versions"]["renamed"]["agreement_or_tie"] == 1
    assert list(read_json(tmp_path / "out" / "model.json")["files"]) == ["renamed.pt2"]
    card = (tmp_path / "out" / "README.md").read_text(encoding="utf-8")
    assert "`renamed.pt2` is a test." in card
    assert "| renamed | renamed.pt2 |" in card


def test_export_writes_nothing_if_a_version_disagrees(exporters: list[Any], trained: Path, tmp_path: Path):
    exporters[:] = [WrongExporter()]
    message = r"ONNX predicts another label than PyTorch for \d+ of 10 val images.*min_agreement=0\.999"
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "out", trained)
    assert list(tmp_path.iterdir()) == []


def test_export_writes_odd_class_names(exporters: list[Any], trained: Path, tmp_path: Path):
    names = ["=1+1", "$a$_b_ [/b]", "\x1b[31m\r", os.fsdecode(b"caf\xe9"), "<b>|`"]
    run = Reference(Run.open(trained))
    run.classifier.classes[:] = names
    write_programs(run, EXPORTERS[:2], tmp_path, 1, reduce_range=False)
    stored = {prop.key: prop.value for prop in onnx.load(tmp_path / "model.onnx").metadata_props}
    assert json.loads(stored["classes"]) == names
    files = {"classes": ""}
    torch.export.load(tmp_path / "model.pt2", extra_files=files)
    assert json.loads(files["classes"]) == names
    facts = run.run.content["hyper_parameters"] | {
        "temperature": 1.0,
        "scores": {},
        "photos": {"train": 1, "val": 1},
        "files": {},
        "folder": "a`|b",
    }
    report = {"rounds": 1, "batch": 1, "height": 1, "width": 1, "device": "CPU", "photos": 1}
    card = render_model_card(facts | {"classes": names}, report, [["version"]], [])
    line = next(line for line in card.splitlines() if line.startswith("Classes: "))
    assert r"\=1\+1, \$a\$\_b\_ \[\/b\], \\x1b\[31m\\r, caf\\udce9, \<b\>\|\`" in line
    assert r"the folder a\`\|b," in card


def test_export_needs_no_cache_folder(
    exporters: list[Any], trained: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    exporters[:] = [RenamedExporter()]
    (tmp_path / "file").touch()
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "file" / "cache"))
    export(tmp_path / "out", trained)
    assert (tmp_path / "out" / "renamed.pt2").is_file()


def test_export_names_what_is_wrong_with_a_setting(exporters: list[Any], trained: Path, tmp_path: Path):
    for overrides, message in (
        (["batch=0"], "batch=0: expected a whole number, at least 1"),
        (["calibration_images=0"], "calibration_images=0: expected a whole number, at least 1"),
        (["formats=[int8]", "int8=false"], "expected at least one format"),
        (["seconds=-1"], "seconds=-1: expected a number, at least 0"),
        (["formats=[web]"], r"formats=\[web\] needs onnxruntime-web: run npm pack onnxruntime-web"),
        (["min_agreement=99.9"], r"min_agreement=99\.9: expected a number from 0 to 1"),
    ):
        with pytest.raises(ValueError, match=message):
            export(tmp_path / "out", trained, *overrides)
    exporters.append(UninstalledExporter())
    with pytest.raises(ValueError, match=r"needs missing_package: pip install 'onnx>="):
        export(tmp_path / "out", trained)
    assert not (tmp_path / "out").exists()


def test_export_names_what_is_wrong_with_a_run(trained: Path, exported: Path, tmp_path: Path):
    with pytest.raises(ValueError, match=f"output={exported}: exists already"):
        export(exported, trained)
    with pytest.raises(ValueError, match=f"run={tmp_path}"):
        export(tmp_path / "out", tmp_path)
    with pytest.raises(ValueError, match=r"images of the run are no longer in .*photos=FOLDER"):
        export(tmp_path / "out", trained, f"photos={tmp_path}/gone")
    shutil.copytree(trained, tmp_path / "run")
    with pytest.raises(ValueError, match=rf"run=.*{LAST_CHECKPOINT}: expected a run folder or its {BEST_CHECKPOINT}"):
        export(tmp_path / "out", tmp_path / "run" / LAST_CHECKPOINT)
    (tmp_path / "run" / "result.json").unlink()
    with pytest.raises(ValueError, match=r"no result\.json: finish the training first"):
        export(tmp_path / "out", tmp_path / "run")
    assert not (tmp_path / "out").exists()
