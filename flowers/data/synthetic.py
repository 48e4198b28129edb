"""A synthetic dataset: paintings of five kinds of flower that differ in shape, not in color."""

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


_GOLDEN = math.pi * (3 - math.sqrt(5))  # the angle between neighbours in a sunflower's disc


# A petal's outline, there and back: how far along it, and on which side.
_ALONG = np.concatenate([np.linspace(0, 1, 12), np.linspace(1, 0, 12)])


_SIDE = np.repeat([1.0, -1.0], 12)


PETAL_COLORS: dict[str, Sequence[Color]] = {
    "daisy": [(248, 246, 240), (240, 180, 205), (250, 215, 70), (180, 130, 215), (225, 90, 70)],
    "dandelion": [(250, 205, 40), (245, 225, 90), (235, 150, 40), (235, 235, 230), (240, 190, 170)],
    "rose": [(200, 30, 50), (240, 150, 175), (250, 240, 225), (245, 200, 80), (235, 120, 60)],
    "sunflower": [(250, 190, 20), (240, 140, 30), (190, 60, 30), (250, 235, 170), (235, 150, 160)],
    "tulip": [(215, 35, 45), (245, 210, 60), (235, 130, 170), (140, 60, 150), (250, 245, 235)],
}


def draw_flower(kind: str, rng: Generator, side: int, centre: tuple[float, float], radius: float) -> Image.Image:
    """One flower on a transparent layer: its stem, then its head, turned and tilted."""
    layer = Image.new("RGBA", (side, side))
    lean = rng.uniform(-0.25, 0.25)
    _stem(ImageDraw.Draw(layer), rng, kind, centre, radius, lean)
    box = 2 * math.ceil(radius * 1.1)
    head = Image.new("RGBA", (box, box))
    colour = np.array(PETAL_COLORS[kind][int(rng.integers(len(PETAL_COLORS[kind])))]) + rng.uniform(-18, 18, 3)
    {"daisy": _daisy, "dandelion": _dandelion, "rose": _rose, "sunflower": _sunflower, "tulip": _tulip}[kind](
        ImageDraw.Draw(head), rng, box / 2, radius, colour
    )
    if kind == "tulip":
        head = head.rotate(math.degrees(-lean) + rng.uniform(-12, 12), Image.Resampling.BILINEAR)
    else:
        tilt = rng.uniform(0.55, 1.0)
        head = head.rotate(rng.uniform(0, 360), Image.Resampling.BILINEAR).resize((box, max(2, round(box * tilt))))
        head = head.rotate(rng.uniform(-40, 40), Image.Resampling.BILINEAR, expand=True)
    layer.alpha_composite(_clipped(head, layer, centre))
    return layer


def _clipped(head: Image.Image, layer: Image.Image, centre: tuple[float, float]) -> Image.Image:
    whole = Image.new("RGBA", layer.size)
    whole.paste(head, (round(centre[0] - head.width / 2), round(centre[1] - head.height / 2)))
    return whole


def _stem(
    draw: ImageDraw.ImageDraw, rng: Generator, kind: str, centre: tuple[float, float], radius: float, lean: float
) -> None:
    if kind != "tulip" and rng.random() < 0.45:  # seen from above
        return
    green = np.array([70, 120, 50]) + rng.uniform(-25, 25, 3)
    x, y = centre
    foot = (x + lean * 4 * radius, y + 4 * radius)
    draw.line([centre, foot], _shade(green, 0.9), max(2, round(radius * (0.13 if kind == "sunflower" else 0.08))))
    for turn in rng.permuted([-1, 1]) if kind in ("tulip", "rose", "sunflower") else []:
        start = (x + lean * radius * 1.6, y + 1.6 * radius)
        long, wide, angle = (1.7, 0.16, 1.25) if kind == "tulip" else (0.8, 0.28, 0.4)
        up = math.pi / 2 + turn * (math.pi / 2 + (-angle if kind == "tulip" else angle))
        _petal(draw, start, up, long * radius, wide * radius, _shade(green, rng.uniform(0.8, 1.1)), 1.0)


def _petal(
    draw: ImageDraw.ImageDraw,
    start: tuple[float, float],
    angle: float,
    length: float,
    half_width: float,
    colour: Color,
    blunt: float,
) -> None:
    """A petal from `start` in direction `angle`; `blunt` 0.5 has its widest part at the tip, 1 in the middle."""
    across = half_width * _SIDE * np.sin(np.pi * _ALONG ** (1 / blunt)) ** 0.8
    along = _ALONG * length
    x = start[0] + along * math.cos(angle) - across * math.sin(angle)
    y = start[1] + along * math.sin(angle) + across * math.cos(angle)
    edge = tuple(int(channel * 0.78) for channel in colour)
    draw.polygon(
        list(zip(x.tolist(), y.tolist(), strict=True)), fill=colour, outline=edge, width=max(1, round(length / 45))
    )


