"""Assign images to train, val and test: stratified, and with duplicates on one side."""

import csv
import hashlib
import io
import logging
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

from flowers.runtime.files import atomic_write, atomic_write_text, cache_dir
from flowers.runtime.hardware import has_native_bf16

log = logging.getLogger(__name__)


SPLITS = ("train", "val", "test")


class ImageRecord(NamedTuple):
    """A good photo: its path below the root, its class, and what its bytes and its looks hash to (hexadecimal)."""

    path: str
    label: str
    sha256: str
    phash: str


class SplitRecord(NamedTuple):
    """A line of split.csv. Photos of one `group` are the same or nearly so and share a split."""

    path: str
    label: str
    split: str
    group: str
    sha256: str


def find_label_conflicts(photos: Iterable[ImageRecord]) -> list[list[ImageRecord]]:
    """Photos that are identical byte for byte and yet filed under several classes, a list for each such photo."""
    copies = defaultdict(list)
    for photo in photos:
        copies[photo.sha256].append(photo)
    return [same for same in copies.values() if len({photo.label for photo in same}) > 1]


def group_near_duplicates(photos: Sequence[ImageRecord]) -> dict[str, str]:
    """The group of each photo by path: the smallest SHA-256 (16 digits) among the photos that are nearly the same."""

    numbers = group_hashes([photo.phash for photo in photos])
    smallest: dict[int, str] = {}
    for number, photo in zip(numbers, photos, strict=True):
        smallest[number] = min(smallest.get(number, photo.sha256), photo.sha256)
    return {photo.path: smallest[number][:16] for number, photo in zip(numbers, photos, strict=True)}


def assign_splits(
    photos: Sequence[ImageRecord],
    val_fraction: float = 0.2,
    test_fraction: float = 0.0,
    folds: int = 0,
    fold: int = 0,
    seed: int = 0,
) -> list[SplitRecord]:
    """Splits by the photos' contents and `seed` alone: neither paths nor their order matter.

    Groups are taken in the order of a keyed hash, each whole. `test` is filled first and does not depend on the folds;
    with `folds` > 1, `val` is fold number `fold` of the rest and `val_fraction` is not used.
    """
    _check_rule(photos, val_fraction, test_fraction, folds, fold)
    group_of = group_near_duplicates(photos)
    labels: defaultdict[str, dict[str, int]] = defaultdict(dict)
    for photo in photos:
        counts = labels[group_of[photo.path]]
        counts[photo.label] = counts.get(photo.label, 0) + 1
    order = sorted(labels, key=lambda group: hashlib.sha256(f"{seed} {group}".encode()).digest())
    total = Counter(photo.label for photo in photos)

    test = _fill_quota(order, labels, {label: round(count * test_fraction) for label, count in total.items()})
    rest = [group for group in order if group not in test]
    if folds:
        val = {group for group, number in _deal_folds(rest, labels, folds).items() if number == fold}
    else:
        val = _fill_quota(rest, labels, {label: round(count * val_fraction) for label, count in total.items()})
    split_of = dict.fromkeys(order, "train") | dict.fromkeys(val, "val") | dict.fromkeys(test, "test")
    return sorted(SplitRecord(p.path, p.label, split_of[group_of[p.path]], group_of[p.path], p.sha256) for p in photos)


def _check_rule(
    photos: Sequence[ImageRecord], val_fraction: float, test_fraction: float, folds: int, fold: int
) -> None:
    if val_fraction < 0 or test_fraction < 0 or val_fraction + test_fraction >= 1:
        raise ValueError(
            f"data.val_fraction={val_fraction} and data.test_fraction={test_fraction}: "
            "wanted two shares of at least 0 that leave something to train on"
        )
    if folds and not (folds > 1 and 0 <= fold < folds):
        raise ValueError(
            f"data.folds={folds} data.fold={fold}: wanted folds=0 (none), or folds > 1 and 0 <= fold < folds"
        )
    rarest, count = min(Counter(photo.label for photo in photos).items(), key=lambda item: item[1])
    if count < max(2, folds):
        raise ValueError(f"class {rarest} has {count} good photo(s): wanted at least {max(2, folds)} to split")


