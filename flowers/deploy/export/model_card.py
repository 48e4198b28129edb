"""The model card (README.md) and the license note (LICENSE.txt) of an exported folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from flowers.deploy.export.formats import OnnxExporter
from flowers.runtime.text import escape_markdown, one_line

_LICENSE_NOTE = """The code of flowers, which made these files, is under the Apache License 2.0.

That license does not cover the weights in these files. The training started from {weights}
and used a folder of images. The licenses of both may apply to anyone who uses or distributes these files. The weights
of torchvision were trained on ImageNet, whose terms allow non-commercial research and education. Other weights have
their own terms. This program cannot know them: check them before you use or distribute these files.
"""


_CARD = """# {architecture}: classifies images into {count} classes

Classes: {classes}. An image is resized (shorter side to {resize} pixels, antialiased), cropped ({image_size} pixels)
and normalized; the logits are divided by the temperature {temperature:.4f} before the softmax.

## Run it

{run}

{files}

## How good it is

{scores}

The intervals are Wilson intervals at 95%. The validation images also chose the epoch and the temperature, so a test
score, if there is one, is the fairer. The next table compares each version with the trained model in float32, on {n}
of the validation images:

{parity}

`same label`: the share of images with the same predicted class as PyTorch. `largest difference`: of any probability.
`images/s`: the median of {rounds} rounds of {batch} images of {height} x {width} pixels at a time, on {device}. Other
machines may rank the versions differently.

## Data

Trained on {train} images of the folder {folder}, evaluated on {counts}. Identical and nearly identical images are in
the same split. `model.json` holds the SHA-256 of the split, and the versions and commits that trained and exported the
model.

## Intended use and limits

Use it for images like those it was trained on. It predicts one of its {count} classes for every image, also for an
image of something else, and then its probability may still be high. A low probability means that it does not know.
{rejection}The probabilities are calibrated for images like the validation images only. It was not tested on other
cameras, drawings, damaged images or images made to mislead it. Do not base a decision that matters on it, such as what
is safe to eat.

Check the license of the weights yourself: see `LICENSE.txt`.
"""


_RUN_ONNX = """The input of the programs is a decoded image of any size, the output is a probability for each class.

```python
import json, numpy, onnxruntime
from PIL import Image, ImageOps
photo = numpy.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")).transpose(2, 0, 1)[None]
session = onnxruntime.InferenceSession("{onnx_file}")
print(dict(zip(json.load(open("model.json"))["classes"], session.run(None, {{"photos": photo}})[0][0].tolist())))
```

Input `photos`: uint8, (B, 3, H, W), RGB, upright; B, H and W are free. Output `probabilities`: float32, (B, {count}),
in the order of `classes` in `model.json` (also in the metadata of the ONNX files)."""


_RUN_TORCHVISION = """The weights have the names of torchvision, which loads them in five lines:

```python
import json, pathlib, safetensors.torch, torchvision
config = json.loads(pathlib.Path("config.json").read_bytes())
model = torchvision.models.get_model(config["architecture"], num_classes=config["num_classes"], **config["model_args"])
model.load_state_dict(safetensors.torch.load_file("model.safetensors"))
model.eval()
```

`model(images)` returns the logits of images that were prepared like this:

```python
import torch
from PIL import Image, ImageOps
from torchvision.transforms import InterpolationMode, v2
pixels = config["pixels"]
resize = v2.Resize(pixels["resize"], InterpolationMode(pixels["interpolation"]), antialias=True)
scale = v2.Compose([v2.ToDtype(torch.float32, scale=True), v2.Normalize(pixels["mean"], pixels["std"])])
prepare = v2.Compose([v2.PILToTensor(), resize, v2.CenterCrop(pixels["image_size"]), scale])
images = prepare(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))[None]
probabilities = (model(images) / config["temperature"]).softmax(1)[0].tolist()
print(dict(zip(config["label_names"], probabilities)))
```"""


_RUN_TIMM = """The weights have the names of timm, which loads them:

```python
import json, pathlib, timm
config = json.loads(pathlib.Path("config.json").read_bytes())
model = timm.create_model("local-dir:.", pretrained=True).eval()
prepare = timm.data.create_transform(**timm.data.resolve_model_data_config(model))
```