def _ring(
    draw: ImageDraw.ImageDraw,
    rng: Generator,
    c: float,
    count: int,
    start: float,
    length: float,
    half_width: float,
    colour: Array,
    blunt: float,
) -> None:
    """`count` petals around the centre (c, c), each from radius `start`, each a little different."""
    phase = rng.uniform(0, 2 * math.pi)
    for number in rng.permutation(count):
        angle = phase + 2 * math.pi * (number + rng.uniform(-0.15, 0.15)) / count
        root = (c + start * math.cos(angle), c + start * math.sin(angle))
        long = length * rng.uniform(0.88, 1.0)
        _petal(draw, root, angle, long, half_width, _shade(colour, rng.uniform(0.86, 1.06)), blunt)


def _disc(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array, seeds: int) -> None:
    """A disc with `seeds` dots on the spiral of a sunflower."""
    draw.ellipse([c - radius, c - radius, c + radius, c + radius], _shade(colour, 0.75))
    dot = max(1.0, 0.75 * radius / math.sqrt(seeds))
    for number in range(seeds):
        far, angle = radius * 0.95 * math.sqrt((number + 0.5) / seeds), number * _GOLDEN
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        draw.ellipse([x - dot, y - dot, x + dot, y + dot], _shade(colour, rng.uniform(0.8, 1.5)))