def _fill_quota(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], quota: dict[str, int]) -> set[str]:
    """The first groups that fit into what is left of each class's quota."""
    left = Counter(quota)
    chosen = set()
    for group in order:
        if all(left[label] >= count for label, count in labels[group].items()):
            chosen.add(group)
            for label, count in labels[group].items():
                left[label] -= count
    return chosen


def _deal_folds(order: Sequence[str], labels: Mapping[str, Mapping[str, int]], folds: int) -> dict[str, int]:
    """A fold for each group: the one that has the fewest photos of the group's classes so far."""
    dealt: list[Counter[str]] = [Counter() for _ in range(folds)]
    fold_of = {}
    for group in order:
        fold_of[group] = min(range(folds), key=lambda fold: (sum(dealt[fold][label] for label in labels[group]), fold))
        dealt[fold_of[group]].update(labels[group])
    return fold_of


def find_leaks(rows: Iterable[SplitRecord]) -> list[list[SplitRecord]]:
    """Groups with photos in more than one split; those of `decide` have none."""
    members = defaultdict(list)
    for row in rows:
        members[row.group].append(row)
    return [group for group in members.values() if len({row.split for row in group}) > 1]


def split_to_csv(rows: Iterable[SplitRecord]) -> str:
    """The text of split.csv."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["path", "class", "split", "group", "sha256"])
    writer.writerows(rows)
    return text.getvalue()


def split_sha256(rows: Iterable[SplitRecord]) -> str:
    """The SHA-256 of split.csv, as `sha256sum split.csv` prints it."""
    return hashlib.sha256(split_to_csv(rows).encode(errors="surrogateescape")).hexdigest()


def save_split(rows: Iterable[SplitRecord], path: Path) -> None:
    """Writes split.csv."""
    atomic_write_text(path, split_to_csv(rows))


def load_split(path: str | Path) -> list[SplitRecord]:
    """The rows of a split.csv. Raises ValueError where it is missing or has other columns or split names."""
    try:
        with Path(path).open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            rows = [
                SplitRecord(line["path"], line["class"], line["split"], line["group"], line["sha256"])
                for line in csv.DictReader(file)
            ]
    except (OSError, KeyError, csv.Error) as error:
        raise ValueError(f"{path} is no split file ({error}): wanted path, class, split, group, sha256") from error
    if not rows or any(None in row for row in rows) or len({row.path for row in rows}) < len(rows):
        raise ValueError(f"{path} is no split file: wanted a line for each photo, whole, and none twice")
    if wrong := {row.split for row in rows} - set(SPLITS):
        raise ValueError(f"{path} has the split(s) {', '.join(sorted(wrong))}: wanted {', '.join(SPLITS)}")
    return rows


def check_split(rows: Sequence[SplitRecord], photos: Sequence[ImageRecord], source: str | Path) -> list[SplitRecord]:
    """The `rows` of the file `source`. Raises ValueError unless all of theirs are among `photos`, unchanged."""
    digests = {photo.path: photo.sha256 for photo in photos}
    wrong = [row.path for row in rows if digests.get(row.path) != row.sha256]
    if wrong:
        raise ValueError(
            f"{len(wrong)} of the {len(rows)} photos of {source} are missing or have changed, such as {wrong[0]}: "
            "wanted the photos that the split was made of"
        )
    if len(photos) > len(rows):
        log.info("%d photos are not in %s and take no part", len(photos) - len(rows), source)
    return list(rows)


# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits
# and the first two unlike photos in 84; halfway lies too near the latter for a larger set.
NEAR_DUPLICATE_BITS = 64


_UNCACHED_HASHES = 10_000  # hashes: so many are grouped in 0.1 s, and not kept


_BLOCK_ROWS = 2048  # rows compared with as many others at once: 8 MiB of products, which stay in the processor's cache


_GROUPS_FORMAT = 1  # of the kept groups: another number forgets them all


_MAX_GROUP_FILES = 32  # files of kept groups: of so many sets of photos


def group_hashes(phashes: Sequence[str]) -> list[int]:
    """A group number for each perceptual hash (hexadecimal, N of one length): near ones share it, also through others.

    Exact, and quadratic in the number of distinct hashes: at a quarter of the bits no index spares comparing all pairs.
    What takes long is therefore kept in the cache folder.
    """
    distinct = sorted(set(phashes))
    found = (_components if len(distinct) <= _UNCACHED_HASHES else _cached_components)(distinct)
    number_of = dict(zip(distinct, found.tolist(), strict=True))
    return [number_of[phash] for phash in phashes]


def _cached_components(distinct: Sequence[str]) -> NDArray[np.int32]:
    """`_components`, computed once for the same hashes."""
    key = hashlib.sha256("\n".join([f"{_GROUPS_FORMAT} {NEAR_DUPLICATE_BITS}", *distinct]).encode()).hexdigest()
    kept_at = cache_dir() / "groups" / key
    numbers = _load_groups(kept_at)
    if numbers is None or len(numbers) != len(distinct):
        numbers = _components(distinct)
        content = numbers.astype("<i4").tobytes()
        with atomic_write(kept_at) as beside:
            beside.write_bytes(hashlib.sha256(content).digest() + content)
        _evict_groups(kept_at.parent)
    return numbers


def _load_groups(path: Path) -> NDArray[np.int32] | None:
    """Kept numbers; None where the file is missing or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, numbers = content[:32], content[32:]
    return np.frombuffer(numbers, dtype="<i4") if hashlib.sha256(numbers).digest() == digest else None


