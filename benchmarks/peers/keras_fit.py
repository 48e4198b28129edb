"""`fit` of Keras on its torch backend, as its guide to transfer learning has it.

The classifier is trained first, then all weights at a rate of 1e-5 for a third of the epochs; BatchNorm stays in
inference mode. Keras has no ResNet-18, and its ResNet-50 is another network: the one of torchvision is wrapped.
"""

import os
from typing import Any

os.environ["KERAS_BACKEND"] = "torch"

import keras
from torch import nn
from torch.utils.data import DataLoader
from torchvision import models, transforms

from benchmarks.peers.images import Images
from benchmarks.peers.job import read_job, write_result

BATCH_SIZE = 64
MEAN, STD = [0.485, 0.456, 0.406], [0.229, 0.224, 0.225]


class Backbone(keras.layers.TorchModuleWrapper):  # type: ignore[misc]
    """A network without its classifier, whose features (B, width) Keras cannot see by itself."""

    def __init__(self, module: nn.Module, width: int) -> None:
        super().__init__(module)
        self.width = width

    def call(self, *args: Any, training: bool | None = None, **kwargs: Any) -> Any:
        """Return the features with BatchNorm in inference mode: `fit` overrides a `training=False` of the graph."""
        return super().call(*args, training=False, **kwargs)

    def compute_output_spec(self, inputs: Any, training: bool | None = None) -> Any:
        """Return that the output is (B, width)."""
        return keras.KerasTensor((inputs.shape[0], self.width), inputs.dtype)


def main() -> None:
    """Train, and write the logits of the last epoch."""
    job = read_job()
    keras.utils.set_random_seed(job.seed)
    backbone = models.get_model(job.architecture, weights="IMAGENET1K_V1" if job.weights else None)
    width, backbone.fc = backbone.fc.in_features, nn.Identity()
    base = Backbone(backbone, width)
    inputs = keras.Input((3, job.image_size, job.image_size))
    augmented = keras.layers.RandomFlip("horizontal", data_format="channels_first")(inputs)
    augmented = keras.layers.RandomRotation(0.1, data_format="channels_first")(augmented)
    features = keras.layers.Dropout(0.2)(base(augmented, training=False))
    model = keras.Model(inputs, keras.layers.Dense(len(job.classes))(features))
    square = [
        transforms.Resize((job.image_size, job.image_size)),
        transforms.ToTensor(),
        transforms.Normalize(MEAN, STD),
    ]
    splits = {name: Images(rows, transforms.Compose(square)) for name, rows in job.images.items() if rows}
    train = DataLoader(splits["train"], batch_size=BATCH_SIZE, shuffle=True, num_workers=2)
    loss = keras.losses.SparseCategoricalCrossentropy(from_logits=True)
    finetune = job.epochs // 3
    for is_trained, rate, epochs in ((False, 1e-3, job.epochs - finetune), (True, 1e-5, finetune)):
        base.trainable = is_trained
        backbone.requires_grad_(is_trained)
        model.compile(keras.optimizers.Adam(rate), loss)
        if epochs:
            model.fit(train, epochs=epochs, verbose=0)
            assert not backbone.training
    logits: dict[str, Any] = {}
    for name in ("val", "test"):
        if name in splits:
            logits[name] = model.predict(DataLoader(splits[name], batch_size=BATCH_SIZE), verbose=0)
    recipe = f"Adam 0.001 on the classifier, then 1e-5 on all weights for {finetune} epochs, batches of {BATCH_SIZE}"
    write_result(job, logits, f"keras {keras.__version__}", recipe)


if __name__ == "__main__":
    main()
