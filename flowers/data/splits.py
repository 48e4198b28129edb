"""Assign images to train, val and test: stratified by class, with near duplicates in one split; split.csv."""

import csv
import hashlib
import io
import logging
import os
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flowers.runtime.files import atomic_write, atomic_write_text, cache_dir, evict_least_recently_used
from flowers.runtime.hardware import has_native_bf16

log = logging.getLogger(__name__)

SPLITS = ("train", "val", "test")

# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits;
# the two most similar images of different scenes differ in 84. The middle, 71, is too close to that for larger sets.
NEAR_DUPLICATE_BITS = 64

_GROUPS_FORMAT = 1  # of the cached groups; another number makes all of them stale


class ImageRecord(NamedTuple):
    """An image that can be read.

    Attributes:
        path: Path below the root.
        label: Class name.
        sha256: SHA-256 of the file, hexadecimal.
        phash: Perceptual hash of the image, hexadecimal.
    """

    path: str
    label: str
    sha256: str
    phash: str


class SplitRecord(NamedTuple):
    """A line of split.csv.

    Attributes:
        path: Path below the root.
        label: Class name.
        split: train, val or test.
        group: Shared by near duplicates, which are in the same split.
        sha256: SHA-256 of the file, hexadecimal.
    """

    path: str
    label: str
    split: str
    group: str
    sha256: str


def check_split_settings(val_fraction: float, test_fraction: float, folds: int, fold: int) -> None:
    """Raise ValueError for settings from which `assign_splits` cannot make a split of any images."""
    for name, fraction in (("val_fraction", val_fraction), ("test_fraction", test_fraction)):
        if not 0 <= fraction < 1:
            raise ValueError(f"data.{name}={fraction}: expected a number from 0 to below 1")
    if val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} data.test_fraction={test_fraction}: "
            "expected a sum below 1, to leave images for training"
        )
    if folds and folds < 2:
        raise ValueError(f"data.folds={folds}: expected 0 for a single split, or at least 2")
    if folds and not 0 <= fold < folds:
        raise ValueError(f"data.fold={fold}: expected a number from 0 to {folds - 1} (data.folds={folds})")


def assign_splits(
    images: Sequence[ImageRecord],
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
) -> list[SplitRecord]:
    """Split `images` by their contents and `seed` alone: paths and order do not matter.

    Groups of near duplicates are assigned as a whole, in the order of a keyed hash. `test` is filled first and does not
    depend on the folds.

    Args:
        images: The images; each class needs at least two, and at least `folds`.
        val_fraction: Share of each class in val, from 0 to below 1; unused with `folds`.
        test_fraction: Share of each class in test, from 0 to below 1.
        folds: Number of cross-validation folds, at least 2; 0 for none.
        fold: The fold that is val, from 0 to `folds` - 1.
        seed: Seed of the order of the groups.

    Returns:
        A record for each image, sorted by path.

    Raises:
        ValueError: For invalid settings, or a class with too few images.
    """
    check_split_settings(val_fraction, test_fraction, folds, fold)
    total = Counter(image.label for image in images)
    rarest, count = min(total.items(), key=lambda item: item[1])
    if count < max(2, folds):
        raise ValueError(f"class {rarest} has {count} usable image(s): expected at least {max(2, folds)} to split")
    group_of = group_near_duplicates(images)
    labels: defaultdict[str, Counter[str]] = defaultdict(Counter)  # of each group, the number of images per class
    for image in images:
        labels[group_of[image.path]][image.label] += 1
    order = sorted(labels, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())

    test = _fill_quota(order, labels, {label: round(count * test_fraction) for label, count in total.items()})
    rest = [group for group in order if group not in test]
    if folds:
        val = {group for group, number in _deal_folds(rest, labels, folds).items() if number == fold}
    else:
        val = _fill_quota(rest, labels, {label: round(count * val_fraction) for label, count in total.items()})
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return sorted(SplitRecord(i.path, i.label, split_of[group_of[i.path]], group_of[i.path], i.sha256) for i in images)


def _fill_quota(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], quota: Mapping[str, int]) -> set[str]:
    """Return the first groups that fit into the remaining quota of each of their classes."""
    remaining = Counter(quota)
    chosen = set()
    for group in order:
        if all(remaining[label] >= count for label, count in labels[group].items()):
            chosen.add(group)
            for label, count in labels[group].items():
                remaining[label] -= count
    return chosen


