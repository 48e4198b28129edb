"""An embedded data set: five kinds of flower, painted, that differ in shape as the real ones do and not in colour."""

import hashlib
import json
import logging
import math
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
from filelock import FileLock
from numpy.random import Generator
from PIL import Image, ImageDraw, ImageFilter

from flowers import atomic, blossoms, progress

log = logging.getLogger(__name__)

KINDS = tuple(blossoms.PETALS)

_FORMAT = 1  # of the paintings: what is planted under another number is another garden
_FINE = 2  # painted so many times larger, then reduced: smooth edges

_GROUNDS: Sequence[blossoms.Colour] = [
    (70, 120, 50), (150, 190, 225), (95, 70, 50), (35, 40, 35),
    (190, 175, 150), (110, 140, 90), (60, 80, 110), (200, 200, 190),
]  # fmt: skip


def paint(kind: str, index: int, size: int, seed: int) -> Image.Image:
    """A painting of `size` x `size` pixels with one to four flowers; the same for the same arguments.

    Another size shows the same scene. Raises ValueError for a kind that is none of KINDS.
    """
    if kind not in KINDS:
        raise ValueError(f"kind {kind!r}: wanted one of {', '.join(KINDS)}")
    key = hashlib.sha256(f"{_FORMAT} {kind} {index} {seed}".encode()).digest()
    rng = np.random.default_rng(list(key))
    side = size * _FINE
    scene = _background(rng, size).resize((side, side), Image.Resampling.BICUBIC)
    count = int(rng.choice([1, 1, 1, 2, 3, 4]))
    radii = sorted(rng.uniform(0.3, 0.46, count) * (1.0 if count == 1 else 1.15 / math.sqrt(count)))
    places = rng.permuted([(0.3, 0.32), (0.7, 0.36), (0.32, 0.7), (0.7, 0.7)], axis=0)
    for number, radius in enumerate(radii):
        x, y = places[number] if count > 1 else (0.5, 0.45)
        x, y = x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.08, 0.08)
        flower = blossoms.flower(kind, rng, side, (x * side, y * side), radius * side)
        blur = rng.exponential(0.0015) + (0.004 if number < count - 2 else 0)  # those behind are out of focus
        left, top, right, bottom = flower.getbbox() or (0, 0, side, side)
        margin = math.ceil(3 * blur * side)
        box = (max(0, left - margin), max(0, top - margin), min(side, right + margin), min(side, bottom + margin))
        scene.alpha_composite(flower.crop(box).filter(ImageFilter.GaussianBlur(blur * side)), box[:2])
    return _lit(scene.convert("RGB").resize((size, size), Image.Resampling.BOX), rng)


def plant(root: str | Path, number: int = 1000, size: int = 128, seed: int = 0) -> None:
    """Makes sure that `root` holds the garden: `number` paintings, the kinds in turn, and garden.json.

    Painted beside `root` and then renamed; another process at the same work is waited for.

    Raises ValueError for fewer than 10 paintings or 32 pixels, and where `root` holds something else.
    """
    if number < 10 or size < 32:
        raise ValueError(f"a garden of {number} paintings of {size} pixels: wanted at least 10 of at least 32")
    root = Path(root).resolve()  # a link is followed, and "." has a name
    settings = {"format": _FORMAT, "number": number, "size": size, "seed": seed}
    if _is_planted(root, settings):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _is_planted(root, settings):
            return
        log.info("painting %d flowers of %d pixels into %s", number, size, root)
        with atomic.filling(root) as beside:
            _paint_all(beside, number, size, seed)
            (beside / "garden.json").write_text(json.dumps(settings), encoding="utf-8")


def _is_planted(root: Path, settings: dict[str, int]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "garden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "something that is no garden"
    if found != settings:
        raise ValueError(f"{root} holds {found}, wanted {settings}: give another data.root, or delete that folder")
    return True


def _paint_all(folder: Path, number: int, size: int, seed: int) -> None:
    for kind in KINDS:
        (folder / kind).mkdir()
    # Threads and no processes: a fifth faster on two cores, since Pillow lets others run while it blurs and encodes,
    # with no fork of a program that may have started threads and no second import of the caller's script.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paintings = pool.map(partial(_paint_one, folder, size, seed), range(number))
        for _ in progress.bar(paintings, "Painting", number):
            pass


def _paint_one(folder: Path, size: int, seed: int, index: int) -> None:
    kind = KINDS[index % len(KINDS)]
    paint(kind, index, size, seed).save(folder / kind / f"{index:05}.jpg", quality=92)


def _background(rng: Generator, side: int) -> Image.Image:
    """Two tones in soft clouds, blades of grass or lights out of focus."""
    tones = [np.array(_GROUNDS[i]) + rng.uniform(-25, 25, 3) for i in rng.choice(len(_GROUNDS), 2, replace=False)]
    cells = int(rng.integers(2, 9))
    clouds = np.asarray(
        Image.fromarray(rng.uniform(0, 255, (cells, cells)).astype(np.uint8)).resize(
            (side, side), Image.Resampling.BICUBIC
        )
    )
    mixed = clouds[..., None] / 255 * tones[0] + (1 - clouds[..., None] / 255) * tones[1]
    scene = Image.fromarray(mixed.clip(0, 255).astype(np.uint8)).convert("RGBA")
    draw = ImageDraw.Draw(scene)
    style = rng.choice(["clouds", "grass", "lights"])
    for _ in range({"clouds": 0, "grass": 90, "lights": 14}[style]):
        x, y, length = rng.uniform(0, side), rng.uniform(0, side), side * rng.uniform(0.1, 0.3)
        tone = blossoms.shade(tones[int(rng.integers(2))], rng.uniform(0.7, 1.35))
        if style == "grass":
            draw.line([(x, y), (x + rng.uniform(-0.3, 0.3) * length, y - length)], tone, max(1, side // 90))
        else:
            draw.ellipse([x - length / 3, y - length / 3, x + length / 3, y + length / 3], (*tone, 255))
    return scene.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.004, 0.02)))


def _lit(scene: Image.Image, rng: Generator) -> Image.Image:
    """Brightness, warmth, a shadow from one side and a grain."""
    size = scene.width
    angle, (y, x) = rng.uniform(0, 2 * math.pi), np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = rng.uniform(0.72, 1.15) * (1 + rng.uniform(0, 0.5) * (x * math.cos(angle) + y * math.sin(angle)))
    warmth = 1 + rng.uniform(-0.1, 0.1) * np.array([1, 0, -1])
    pixels = np.asarray(scene) * light[..., None] * warmth + rng.normal(0, rng.uniform(1, 6), (size, size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
