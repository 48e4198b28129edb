"""Paints one flower of a kind: what tells the kinds of the garden apart."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.random import Generator
from numpy.typing import NDArray
from PIL import Image
from PIL.ImageDraw import Draw, ImageDraw

Colour = tuple[int, int, int]
Array = NDArray[np.float64]

_GOLDEN = math.pi * (3 - math.sqrt(5))  # the angle between neighbours in a sunflower's disc

# A petal's outline, there and back: how far along it, and on which side.
_ALONG = np.concatenate([np.linspace(0, 1, 12), np.linspace(1, 0, 12)])
_SIDE = np.repeat([1.0, -1.0], 12)

PETALS: dict[str, Sequence[Colour]] = {
    "daisy": [(248, 246, 240), (240, 180, 205), (250, 215, 70), (180, 130, 215), (225, 90, 70)],
    "dandelion": [(250, 205, 40), (245, 225, 90), (235, 150, 40), (235, 235, 230), (240, 190, 170)],
    "rose": [(200, 30, 50), (240, 150, 175), (250, 240, 225), (245, 200, 80), (235, 120, 60)],
    "sunflower": [(250, 190, 20), (240, 140, 30), (190, 60, 30), (250, 235, 170), (235, 150, 160)],
    "tulip": [(215, 35, 45), (245, 210, 60), (235, 130, 170), (140, 60, 150), (250, 245, 235)],
}


def flower(kind: str, rng: Generator, side: int, centre: tuple[float, float], radius: float) -> Image.Image:
    """One flower on a transparent layer: its stem, then its head, turned and tilted."""
    layer = Image.new("RGBA", (side, side))
    lean = rng.uniform(-0.25, 0.25)
    _stem(Draw(layer), rng, kind, centre, radius, lean)
    box = 2 * math.ceil(radius * 1.1)
    head = Image.new("RGBA", (box, box))
    colour = np.array(PETALS[kind][int(rng.integers(len(PETALS[kind])))]) + rng.uniform(-18, 18, 3)
    {"daisy": _daisy, "dandelion": _dandelion, "rose": _rose, "sunflower": _sunflower, "tulip": _tulip}[kind](
        Draw(head), rng, box / 2, radius, colour
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


def _stem(draw: ImageDraw, rng: Generator, kind: str, centre: tuple[float, float], radius: float, lean: float) -> None:
    if kind != "tulip" and rng.random() < 0.45:  # seen from above
        return
    green = np.array([70, 120, 50]) + rng.uniform(-25, 25, 3)
    x, y = centre
    foot = (x + lean * 4 * radius, y + 4 * radius)
    draw.line([centre, foot], shade(green, 0.9), max(2, round(radius * (0.13 if kind == "sunflower" else 0.08))))
    for turn in rng.permuted([-1, 1]) if kind in ("tulip", "rose", "sunflower") else []:
        start = (x + lean * radius * 1.6, y + 1.6 * radius)
        long, wide, angle = (1.7, 0.16, 1.25) if kind == "tulip" else (0.8, 0.28, 0.4)
        up = math.pi / 2 + turn * (math.pi / 2 + (-angle if kind == "tulip" else angle))
        _petal(draw, start, up, long * radius, wide * radius, shade(green, rng.uniform(0.8, 1.1)), 1.0)


def _petal(
    draw: ImageDraw,
    start: tuple[float, float],
    angle: float,
    length: float,
    half_width: float,
    colour: Colour,
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
    draw: ImageDraw,
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
        _petal(draw, root, angle, long, half_width, shade(colour, rng.uniform(0.86, 1.06)), blunt)


def _disc(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array, seeds: int) -> None:
    """A disc with `seeds` dots on the spiral of a sunflower."""
    draw.ellipse([c - radius, c - radius, c + radius, c + radius], shade(colour, 0.75))
    dot = max(1.0, 0.75 * radius / math.sqrt(seeds))
    for number in range(seeds):
        far, angle = radius * 0.95 * math.sqrt((number + 0.5) / seeds), number * _GOLDEN
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        draw.ellipse([x - dot, y - dot, x + dot, y + dot], shade(colour, rng.uniform(0.8, 1.5)))


def _daisy(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    count = int(rng.integers(13, 22))
    _ring(draw, rng, c, count, 0.12 * radius, 0.86 * radius, 1.35 * radius / count, colour, 0.6)
    _disc(draw, rng, c, rng.uniform(0.2, 0.27) * radius, np.array([215, 165, 40]) + rng.uniform(-40, 30, 3), 40)


def _sunflower(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    count = int(rng.integers(15, 22))
    for light in (0.8, 1.0):
        _ring(draw, rng, c, count, 0.4 * radius, 0.58 * radius, 1.5 * radius / count, colour * light, 1.15)
    _disc(draw, rng, c, rng.uniform(0.5, 0.6) * radius, np.array([85, 55, 30]) + rng.uniform(-25, 25, 3), 160)


def _dandelion(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    if rng.random() < 0.3:
        return _seed_ball(draw, rng, c, radius)
    for layer in np.linspace(1.0, 0.3, 6):
        count = int(20 + 46 * layer)
        _ring(draw, rng, c, count, 0.0, layer * radius * 0.97, 0.028 * radius, colour * (1.12 - 0.35 * layer), 0.55)
    return None


def _seed_ball(draw: ImageDraw, rng: Generator, c: float, radius: float) -> None:
    tone = np.array([225, 225, 220]) + rng.uniform(-20, 20, 3)
    for number in range(150):
        far, angle = radius * 0.92 * math.sqrt((number + 0.5) / 150), number * _GOLDEN
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        draw.line([(c, c), (x, y)], (*shade(tone, 0.8), 110), 1)
        for spoke in rng.uniform(0, 2 * math.pi, 7):
            reach = 0.11 * radius
            tip = x + reach * math.cos(spoke), y + reach * math.sin(spoke)
            draw.line([(x, y), tip], shade(tone, rng.uniform(0.85, 1.1)), 1)
    draw.ellipse([c - 0.1 * radius, c - 0.1 * radius, c + 0.1 * radius, c + 0.1 * radius], (110, 90, 60))


def _rose(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    for number in range(26):
        share = 1 - number / 26
        angle = number * _GOLDEN + rng.uniform(-0.2, 0.2)
        reach, far = radius * (0.16 + 0.36 * share), radius * 0.46 * share
        x, y = c + far * math.cos(angle), c + far * math.sin(angle)
        box = [x - reach, y - reach, x + reach, y + reach]
        draw.ellipse(box, shade(colour, 0.62 + 0.42 * share + rng.uniform(-0.05, 0.05)))
        rim = math.degrees(angle)
        draw.arc(box, rim - 95, rim + 95, shade(colour, 1.05 + 0.2 * share), max(1, round(radius * 0.035)))


def _tulip(draw: ImageDraw, rng: Generator, c: float, radius: float, colour: Array) -> None:
    foot = (c, c + 0.8 * radius)
    spread = rng.uniform(0.24, 0.4)
    for turn, light in ((-1.15, 0.72), (1.15, 0.72), (-0.55, 0.84), (0.55, 0.84), (0.0, 1.0)):
        tone = shade(colour, light * rng.uniform(0.95, 1.05))
        _petal(draw, foot, turn * spread - math.pi / 2, 1.65 * radius, 0.42 * radius, tone, 0.95)


def shade(colour: Sequence[float] | Array, factor: float) -> Colour:
    """`colour` times `factor`, within 0 to 255."""
    red, green, blue = (int(min(255, max(0, channel * factor))) for channel in colour)
    return red, green, blue
