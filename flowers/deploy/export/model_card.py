"""The model card, model.json and the licence note of an exported folder."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

_LICENCE = """The code of flowers, which made these files, is under the Apache License 2.0.

The weights in these files are not covered by that. They began as {weights},
and were trained on photos: the licences of both may bind whoever uses or hands on these files. The weights of
torchvision were trained on ImageNet, whose terms are for non-commercial research and education; other weights have
terms of their own. This program cannot know them: check them before you hand these files on or put them to use.
"""


_CARD = """# {architecture}: which of {count} kinds is on the photo

Classes: {classes}. A photo of any size goes in as it is decoded, probabilities come out; resizing (shorter side to
{resize} pixels, antialiased), cropping ({image_size} pixels), normalisation and calibration (temperature
{temperature:.4f}) are inside the files.

## Run it

```python
import json, numpy, onnxruntime
from PIL import Image, ImageOps
photo = numpy.asarray(ImageOps.exif_transpose(Image.open("photo.jpg")).convert("RGB")).transpose(2, 0, 1)[None]
session = onnxruntime.InferenceSession("model.onnx")
print(dict(zip(json.load(open("model.json"))["classes"], session.run(None, {{"photos": photo}})[0][0].tolist())))
```

Input `photos`: uint8, (B, 3, H, W), RGB, upright; B, H and W are free. Output `probabilities`: float32, (B, {count}),
in the order of `classes` in `model.json` (also in the ONNX files' metadata). {files}

## How good it is

{scores}

Wilson's intervals at 95 %. The validation photos also chose the epoch and the temperature, so a test score, where there
is one, is the fairer. Each version on the {n} validation photos, beside the model as it was trained (in float32):

{parity}

`same label`: the share of photos given the same class as by PyTorch; `largest difference`: of any probability.
Photos/s: median of {rounds} rounds, {batch} photos of {height} x {width} pixels at a time, on {device}; other
machines may rank them differently.

## Data

Trained on {train} photos of the folder `{folder}`, judged on {counts}; identical and nearly identical photos are on one
side of the split, whose SHA-256 is in `model.json` with the versions and the commit of what trained and exported it.

## Meant for, and not

For photos like those it was trained on. It names one of its {count} classes whatever the photo shows: it has no answer
for anything else, so take a low probability for "don't know", and a high one on a photo of something else for nothing.
Probabilities are calibrated for photos like those of validation, no others. It was not tested on other cameras,
drawings, damaged photos or photos made to mislead it; decide nothing that matters (what is safe to eat, say) by it.

The licence of the weights is yours to check: see `LICENCE.txt`.
"""


_FILES = {
    "model.onnx": "`model.onnx` is float32.",
    "model.int8.onnx": "`model.int8.onnx` computes in 8 bits, for small devices.",
    "model.pt2": "`model.pt2` is for `torch.export.load`; load only such files as you trust.",
}


def render_model_card(facts: Mapping[str, Any], parity: Mapping[str, Any], lines: Sequence[Sequence[str]]) -> str:
    """The model card, in Markdown: `facts` is what model.json holds, `lines` are `parity.cells`."""
    counts, scores = facts["photos"], facts["scores"]
    return _CARD.format(
        **{name: facts[name] for name in ("architecture", "resize", "image_size", "temperature")},
        classes=", ".join(facts["classes"]),
        count=len(facts["classes"]),
        files=" ".join(_FILES[name] for name in facts["files"]),
        scores="\n".join(["| photos | accuracy | interval | n |", "| --- | --- | --- | --- |", *_score_rows(scores)]),
        n=counts["val"],
        parity="\n".join(_markdown_table(lines)),
        train=f"{counts['train']:,}",
        folder=Path(facts["folder"]).name,
        counts=" and ".join(f"{count:,} ({split})" for split, count in counts.items() if split != "train"),
        **{name: parity[name] for name in ("rounds", "batch", "height", "width", "device")},
    )


def render_licence_note(weights: str | None) -> str:
    """The note on licences; `weights` is what the backbone began as, a name or a path."""
    began = "random numbers" if weights is None else f"`{Path(weights).name}` (model.weights)"
    return _LICENCE.format(weights=began)


def _score_rows(scores: Mapping[str, Any]) -> list[str]:
    rows = []
    for split, score in scores.items():
        low, high = score["interval"]
        rows.append(f"| {split} | {score['accuracy']:.4f} | {low:.4f} to {high:.4f} | {score['n']:,} |")
    return rows


def _markdown_table(lines: Sequence[Sequence[str]]) -> list[str]:
    heading, *rest = ["| " + " | ".join(line) + " |" for line in lines]
    return [heading, "| " + " | ".join(["---"] * len(lines[0])) + " |", *rest]
