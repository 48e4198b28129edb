"""A synthetic dataset (a painted garden): five kinds of flower that differ in shape more than in color."""

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
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFilter

from flowers.runtime.files import atomic_directory
from flowers.runtime.logging import progress_bar

log = logging.getLogger(__name__)

Color = tuple[int, int, int]
Array = NDArray[np.float64]

PETAL_COLORS: dict[str, Sequence[Color]] = {
    "daisy": [(248, 246, 240), (240, 180, 205), (250, 215, 70), (180, 130, 215), (225, 90, 70)],
    "dandelion": [(250, 205, 40), (245, 225, 90), (235, 150, 40), (235, 235, 230), (240, 190, 170)],
    "rose": [(200, 30, 50), (240, 150, 175), (250, 240, 225), (245, 200, 80), (235, 120, 60)],
    "sunflower": [(250, 190, 20), (240, 140, 30), (190, 60, 30), (250, 235, 170), (235, 150, 160)],
    "tulip": [(215, 35, 45), (245, 210, 60), (235, 130, 170), (140, 60, 150), (250, 245, 235)],
}
CLASS_NAMES = tuple(PETAL_COLORS)

_PAINTING_FORMAT = 1  # raise it with every change of the pixels: existing folders then have another dataset
_SUPERSAMPLING = 2  # images are painted larger by this factor and then reduced, for smooth edges
_GOLDEN_ANGLE = math.pi * (3 - math.sqrt(5))  # between successive seeds of a sunflower
_BACKGROUND_COLORS: Sequence[Color] = [
    (70, 120, 50), (150, 190, 225), (95, 70, 50), (35, 40, 35),
    (190, 175, 150), (110, 140, 90), (60, 80, 110), (200, 200, 190),
]  # fmt: skip
# The outline of a petal, from the base to the tip and back: the position along the petal, and the side.
_ALONG = np.concatenate([np.linspace(0, 1, 12), np.linspace(1, 0, 12)])
_SIDE = np.repeat([1.0, -1.0], 12)


def generate_dataset(root: str | Path, number: int = 1000, size: int = 128, seed: int = 0) -> None:
    """Create the synthetic dataset in the folder `root`, with its settings in garden.json, unless it exists.

    If another process creates the same folder, wait for it.

    Args:
        root: The folder: one that does not exist, or is empty, or has a dataset with the same settings.
        number: Number of images, at least 10; the classes take turns.
        size: Side of the images in pixels, at least 32.
        seed: Seed of the images.

    Raises:
        ValueError: For a number or size that is too small, or if `root` contains something else.
    """
    if number < 10:
        raise ValueError(f"data.source.number={number}: expected at least 10 images")
    if size < 32:
        raise ValueError(f"data.source.size={size}: expected at least 32 pixels")
    root = Path(root).resolve()  # follows links, and gives "." a name
    settings = {"format": _PAINTING_FORMAT, "number": number, "size": size, "seed": seed}
    if _is_generated(root, settings):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _is_generated(root, settings):
            return
        log.info("painting %d images of %d pixels into %s", number, size, root)
        with atomic_directory(root) as beside:
            _render_all(beside, number, size, seed)
            (beside / "garden.json").write_text(json.dumps(settings), encoding="utf-8")


