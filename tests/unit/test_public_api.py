import subprocess
import sys

import pytest

import flowers
from flowers.training.task import FineTuning


def test_importing_flowers_imports_neither_torch_nor_hydra():
    code = "import sys, flowers; dir(flowers); print({'torch', 'lightning', 'hydra', 'numpy'} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"


def test_each_public_name_is_listed_and_can_be_imported():
    assert set(flowers.__all__) == {"Classifier", "ImageClassifier", "ImageDataModule", "Prediction", "load_config"}
    assert set(flowers.__all__) <= set(dir(flowers))
    assert all(callable(getattr(flowers, name)) for name in flowers.__all__)
    assert flowers.ImageClassifier is FineTuning


def test_an_unknown_name_is_an_attribute_error():
    with pytest.raises(AttributeError, match="no attribute 'Clasifier'"):
        _ = flowers.Clasifier


def test_version_is_that_of_the_distribution():
    assert flowers.__version__[0].isdigit()