def _deal_folds(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], folds: int) -> dict[str, int]:
    """Return the fold of each group: the one with the fewest images of its classes so far."""
    dealt: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in order:
        fold_of[group] = min(range(folds), key=lambda fold: (sum(dealt[fold][label] for label in labels[group]), fold))
        dealt[fold_of[group]].update(labels[group])
    return fold_of


def find_label_conflicts(images: Iterable[ImageRecord]) -> list[list[ImageRecord]]:
    """Return the sets of byte-identical images that are in several classes."""
    copies = defaultdict(list)
    for image in images:
        copies[image.sha256].append(image)
    return [same for same in copies.values() if len({image.label for image in same}) > 1]


def find_leaks(records: Iterable[SplitRecord]) -> list[list[SplitRecord]]:
    """Return the groups with images in more than one split. A split of `assign_splits` has none."""
    members = defaultdict(list)
    for record in records:
        members[record.group].append(record)
    return [group for group in members.values() if len({record.split for record in group}) > 1]


def check_split(records: Sequence[SplitRecord], images: Sequence[ImageRecord], source: str) -> list[SplitRecord]:
    """Return `records` if all of them are among `images`, unchanged.

    Args:
        records: The records of a split file.
        images: The images that exist now.
        source: Path of the split file, for messages.

    Raises:
        ValueError: If images are missing or have changed.
    """
    digests = {image.path: image.sha256 for image in images}
    wrong = [record.path for record in records if digests.get(record.path) != record.sha256]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the {len(records)} images of {source} are missing or have changed, such as {wrong[0]}: "
            "expected the images that the split was made of"
        )
    if len(images) > len(records):
        log.info("%d images are not in %s and are not used", len(images) - len(records), source)
    return list(records)


