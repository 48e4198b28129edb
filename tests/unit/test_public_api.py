import subprocess
import sys
from pathlib import Path

import pytest

import flowers
from flowers.training.task import FineTuning


def test_importing_flowers_imports_neither_torch_nor_hydra():
    code = "import sys, flowers; dir(flowers); print({'torch', 'lightning', 'hydra', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_each_public_name_is_listed_and_can_be_imported():
    assert set(flowers.__all__) == {
        "Classifier",
        "ImageClassifier",
        "ImageDataModule",
        "Prediction",
        "Run",
        "load_config",
    }
    assert set(flowers.__all__) <= set(dir(flowers))
    assert all(callable(getattr(flowers, name)) for name in flowers.__all__)
    assert flowers.ImageClassifier is FineTuning


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        _ = flowers.Clasifier


def test_version_is_that_of_the_distribution():
    assert flowers.__version__[0].isdigit()


def test_a_prediction_imports_neither_lightning_nor_hydra_nor_matplotlib(painted: Path):
    run, photo = Path(__file__).parents[1] / "fixtures" / "run_format_2", next(painted.glob("*/*.*"))
    heavy = {"lightning", "hydra", "omegaconf", "matplotlib", "torchmetrics", "transformers", "scipy"}
    code = (
        "import sys, flowers, flowers.deploy.predict\n"
        f"assert flowers.Classifier.load({str(run)!r})({str(photo)!r}).label\n"
        f"print({heavy} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