def _is_generated(root: Path, settings: dict[str, int]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "garden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "something else"
    if found != settings:
        raise ValueError(f"{root} contains {found}: expected {settings}; set another data.root, or delete it")
    return True


def _render_all(folder: Path, number: int, size: int, seed: int) -> None:
    for label in CLASS_NAMES:
        (folder / label).mkdir()
    # Threads are a fifth faster than processes on two cores: Pillow releases the interpreter lock while it blurs and
    # encodes. They also need no fork of a program that may have threads, and no second import of the script.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        done = pool.map(partial(_render_one, folder, size, seed), range(number))
        for _ in progress_bar(done, "Painting", number):
            pass


def _render_one(folder: Path, size: int, seed: int, index: int) -> None:
    label = CLASS_NAMES[index % len(CLASS_NAMES)]
    render_image(label, index, size, seed).save(folder / label / f"{index:05}.jpg", quality=92)


def render_image(label: str, index: int, size: int, seed: int) -> Image.Image:
    """Return an image of one to four flowers, the same for the same arguments. Another size shows the same scene.

    Args:
        label: One of CLASS_NAMES.
        index: Number of the image in the dataset.
        size: Side in pixels.
        seed: Seed of the dataset.

    Raises:
        ValueError: For another label.
    """
    if label not in CLASS_NAMES:
        raise ValueError(f"label {label!r}: expected one of {', '.join(CLASS_NAMES)}")
    key = hashlib.sha256(f"{_PAINTING_FORMAT} {label} {index} {seed}".encode()).digest()
    rng = np.random.default_rng(list(key))
    side = size * _SUPERSAMPLING
    scene = _background(rng, size).resize((side, side), Image.Resampling.BICUBIC)
    count = int(rng.choice([1, 1, 1, 2, 3, 4]))
    radii = sorted(rng.uniform(0.3, 0.46, count) * (1.0 if count == 1 else 1.15 / math.sqrt(count)))
    positions = rng.permuted([(0.3, 0.32), (0.7, 0.36), (0.32, 0.7), (0.7, 0.7)], axis=0)
    for layer, radius in enumerate(radii):
        x, y = positions[layer] if count > 1 else (0.5, 0.45)
        x, y = x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.08, 0.08)
        flower = draw_flower(label, rng, side, (x * side, y * side), radius * side)
        # All flowers but the two in front are out of focus.
        blur = rng.exponential(0.0015) + (0.004 if layer < count - 2 else 0)
        left, top, right, bottom = flower.getbbox() or (0, 0, side, side)
        margin = math.ceil(3 * blur * side)
        box = (max(0, left - margin), max(0, top - margin), min(side, right + margin), min(side, bottom + margin))
        scene.alpha_composite(flower.crop(box).filter(ImageFilter.GaussianBlur(blur * side)), box[:2])
    return _apply_lighting(scene.convert("RGB").resize((size, size), Image.Resampling.BOX), rng)


def _background(rng: Generator, side: int) -> Image.Image:
    """Return a background of two colors: soft clouds, perhaps with blades of grass or lights out of focus."""
    tones = [
        np.array(_BACKGROUND_COLORS[i]) + rng.uniform(-25, 25, 3)
        for i in rng.choice(len(_BACKGROUND_COLORS), 2, replace=False)
    ]
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
        tone = _shade(tones[int(rng.integers(2))], rng.uniform(0.7, 1.35))
        if style == "grass":
            draw.line([(x, y), (x + rng.uniform(-0.3, 0.3) * length, y - length)], tone, max(1, side // 90))
        else:
            draw.ellipse([x - length / 3, y - length / 3, x + length / 3, y + length / 3], (*tone, 255))
    return scene.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.004, 0.02)))