def split_to_csv(records: Iterable[SplitRecord]) -> str:
    """Return the text of split.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "split", "group", "sha256"])
    writer.writerows(records)
    return text.getvalue()


def split_sha256(records: Iterable[SplitRecord]) -> str:
    """Return the SHA-256 of split.csv, as `sha256sum split.csv` prints it."""
    return hashlib.sha256(split_to_csv(records).encode(errors="surrogateescape")).hexdigest()


def save_split(records: Iterable[SplitRecord], path: Path) -> None:
    """Write split.csv."""
    atomic_write_text(path, split_to_csv(records))


def load_split(path: str | Path) -> list[SplitRecord]:
    """Return the records of a split.csv.

    Raises:
        ValueError: If the file is missing, or has other columns, other splits, incomplete lines or a path twice.
    """
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            records = [
                SplitRecord(line["path"], line["class"], line["split"], line["group"], line["sha256"])
                for line in csv.DictReader(file)
            ]
    except KeyError as error:
        raise ValueError(
            f"{path} is not a split file: no column {error}: expected path, class, split, group, sha256"
        ) from error
    except (OSError, csv.Error) as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else error
        raise ValueError(f"{path} cannot be read ({reason}): expected a split.csv (data.split_file)") from error
    if not records or any(None in record for record in records) or len({r.path for r in records}) < len(records):
        raise ValueError(f"{path} is not a split file: expected one complete line for each image, and no path twice")
    if wrong := {record.split for record in records} - set(SPLITS):
        raise ValueError(f"{path} has the split(s) {', '.join(sorted(wrong))}: expected {', '.join(SPLITS)}")
    return records


def group_near_duplicates(images: Sequence[ImageRecord]) -> dict[str, str]:
    """Return the group of each path: the first 16 digits of the smallest SHA-256 among its near duplicates."""
    numbers = group_hashes([image.phash for image in images])
    smallest: dict[int, str] = {}
    for number, image in zip(numbers, images, strict=True):
        smallest[number] = min(smallest.get(number, image.sha256), image.sha256)
    return {image.path: smallest[number][:16] for number, image in zip(numbers, images, strict=True)}


def group_hashes(
    phashes: Sequence[str], block_rows: int = 2048, cache_above: int = 10_000, cache_bytes: int = 64 * 2**20
) -> list[int]:
    """Return a group number for each perceptual hash.

    Two hashes that differ in at most NEAR_DUPLICATE_BITS bits share a group, as do hashes that are connected through
    others. The result is exact. The time is quadratic in the number of distinct hashes: at a quarter of the bits, no
    index avoids comparing all pairs. Results for large sets are therefore cached.

    Args:
        phashes: Hexadecimal hashes of one length.
        block_rows: Rows and columns of a block of pairs. With 2048 its products take 8 MiB, which fits into the cache
            of the processor.
        cache_above: Number of distinct hashes above which the result is cached; 10,000 take 0.1 s to group.
        cache_bytes: Disk space for cached results; a result takes four bytes per distinct hash.
    """
    distinct = sorted(set(phashes))
    if len(distinct) <= cache_above:
        found = _components(distinct, block_rows)
    else:
        found = _cached_components(distinct, block_rows, cache_bytes)
    number_of = dict(zip(distinct, found.tolist(), strict=True))
    return [number_of[phash] for phash in phashes]


def _cached_components(distinct: Sequence[str], block_rows: int, cache_bytes: int) -> NDArray[np.int32]:
    key = hashlib.sha256("\n".join([f"{_GROUPS_FORMAT} {NEAR_DUPLICATE_BITS}", *distinct]).encode()).hexdigest()
    path = cache_dir() / "groups" / key
    numbers = _load_groups(path)
    if numbers is None or len(numbers) != len(distinct):
        numbers = _components(distinct, block_rows)
        content = numbers.astype("<i4").tobytes()
        with atomic_write(path) as beside:
            beside.write_bytes(hashlib.sha256(content).digest() + content)
        evict_least_recently_used(path.parent.glob("[!.]*"), cache_bytes)
    return numbers


def _load_groups(path: Path) -> NDArray[np.int32] | None:
    """Return cached group numbers; None if the file is missing or damaged."""
    try:
        content = path.read_bytes()
        os.utime(path)
    except OSError:
        return None
    digest, numbers = content[:32], content[32:]
    return np.frombuffer(numbers, dtype="<i4") if hashlib.sha256(numbers).digest() == digest else None


def _components(distinct: Sequence[str], block_rows: int) -> NDArray[np.int32]:
    """Return the group number of each hash: its connected component in the graph of near pairs."""
    bits = _hash_bits(distinct)
    starts = range(0, len(bits), block_rows)
    blocks = [(row, column) for row in starts for column in starts if column >= row]
    threads = torch.get_num_threads()
    # One thread per block is six times as fast as all threads for one block when other processes use the cores.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pairs = np.concatenate(list(pool.map(lambda block: _near_pairs(bits, *block, size=block_rows), blocks)))
    torch.set_num_threads(threads)  # the threads of the pool have also changed the default for new threads
    return _connected_components(pairs, len(distinct))


def _hash_bits(phashes: Sequence[str]) -> Tensor:
    """Return the bits as -1 and 1, (N, 256). Products and sums up to 256 are exact, also in bfloat16."""
    packed = np.frombuffer(bytes.fromhex("".join(phashes)), dtype=np.uint8).reshape(len(phashes), -1)
    # On a processor without bfloat16 instructions, bfloat16 is slower than float32.
    dtype = torch.bfloat16 if has_native_bf16("cpu") else torch.float32
    return torch.from_numpy(np.unpackbits(packed, axis=1)).to(dtype) * 2 - 1


def _near_pairs(bits: Tensor, row: int, column: int, size: int) -> NDArray[np.int64]:
    """Return pairs (K, 2), K < 2 * size, that connect all near hashes of a block.

    The block compares the `size` hashes from `row` on with the `size` hashes from `column` on.
    """
    agreement = bits.shape[1] - 2 * NEAR_DUPLICATE_BITS  # the product of two hashes that differ in that many bits
    nodes = np.r_[row : min(row + size, len(bits)), column : min(column + size, len(bits))]
    products = bits[row : row + size] @ bits[column : column + size].T
    if column == row:
        products.fill_diagonal_(-bits.shape[1])
    # Most rows have no near hash. Finding the largest product of each is much cheaper than listing all hits.
    rows = (products.amax(dim=1) >= agreement).nonzero()[:, 0]
    if not len(rows):
        return np.empty((0, 2), dtype=np.int64)
    hits = (products[rows] >= agreement).nonzero().int()
    ends = torch.stack([rows.int()[hits[:, 0]], hits[:, 1] + len(products)], dim=1).numpy()
    numbers = _connected_components(ends, len(nodes))
    first = np.unique(numbers, return_index=True)[1][numbers]
    joined = np.flatnonzero(first != np.arange(len(nodes)))
    return np.stack([nodes[joined], nodes[first[joined]]], axis=1)


def _connected_components(pairs: NDArray[np.int32] | NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """Return the number of the connected component of each of `count` nodes."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return numbers
