import hashlib
import io
from collections import Counter
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import imagehash
import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageEnhance, ImageFilter

from flowers.data.near_duplicates import find_duplicates
from flowers.runtime.files import write_cache

THRESHOLD = 0.6


@pytest.fixture(autouse=True)
def cached_groups(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder of cached groups, empty at first."""
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path))
    return tmp_path / "groups"


def scene(seed: int) -> Image.Image:
    """Return a picture of soft and sharp shapes, as no other seed gives."""
    generator = np.random.default_rng(seed)
    soft = Image.fromarray(generator.integers(0, 256, (5, 6, 3), dtype=np.uint8)).resize(
        (120, 100), Image.Resampling.BICUBIC
    )
    draw = ImageDraw.Draw(soft)
    for _ in range(6):
        x, y, side = (int(generator.integers(*bounds)) for bounds in ((0, 100), (0, 80), (8, 30)))
        draw.ellipse([x, y, x + side, y + side], fill=tuple(map(int, generator.integers(0, 256, 3))))
    return soft.filter(ImageFilter.GaussianBlur(1))


def fixed_camera(count: int) -> list[Image.Image]:
    """Return photos of one scene by one light or another, with a spot that wanders, and noise."""
    generator = np.random.default_rng(0)
    background = np.asarray(scene(99), dtype=float)
    photos = []
    for _ in range(count):
        photo = Image.fromarray((background * generator.uniform(0.8, 1)).astype(np.uint8))
        x, y = int(generator.integers(5, 105)), int(generator.integers(5, 85))
        ImageDraw.Draw(photo).ellipse([x, y, x + 12, y + 12], fill=tuple(map(int, generator.integers(0, 256, 3))))
        noisy = np.asarray(photo) + generator.normal(0, 3, (100, 120, 3))
        photos.append(Image.fromarray(noisy.clip(0, 255).astype(np.uint8)))
    return photos


def recompressed(photo: Image.Image) -> Image.Image:
    file = io.BytesIO()
    photo.save(file, "JPEG", quality=60)
    return Image.open(file).convert("RGB")


def cropped(photo: Image.Image) -> Image.Image:
    return photo.crop((6, 5, 120, 100))


COPIES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "resized": lambda photo: photo.resize((60, 64), Image.Resampling.LANCZOS),
    "recompressed": recompressed,
    "recolored": lambda photo: Image.merge("RGB", photo.split()[::-1]),
    "brighter": lambda photo: ImageEnhance.Brightness(photo).enhance(1.2),
    "gray": lambda photo: photo.convert("L").convert("RGB"),
}


def groups_of(photos: list[Image.Image], part: str = "groups") -> list[int]:
    digests = [hashlib.sha256(photo.tobytes()).hexdigest() for photo in photos]
    hashes = [str(imagehash.phash(photo, hash_size=16)) for photo in photos]
    found: list[int] = getattr(find_duplicates(digests, hashes, lambda index: photos[index], THRESHOLD), part)
    return found


@pytest.mark.parametrize("kind", [*COPIES, "cropped"])
def test_find_duplicates_finds_planted_copies_and_joins_no_other_photos(kind: str):
    photos = [scene(seed) for seed in range(60)]
    change = {**COPIES, "cropped": cropped}[kind]
    groups = groups_of([*photos, *map(change, photos)])
    assert sum(groups[index] == groups[60 + index] for index in range(60)) >= 57
    assert max(Counter(groups).values()) == 2


def test_find_duplicates_says_which_near_duplicates_are_copies():
    photos = [scene(seed) for seed in range(20)]
    spots = [photo.copy() for photo in photos]
    for spot in spots:
        ImageDraw.Draw(spot).rectangle([50, 40, 62, 52], fill="white")
    groups = groups_of([*photos, *spots])
    assert sum(groups[index] == groups[20 + index] for index in range(20)) >= 15
    copies = groups_of([*photos, *map(recompressed, photos), *spots], "copies")
    assert copies[:20] == copies[20:40]
    assert {*copies[:20]}.isdisjoint(copies[40:])


def test_find_duplicates_joins_no_distinct_photos_of_a_fixed_camera():
    assert max(Counter(groups_of(fixed_camera(60))).values()) == 1


@pytest.mark.parametrize("kind", ["resized", "recompressed", "gray"])
def test_find_duplicates_finds_copies_among_photos_of_a_fixed_camera(kind: str):
    photos = fixed_camera(60)
    groups = groups_of([*photos, *map(COPIES[kind], photos[:10])])
    assert sum(groups[index] == groups[60 + index] for index in range(10)) >= 9
    assert max(Counter(groups).values()) == 2


def test_find_duplicates_does_not_chain():
    """Each photo of a pan overlaps with the next one, the first not with the last."""
    wide = np.concatenate([np.asarray(scene(seed)) for seed in range(3)], axis=1)
    photos = [Image.fromarray(wide[:, 6 * step : 6 * step + 120]) for step in range(40)]
    members: dict[int, list[int]] = {}
    for step, group in enumerate(groups_of(photos)):
        members.setdefault(group, []).append(step)
    assert max(map(len, members.values())) > 1
    assert all(abs(one - other) <= 4 for group in members.values() for one, other in combinations(group, 2))


def test_find_duplicates_does_not_depend_on_the_order():
    photos = [*map(scene, range(8)), *map(cropped, map(scene, range(8)))]
    groups, reverse = groups_of(photos), groups_of(photos[::-1])[::-1]
    assert groups == reverse
    assert len({*groups}) == 8


def test_find_duplicates_reads_cached_groups_in_place_of_photos(cached_groups: Path):
    photos = [scene(0), recompressed(scene(0)), scene(1)]
    assert len({*groups_of(photos)}) == 2
    (file,) = cached_groups.iterdir()
    write_cache(file, np.arange(6, dtype="<i4").tobytes())  # others than those computed
    assert len({*groups_of(photos)}) == 3
    groups_of([*photos, recompressed(scene(1))])
    assert len(list(cached_groups.iterdir())) == 2


@pytest.mark.parametrize("damaged", [b"", b"short", b"\0" * 56])
def test_find_duplicates_replaces_a_damaged_cache_file(cached_groups: Path, damaged: bytes):
    photos = [scene(0), recompressed(scene(0)), scene(1)]
    computed = groups_of(photos)
    (file,) = cached_groups.iterdir()
    content = file.read_bytes()
    file.write_bytes(damaged)
    assert groups_of(photos) == computed
    assert file.read_bytes() == content


def test_find_duplicates_goes_on_without_a_cache_that_cannot_be_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("FLOWERS_CACHE", str(tmp_path / "file"))
    assert len({*groups_of([scene(0), recompressed(scene(0)), scene(1)])}) == 2


def test_find_duplicates_reads_and_caches_nothing_where_no_hashes_are_near(cached_groups: Path):
    hashes = [f"{0:064x}", f"{2**256 - 1:064x}"]
    assert find_duplicates(["a", "b"], hashes, lambda index: pytest.fail("was read"), THRESHOLD).groups == [0, 1]
    assert not cached_groups.exists()
