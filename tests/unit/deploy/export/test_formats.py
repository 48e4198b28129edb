from pathlib import Path
from typing import Any

import pytest
import torch

from flowers.deploy.classifier import Classifier
from flowers.deploy.export.formats import ExportSource, OnnxExporter, TorchExportExporter, export_program
from flowers.deploy.export.graph import ExportableClassifier
from flowers.models.network import Network
from flowers.settings.preprocessing import Preprocessing


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("timm/resnet18", {}),
        ("convnext_atto", {}),
        ("vit_tiny_patch16_224", {"img_size": 64}),
        ("vit_small_patch14_dinov2", {"img_size": 56, "depth": 2}),
    ],
)
def test_exported_timm_networks_predict_what_the_classifier_predicts(
    name: str, options: dict[str, Any], tmp_path: Path
):
    torch.manual_seed(0)
    size = options.get("img_size", 64)
    preprocessing = Preprocessing(size, size + 7, "bicubic")
    model = Network(name, ["lily", "orchid", "rose"], options=options, preprocessing=preprocessing)
    classifier = Classifier(model, temperature=1.3)
    images = torch.randint(0, 256, (3, 3, 90, 71), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    expected = classifier.probabilities(torch.as_tensor(classifier.eval_transform(images))).float()
    program = export_program(ExportableClassifier(classifier.model, classifier.temperature))
    source = ExportSource(classifier, {}, lambda: program, {}, tmp_path, lambda: iter(()))
    for exporter in (OnnxExporter(), TorchExportExporter()):
        path = tmp_path / exporter.file_name
        exporter.write(source, path)
        # Pixels may differ by one level, and the networks have random weights.
        torch.testing.assert_close(exporter.load(path)(images), expected, atol=5e-3, rtol=0)
