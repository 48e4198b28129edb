"""Fine-tune an ImageNet classifier on a folder of images, and say honestly how good the result is.

The public names are imported when they are first used: `import flowers` imports neither torch nor lightning.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flowers.data.datamodule import ImageDataModule
    from flowers.deploy.classifier import Classifier, Prediction
    from flowers.settings.config import load_config
    from flowers.training.task import FineTuning as ImageClassifier

    __version__: str

__all__ = ["Classifier", "ImageClassifier", "ImageDataModule", "Prediction", "load_config"]

_MODULES = {
    "Classifier": "flowers.deploy.classifier",
    "ImageClassifier": "flowers.training.task",
    "ImageDataModule": "flowers.data.datamodule",
    "Prediction": "flowers.deploy.classifier",
    "load_config": "flowers.settings.config",
}


def __getattr__(name: str) -> Any:
    if name == "__version__":
        from importlib.metadata import version

        from flowers.runtime.extras import DISTRIBUTION

        return version(DISTRIBUTION)
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__, "__version__"])