def _daisy(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    count = int(rng.integers(13, 22))
    _ring(draw, rng, c, count, 0.12 * radius, 0.86 * radius, 1.35 * radius / count, colour, 0.6)
    _disc(draw, rng, c, rng.uniform(0.2, 0.27) * radius, np.array([215, 165, 40]) + rng.uniform(-40, 30, 3), 40)


def _sunflower(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    count = int(rng.integers(15, 22))
    for light in (0.8, 1.0):
        _ring(draw, rng, c, count, 0.4 * radius, 0.58 * radius, 1.5 * radius / count, colour * light, 1.15)
    _disc(draw, rng, c, rng.uniform(0.5, 0.6) * radius, np.array([85, 55, 30]) + rng.uniform(-25, 25, 3), 160)


def _dandelion(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    if rng.random() < 0.3:
        return _seed_ball(draw, rng, c, radius)
    for layer in np.linspace(1.0, 0.3, 6):
        count = int(20 + 46 * layer)
        _ring(draw, rng, c, count, 0.0, layer * radius * 0.97, 0.028 * radius, colour * (1.12 - 0.35 * layer), 0.55)
    return None


def _seed_ball(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float) -> None:
    tone = np.array([225, 225, 220]) + rng.uniform(-20, 20, 3)
    for number in range(150):
        far, angle = radius * 0.92 * math.sqrt((number + 0.5) / 150), number * _GOLDEN
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        draw.line([(c, c), (x, y)], (*_shade(tone, 0.8), 110), 1)
        for spoke in rng.uniform(0, 2 * math.pi, 7):
            reach = 0.11 * radius
            tip = x + reach * math.cos(spoke), y + reach * math.sin(spoke)
            draw.line([(x, y), tip], _shade(tone, rng.uniform(0.85, 1.1)), 1)
    draw.ellipse([c - 0.1 * radius, c - 0.1 * radius, c + 0.1 * radius, c + 0.1 * radius], (110, 90, 60))


def _rose(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    for number in range(26):
        share = 1 - number / 26
        angle = number * _GOLDEN + rng.uniform(-0.2, 0.2)
        reach, far = radius * (0.16 + 0.36 * share), radius * 0.46 * share
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        box = [x - reach, y - reach, x + reach, y + reach]
        draw.ellipse(box, _shade(colour, 0.62 + 0.42 * share + rng.uniform(-0.05, 0.05)))
        rim = math.degrees(angle)
        draw.arc(box, rim - 95, rim + 95, _shade(colour, 1.05 + 0.2 * share), max(1, round(radius * 0.035)))


def _tulip(draw: ImageDraw.ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    foot = (c, c + 0.8 * radius)
    spread = rng.uniform(0.24, 0.4)
    for turn, light in ((-1.15, 0.72), (1.15, 0.72), (-0.55, 0.84), (0.55, 0.84), (0.0, 1.0)):
        tone = _shade(colour, light * rng.uniform(0.95, 1.05))
        _petal(draw, foot, turn * spread - math.pi / 2, 1.65 * radius, 0.42 * radius, tone, 0.95)


def _shade(colour: Sequence[float] | Array, factor: float) -> Color:
    """`colour` times `factor`, within 0 to 255."""
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in colour)
    return red, green, blue


CLASS_NAMES = tuple(PETAL_COLORS)


_PAINTING_FORMAT = 1  # of the paintings: what is planted under another number is another garden


_SUPERSAMPLING = 2  # painted so many times larger, then reduced: smooth edges


_GROUNDS: Sequence[Color] = [
    (70, 120, 50), (150, 190, 225), (95, 70, 50), (35, 40, 35),
    (190, 175, 150), (110, 140, 90), (60, 80, 110), (200, 200, 190),
]  # fmt: skip


def render_image(kind: str, index: int, size: int, seed: int) -> Image.Image:
    """A painting of `size` x `size` pixels with one to four flowers; the same for the same arguments.

    Another size shows the same scene. Raises ValueError for a kind that is none of KINDS.
    """
    if kind not in CLASS_NAMES:
        raise ValueError(f"kind {kind!r}: wanted one of {', '.join(CLASS_NAMES)}")
    key = hashlib.sha256(f"{_PAINTING_FORMAT} {kind} {index} {seed}".encode()).digest()
    rng = np.random.default_rng(list(key))
    side = size * _SUPERSAMPLING
    scene = _background(rng, size).resize((side, side), Image.Resampling.BICUBIC)
    count = int(rng.choice([1, 1, 1, 2, 3, 4]))
    radii = sorted(rng.uniform(0.3, 0.46, count) * (1.0 if count == 1 else 1.15 / math.sqrt(count)))
    places = rng.permuted([(0.3, 0.32), (0.7, 0.36), (0.32, 0.7), (0.7, 0.7)], axis=0)
    for number, radius in enumerate(radii):
        x, y = places[number] if count > 1 else (0.5, 0.45)
        x, y = x + rng.uniform(-0.08, 0.08), y + rng.uniform(-0.08, 0.08)
        flower = draw_flower(kind, rng, side, (x * side, y * side), radius * side)
        blur = rng.exponential(0.0015) + (0.004 if number < count - 2 else 0)  # those behind are out of focus
        left, top, right, bottom = flower.getbbox() or (0, 0, side, side)
        margin = math.ceil(3 * blur * side)
        box = (max(0, left - margin), max(0, top - margin), min(side, right + margin), min(side, bottom + margin))
        scene.alpha_composite(flower.crop(box).filter(ImageFilter.GaussianBlur(blur * side)), box[:2])
    return _apply_lighting(scene.convert("RGB").resize((size, size), Image.Resampling.BOX), rng)


def generate_dataset(root: str | Path, number: int = 1000, size: int = 128, seed: int = 0) -> None:
    """Makes sure that `root` holds the garden: `number` paintings, the kinds in turn, and garden.json.

    Painted beside `root` and then renamed; another process at the same work is waited for.

    Raises ValueError for fewer than 10 paintings or 32 pixels, and where `root` holds something else.
    """
    if number < 10 or size < 32:
        raise ValueError(f"a garden of {number} paintings of {size} pixels: wanted at least 10 of at least 32")
    root = Path(root).resolve()  # a link is followed, and "." has a name
    settings = {"format": _PAINTING_FORMAT, "number": number, "size": size, "seed": seed}
    if _is_generated(root, settings):
        return
    root.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(root.with_name(f".{root.name}.lock")):
        if _is_generated(root, settings):
            return
        log.info("painting %d flowers of %d pixels into %s", number, size, root)
        with atomic_directory(root) as beside:
            _render_all(beside, number, size, seed)
            (beside / "garden.json").write_text(json.dumps(settings), encoding="utf-8")


def _is_generated(root: Path, settings: dict[str, int]) -> bool:
    if not root.exists() or (root.is_dir() and not any(root.iterdir())):
        return False
    try:
        found = json.loads((root / "garden.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        found = "something that is no garden"
    if found != settings:
        raise ValueError(f"{root} holds {found}, wanted {settings}: give another data.root, or delete that folder")
    return True


def _render_all(folder: Path, number: int, size: int, seed: int) -> None:
    for kind in CLASS_NAMES:
        (folder / kind).mkdir()
    # Threads and no processes: a fifth faster on two cores, since Pillow lets others run while it blurs and encodes,
    # with no fork of a program that may have started threads and no second import of the caller's script.
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        paintings = pool.map(partial(_render_one, folder, size, seed), range(number))
        for _ in progress_bar(paintings, "Painting", number):
            pass


def _render_one(folder: Path, size: int, seed: int, index: int) -> None:
    kind = CLASS_NAMES[index % len(CLASS_NAMES)]
    render_image(kind, index, size, seed).save(folder / kind / f"{index:05}.jpg", quality=92)


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
        tone = _shade(tones[int(rng.integers(2))], rng.uniform(0.7, 1.35))
        if style == "grass":
            draw.line([(x, y), (x + rng.uniform(-0.3, 0.3) * length, y - length)], tone, max(1, side // 90))
        else:
            draw.ellipse([x - length / 3, y - length / 3, x + length / 3, y + length / 3], (*tone, 255))
    return scene.filter(ImageFilter.GaussianBlur(side * rng.uniform(0.004, 0.02)))


def _apply_lighting(scene: Image.Image, rng: Generator) -> Image.Image:
    """Brightness, warmth, a shadow from one side and a grain."""
    size = scene.width
    angle, (y, x) = rng.uniform(0, 2 * math.pi), np.mgrid[-0.5 : 0.5 : size * 1j, -0.5 : 0.5 : size * 1j]
    light = rng.uniform(0.72, 1.15) * (1 + rng.uniform(0, 0.5) * (x * math.cos(angle) + y * math.sin(angle)))
    warmth = 1 + rng.uniform(-0.1, 0.1) * np.array([1, 0, -1])
    pixels = np.asarray(scene) * light[..., None] * warmth + rng.normal(0, rng.uniform(1, 6), (size, size, 1))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))