def _evict_groups(folder: Path) -> None:
    """Removes all but the newest files; another process may do so at the same time."""
    ages = {}
    for path in folder.glob("[!.]*"):
        try:
            ages[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    for path in sorted(ages, key=lambda path: ages[path], reverse=True)[_MAX_GROUP_FILES:]:
        path.unlink(missing_ok=True)


def _components(distinct: Sequence[str]) -> NDArray[np.int32]:
    """The group number of each hash: the connected components of the graph of near pairs."""
    bits = _hash_bits(distinct)
    starts = range(0, len(bits), _BLOCK_ROWS)
    blocks = [(top, left) for top in starts for left in starts if left >= top]
    threads = torch.get_num_threads()
    # A thread a block, not all threads for one: six times as fast where other processes keep the cores busy.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pairs = np.concatenate(list(pool.map(lambda block: _near_pairs(bits, *block), blocks)))
    torch.set_num_threads(threads)  # for threads to come; those of the pool changed their own and the default
    return _connected_components(pairs, len(distinct))


def _hash_bits(phashes: Sequence[str]) -> Tensor:
    """(N, 256) of -1 and 1; products and their sums up to 256 are exact in bfloat16 as well."""
    packed = np.frombuffer(bytes.fromhex("".join(phashes)), dtype=np.uint8).reshape(len(phashes), -1)
    # Where the processor has no instructions for bfloat16, it is slower than float32.
    dtype = torch.bfloat16 if has_native_bf16("cpu") else torch.float32
    return torch.from_numpy(np.unpackbits(packed, axis=1)).to(dtype) * 2 - 1


def _near_pairs(bits: Tensor, top: int, left: int) -> NDArray[np.int64]:
    """Pairs (K, 2) of rows, at most 2 * _BLOCK, that connect what differs in at most NEAR bits in one block.

    The block compares _BLOCK rows from `top` with as many from `left`.
    """
    agreement = bits.shape[1] - 2 * NEAR_DUPLICATE_BITS  # of two rows that differ in NEAR bits: their product's value
    nodes = np.r_[top : min(top + _BLOCK_ROWS, len(bits)), left : min(left + _BLOCK_ROWS, len(bits))]
    products = bits[top : top + _BLOCK_ROWS] @ bits[left : left + _BLOCK_ROWS].T
    if left == top:
        products.fill_diagonal_(-bits.shape[1])
    # Reading the rows' largest first is much cheaper than listing what exceeds, and most rows have nothing.
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
    """The number of its connected component for each of `count` nodes."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return numbers