def _apply_lighting(scene: Image.Image, rng: Generator) -> Image.Image:
    """Add brightness, color temperature, a shadow from one side and noise."""
    size = scene.width
    angle, (y, x) = rng.uniform(0, 2 * math.pi), np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = rng.uniform(0.72, 1.15) * (1 + rng.uniform(0, 0.5) * (x * math.cos(angle) + y * math.sin(angle)))
    warmth = 1 + rng.uniform(-0.1, 0.1) * np.array([1, 0, -1])
    pixels = np.asarray(scene) * light[..., None] * warmth + rng.normal(0, rng.uniform(1, 6), (size, size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


def draw_flower(label: str, rng: Generator, side: int, center: tuple[float, float], radius: float) -> Image.Image:
    """Return a transparent layer with one flower: the stem, and the head, rotated and tilted."""
    layer = Image.new("RGBA", (side, side))
    lean = rng.uniform(-0.25, 0.25)
    _stem(ImageDraw.Draw(layer), rng, label, center, radius, lean)
    box = 2 * math.ceil(radius * 1.1)
    head = Image.new("RGBA", (box, box))
    color = np.array(PETAL_COLORS[label][int(rng.integers(len(PETAL_COLORS[label])))]) + rng.uniform(-18, 18, 3)
    {"daisy": _daisy, "dandelion": _dandelion, "rose": _rose, "sunflower": _sunflower, "tulip": _tulip}[label](
        ImageDraw.Draw(head), rng, box / 2, radius, color
    )
    if label == "tulip":
        head = head.rotate(math.degrees(-lean) + rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    else:
        tilt = rng.uniform(0.55, 1.0)
        head = head.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR).resize((box, max(2, round(box * tilt))))
        head = head.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, expand=True)
    layer.alpha_composite(_place_head(head, layer, center))
    return layer


def _place_head(head: Image.Image, layer: Image.Image, center: tuple[float, float]) -> Image.Image:
    whole = Image.new("RGBA", layer.size)
    whole.paste(head, (round(center[0] - head.width / 2), round(center[1] - head.height / 2)))
    return whole


def _stem(
    draw: ImageDraw.ImageDraw, rng: Generator, label: str, center: tuple[float, float], radius: float, lean: float
) -> None:
    if label != "tulip" and rng.random() < 0.45:  # seen from above
        return
    green = np.array([70, 120, 50]) + rng.uniform(-25, 25, 3)
    x, y = center
    base = (x + lean * 4 * radius, y + 4 * radius)
    draw.line([center, base], _shade(green, 0.9), max(2, round(radius * (0.13 if label == "sunflower" else 0.08))))
    for turn in rng.permuted([-1, 1]) if label in ("tulip", "rose", "sunflower") else []:
        start = (x + lean * radius * 1.6, y + 1.6 * radius)
        long, wide, angle = (1.7, 0.16, 1.25) if label == "tulip" else (0.8, 0.28, 0.4)
        up = math.pi / 2 + turn * (math.pi / 2 + (-angle if label == "tulip" else angle))
        _petal(draw, start, up, long * radius, wide * radius, _shade(green, rng.uniform(0.8, 1.1)), 1.0)


def _daisy(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array) -> None:
    count = int(rng.integers(13, 22))
    _ring(draw, rng, c, count, 0.12 * radius, 0.86 * radius, 1.35 * radius / count, color, 0.6)
    _disc(draw, rng, c, rng.uniform(0.2, 0.27) * radius, np.array([215, 165, 40]) + rng.uniform(-40, 30, 3), 40)


def _dandelion(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array) -> None:
    if rng.random() < 0.3:
        return _seed_ball(draw, rng, c, radius)
    for layer in np.linspace(1.0, 0.3, 6):
        count = int(20 + 46 * layer)
        _ring(draw, rng, c, count, 0.0, layer * radius * 0.97, 0.028 * radius, color * (1.12 - 0.35 * layer), 0.55)
    return None


def _seed_ball(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float) -> None:
    tone = np.array([225, 225, 220]) + rng.uniform(-20, 20, 3)
    for number in range(150):
        distance, angle = radius * 0.92 * math.sqrt((number + 0.5) / 150), number * _GOLDEN_ANGLE
        x, y = c + distance * math.cos(angle), c + distance * math.sin(angle)
        draw.line([(c, c), (x, y)], (*_shade(tone, 0.8), 110), 1)
        for spoke in rng.uniform(0, 2 * math.pi, 7):
            reach = 0.11 * radius
            tip = x + reach * math.cos(spoke), y + reach * math.sin(spoke)
            draw.line([(x, y), tip], _shade(tone, rng.uniform(0.85, 1.1)), 1)
    draw.ellipse([c - 0.1 * radius, c - 0.1 * radius, c + 0.1 * radius, c + 0.1 * radius], (110, 90, 60))


def _rose(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array) -> None:
    for number in range(26):
        share = 1 - number / 26
        angle = number * _GOLDEN_ANGLE + rng.uniform(-0.2, 0.2)
        reach, distance = radius * (0.16 + 0.36 * share), radius * 0.46 * share
        x, y = c + distance * math.cos(angle), c + distance * math.sin(angle)
        box = [x - reach, y - reach, x + reach, y + reach]
        draw.ellipse(box, _shade(color, 0.62 + 0.42 * share + rng.uniform(-0.05, 0.05)))
        rim = math.degrees(angle)
        draw.arc(box, rim - 95, rim + 95, _shade(color, 1.05 + 0.2 * share), max(1, round(radius * 0.035)))


def _sunflower(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array) -> None:
    count = int(rng.integers(15, 22))
    for light in (0.8, 1.0):
        _ring(draw, rng, c, count, 0.4 * radius, 0.58 * radius, 1.5 * radius / count, color * light, 1.15)
    _disc(draw, rng, c, rng.uniform(0.5, 0.6) * radius, np.array([85, 55, 30]) + rng.uniform(-25, 25, 3), 160)


def _tulip(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array) -> None:
    base = (c, c + 0.8 * radius)
    spread = rng.uniform(0.24, 0.4)
    for turn, light in ((-1.15, 0.72), (1.15, 0.72), (-0.55, 0.84), (0.55, 0.84), (0.0, 1.0)):
        tone = _shade(color, light * rng.uniform(0.95, 1.05))
        _petal(draw, base, turn * spread - math.pi / 2, 1.65 * radius, 0.42 * radius, tone, 0.95)


def _ring(
    draw: ImageDraw.ImageDraw,
    rng: Generator,
    c: float,
    count: int,
    start: float,
    length: float,
    half_width: float,
    color: Array,
    blunt: float,
) -> None:
    """Draw `count` slightly different petals around the center (c, c), each from radius `start` on."""
    phase = rng.uniform(0, 2 * math.pi)
    for number in rng.permutation(count):
        angle = phase + 2 * math.pi * (number + rng.uniform(-0.15, 0.15)) / count
        root = (c + start * math.cos(angle), c + start * math.sin(angle))
        long = length * rng.uniform(0.88, 1.0)
        _petal(draw, root, angle, long, half_width, _shade(color, rng.uniform(0.86, 1.06)), blunt)


def _disc(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, color: Array, seeds: int) -> None:
    """Draw a disc with `seeds` dots on the spiral of a sunflower."""
    draw.ellipse([c - radius, c - radius, c + radius, c + radius], _shade(color, 0.75))
    dot = max(1.0, 0.75 * radius / math.sqrt(seeds))
    for number in range(seeds):
        distance, angle = radius * 0.95 * math.sqrt((number + 0.5) / seeds), number * _GOLDEN_ANGLE
        x, y = c + distance * math.cos(angle), c + distance * math.sin(angle)
        draw.ellipse([x - dot, y - dot, x + dot, y + dot], _shade(color, rng.uniform(0.8, 1.5)))


def _petal(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    angle: float,
    length: float,
    half_width: float,
    color: Color,
    blunt: float,
) -> None:
    """Draw a petal from `start` in direction `angle`; it is widest at the tip for `blunt` 0.5, in the middle for 1."""
    across = half_width * _SIDE * np.sin(np.pi * _ALONG ** (1 / blunt)) ** 0.8
    along = _ALONG * length
    x = start[0] + along * math.cos(angle) - across * math.sin(angle)
    y = start[1] + along * math.sin(angle) + across * math.cos(angle)
    edge = tuple(int(channel * 0.78) for channel in color)
    draw.polygon(
        list(zip(x.tolist(), y.tolist(), strict=True)), fill=color, outline=edge, width=max(1, round(length / 45))
    )


def _shade(color: Sequence[float] | Array, factor: float) -> Color:
    """Return `color` times `factor`, clipped to 0 … 255."""
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in color)
    return red, green, blue