`model(images)` returns the logits:

```python
from PIL import Image, ImageOps
images = prepare(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB"))[None]
probabilities = (model(images) / config["temperature"]).softmax(1)[0].tolist()
print(dict(zip(config["label_names"], probabilities)))
```"""


# What a hub reads: https://huggingface.co/docs/hub/model-cards
_HUB_METADATA = """---
library_name: {library}
pipeline_tag: image-classification
license: other
license_name: see-license-file
license_link: LICENSE.txt
tags: [image-classification, {library}]
---

"""


_REJECTION_HUB = """`Classifier.load` of flowers also reads `rejection.safetensors`, which tells images of none of the
classes: about {percent:g} % of images of the classes are rejected by mistake. """


_REJECTION = """The second output, `strangeness`, float32, (B, 1), is higher for an image of none of the classes.
Treat an image above {strangeness_threshold:.6g} (`strangeness_threshold` in the metadata) as "none of these":
about {percent:g} % of images of the classes are above it too. It recognizes images of other things well, and other
kinds of the same thing badly.
"""


def render_model_card(
    facts: Mapping[str, Any],
    report: Mapping[str, Any],
    parity_rows: Sequence[Sequence[str]],
    descriptions: Sequence[str],
    library: str | None = None,
) -> str:
    """Return the model card in Markdown.

    Args:
        facts: The content of model.json.
        report: The content of parity.json.
        parity_rows: From `flowers.deploy.export.parity.parity_rows`.
        descriptions: A sentence about each exported file.
        library: "torchvision" or "timm", which loads model.safetensors; None if there is no such file.
    """
    counts, rejection = facts["photos"], facts.get("rejection")
    has_programs = library is None or len(descriptions) > 1
    onnx_file = next((file for file in facts["files"] if file.endswith(".onnx")), OnnxExporter.file_name)
    runs = [_RUN_ONNX.format(count=len(facts["classes"]), onnx_file=onnx_file)] if has_programs else []
    runs += [_RUN_TIMM if library == "timm" else _RUN_TORCHVISION] if library else []
    rejections = [_REJECTION] if has_programs else []
    rejections += [_REJECTION_HUB] if library else []
    metadata = _HUB_METADATA.format(library=library) if library else ""
    return metadata + _CARD.format(
        run="\n\n".join(runs),
        **{name: facts[name] for name in ("architecture", "resize", "image_size", "temperature")},
        classes=", ".join(map(escape_markdown, facts["classes"])),
        count=len(facts["classes"]),
        files=" ".join(descriptions),
        rejection="".join(
            text.format(**rejection, percent=100 * rejection["reject"]) for text in rejections if rejection
        ),
        scores="\n".join(_markdown_table([["split", "accuracy", "interval", "n"], *_score_rows(facts["scores"])])),
        n=report["photos"],
        parity="\n".join(_markdown_table(parity_rows)),
        train=f"{counts['train']:,}",
        folder=escape_markdown(Path(facts["folder"]).name),
        counts=" and ".join(f"{count:,} ({split})" for split, count in counts.items() if split != "train"),
        **{name: report[name] for name in ("rounds", "batch", "height", "width", "device")},
    )


def render_license_note(weights: str | None) -> str:
    """Return the license note.

    Args:
        weights: What the backbone was initialized with: a name, a path, or None for random numbers.
    """
    origin = "random numbers" if weights is None else f"`{one_line(Path(weights).name)}` (model.weights)"
    return _LICENSE_NOTE.format(weights=origin)


def _score_rows(scores: Mapping[str, Any]) -> list[list[str]]:
    rows = []
    for split, score in scores.items():
        low, high = score["interval"]
        rows.append([split, f"{score['accuracy']:.4f}", f"{low:.4f} to {high:.4f}", f"{score['n']:,}"])
    return rows


def _markdown_table(rows: Sequence[Sequence[str]]) -> list[str]:
    heading, *lines = ["| " + " | ".join(row) + " |" for row in rows]
    return [heading, "| " + " | ".join(["---"] * len(rows[0])) + " |", *lines]
