"""Find near duplicates: photos whose perceptual hashes are close, and whose pixels confirm it.

Distinct photos of a fixed camera have close hashes, too. So hashes only propose a pair; `registration.compare` looks at
its pixels; and where many photos are alike, near duplicates have to be much more alike than a photo and its tenth most
similar one.
"""

import hashlib
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from flowers.data.hash_search import find_near_hashes, hash_distances, hash_words
from flowers.data.registration import SIDE, Difference, compare, thumbnail
from flowers.runtime.files import cache_dir, evict_least_recently_used, optional_cache, read_cache, write_cache
from flowers.runtime.hardware import available_cores
from flowers.runtime.logging import progress_bar

# Re-encodings and shots of one burst differ in 0 to 58 of 256 bits, different scenes of flower_photos in 84 and more.
# A pair that differs in more has to have almost the same pixels.
_SURE_BITS = 64
_UNSURE = 15  # divides the threshold of such a pair
_COPY = 60  # divides the threshold of two copies of one photo, whatever their format
_COPY_PEAK = 0.2  # without a spot that only one of them has, in standard deviations

_NEIGHBORS = 16  # that are looked at; a photo with more is in a crowd
_OTHERS = (
    10  # the tenth most similar photo of a crowd shows something else; in a small folder, of a third of the photos
)
_CROWDED = 0.5  # where the tenth most similar photo differs by less:
_CROWD_SHARE = 0.1  # a near duplicate leaves at most this part of the difference to the tenth most similar,
_CROWD_BITS = 0.35  # and differs in at most this part of the bits of the hash in which the tenth nearest differs,
_SURE_CROWD_BITS = 8  # or in at most so many
_SAME = 1e-4  # a difference that no other photo can have: of copies in another format or size

_CACHE_FORMAT = 2  # another number makes all cached groups stale
_CACHE_ABOVE = 10_000  # distinct images; fewer take 0.3 s to search
_CACHE_BYTES = 64 * 2**20  # a result takes eight bytes for each distinct image

Ints = NDArray[np.int64]


class Duplicates(NamedTuple):
    """Numbers that alike images share.

    Attributes:
        copies: The same for copies of one photo: in another format or size, or little changed.
        groups: The same for near duplicates: also crops, and shots of one burst. Each two of a group are alike.
    """

    copies: list[int]
    groups: list[int]


def find_duplicates(
    digests: Sequence[str], phashes: Sequence[str], read: Callable[[int], Image.Image], threshold: float
) -> Duplicates:
    """Return which images are near duplicates.

    Whatever the order of the images, the result is the same. It is cached if images had to be read.

    Args:
        digests: SHA-256 of the image files, hexadecimal.
        phashes: Perceptual hashes of 256 bits, hexadecimal.
        read: Returns an image by its position, as RGB.
        threshold: The largest difference of near duplicates, a share of the variance from 0 to 1.
    """
    position = {digest: index for index, digest in reversed([*enumerate(digests)])}
    distinct = sorted(position)
    hashes = [phashes[position[digest]] for digest in distinct]
    text = "\n".join([f"{_CACHE_FORMAT} {threshold}", *map("".join, zip(distinct, hashes, strict=True))])
    path = cache_dir() / "groups" / hashlib.sha256(text.encode()).hexdigest()
    content = read_cache(path)
    if content is not None and len(content) == 8 * len(distinct):
        numbers = np.frombuffer(content, dtype="<i4").reshape(2, -1)
    else:
        search = _Search(hashes, lambda index: read(position[distinct[index]]), threshold)
        numbers = np.array(search.groups(), dtype="<i4")
        if len(search.thumbnails) or len(distinct) > _CACHE_ABOVE:
            _write(path, numbers)
    rank = {digest: index for index, digest in enumerate(distinct)}
    ranks = [rank[digest] for digest in digests]
    return Duplicates(*(row[ranks].tolist() for row in numbers))


def _write(path: Path, numbers: NDArray[np.int32]) -> None:
    if write_cache(path, numbers.tobytes()):
        with optional_cache(path.parent):
            evict_least_recently_used(filter(type(path).is_file, path.parent.glob("[!.]*")), _CACHE_BYTES)


class Verdict(NamedTuple):
    """What K pairs of images are.

    Attributes:
        difference: Their difference, as a share of the largest one of near duplicates, (K,).
        is_near: Which are near duplicates, (K,).
        is_copy: Which are copies of one photo, (K,).
    """

    difference: NDArray[np.floating[Any]]
    is_near: NDArray[np.bool_]
    is_copy: NDArray[np.bool_]


class _Search:
    """A search among N distinct images; see `find_duplicates`."""

    def __init__(self, phashes: Sequence[str], read: Callable[[int], Image.Image], threshold: float) -> None:
        self.words, self.read, self.threshold = hash_words(phashes), read, threshold
        self.rows = np.full(len(phashes), -1)  # of `thumbnails`, for each image that was read
        self.thumbnails = np.empty((0, SIDE, SIDE, 3), dtype=np.uint8)
        # How alike near duplicates have to be in a crowd, for each image.
        self.most_share, self.most_bits = np.full(len(phashes), np.inf), np.full(len(phashes), np.inf)

    def groups(self) -> tuple[list[int], list[int]]:
        """Return the numbers of copies and of groups, (N,) each."""
        alone = list(range(len(self.words)))
        near = find_near_hashes(self.words, _NEIGHBORS)
        if not (involved := np.union1d(near.pairs, near.crowded)).size:
            return alone, alone
        self._read(involved)
        pairs = near.pairs
        if near.crowded.size:
            crowd = near.crowded[_most_similar(self.thumbnails[self.rows[near.crowded]], _NEIGHBORS)]
            pairs = np.unique(np.concatenate([pairs, np.sort(crowd, axis=1)]), axis=0)
        plain = self._compare(pairs, register=False)
        self._set_limits(pairs, plain)
        difference, is_near, is_copy = self._judge(pairs, plain)
        order = np.argsort(difference, kind="stable")
        linked = _Linkage(len(alone), lambda asked: self._judge(asked, self._compare(asked, register=False)))
        linked.join(pairs[order], is_copy[order], 2)
        copies = linked.numbers()
        linked.join(pairs[order], is_near[order], 1)
        return copies, linked.numbers()

    def _read(self, indices: Ints) -> None:
        self.rows[indices] = np.arange(len(indices))
        with ThreadPoolExecutor(available_cores()) as pool:
            read = pool.map(lambda index: thumbnail(self.read(index)), indices.tolist())
            self.thumbnails = np.stack([*progress_bar(read, "Comparing similar images", len(indices))])

    def _compare(self, pairs: Ints, register: bool) -> Difference:
        first, second = self.rows[pairs.T]
        return compare(self.thumbnails, first, second, register)

    def _set_limits(self, pairs: Ints, found: Difference) -> None:
        """Set the limits of images in a crowd, by the tenth most similar one, which shows something else."""
        number = min(_OTHERS, max(3, len(self.words) // 3))
        images, shares = pairs.T.ravel(), np.tile(found.share, 2)
        bits = np.tile(hash_distances(self.words, pairs), 2)
        for limits, values, factor in ((self.most_share, shares, _CROWD_SHARE), (self.most_bits, bits, _CROWD_BITS)):
            order = np.lexsort((values, images))
            first = np.flatnonzero(np.diff(images[order], prepend=-1))
            counts = np.diff(first, append=len(order))
            tenth = order[first[counts >= number] + number - 1]
            limits[images[tenth]] = values[tenth] * factor
        is_crowded = self.most_share <= _CROWD_SHARE * _CROWDED
        self.most_share = np.where(is_crowded, self.most_share, np.inf)
        self.most_bits = np.where(is_crowded, np.maximum(self.most_bits, _SURE_CROWD_BITS), np.inf)

    def _judge(self, pairs: Ints, plain: Difference) -> Verdict:
        """Return what pairs are; see `Verdict`."""
        bits = hash_distances(self.words, pairs)
        limits = np.where(bits <= _SURE_BITS, self.threshold, self.threshold / _UNSURE)
        limits = np.minimum(limits, self.most_share[pairs].min(1))
        is_possible = bits <= self.most_bits[pairs].min(1)
        share, peak = plain.share.copy(), plain.peak.copy()
        left = np.flatnonzero(is_possible & (share > limits))
        share[left], peak[left] = self._compare(pairs[left], register=True)
        is_near = (is_possible & (share <= limits)) | (share <= _SAME)
        is_copy = is_near & (share <= max(self.threshold / _COPY, _SAME)) & (peak <= _COPY_PEAK)
        return Verdict(share / limits, is_near, is_copy)


def _most_similar(thumbnails: NDArray[np.uint8], count: int, block: int = 1024) -> Ints:
    """Return pairs (K, 2) of each image with the `count` most similar ones, by the order of their gray values alone."""
    gray = (thumbnails.astype(np.float32) @ np.array([0.299, 0.587, 0.114], dtype=np.float32)).reshape(
        len(thumbnails), -1
    )
    ranks = gray.argsort(1, kind="stable").argsort(1).astype(np.float32)
    ranks -= ranks.mean(1, keepdims=True)
    ranks /= np.linalg.norm(ranks[0])  # the same for all
    count = min(count, len(ranks) - 1)
    pairs = []
    for start in range(0, len(ranks), block):
        similar = ranks[start : start + block] @ ranks.T
        own = np.arange(len(similar))
        similar[own, start + own] = -np.inf
        nearest = np.argpartition(-similar, count - 1, axis=1)[:, :count]
        pairs.append(np.stack([np.repeat(start + own, count), nearest.ravel()], axis=1))
    return np.concatenate(pairs)


class _Linkage:
    """Groups in which each two images are alike (complete linkage): similar pairs do not chain."""

    def __init__(self, count: int, judge: Callable[[Ints], Verdict]) -> None:
        self.members = {index: [index] for index in range(count)}
        self.group = list(range(count))
        self.judge = judge

    def join(self, pairs: Ints, is_alike: NDArray[np.bool_], verdict: int) -> None:
        """Join the groups of pairs, the most similar first, where all other pairs of the groups are alike, too.

        Args:
            pairs: Pairs (K, 2) of images.
            is_alike: Which of them are alike.
            verdict: The part of the answer of `judge` that says so of other pairs.
        """
        alike = {(one, other) for one, other in pairs[is_alike].tolist()}
        unlike = {(one, other) for one, other in pairs[~is_alike].tolist()}
        for one, other in pairs[is_alike].tolist():
            first, second = self.group[one], self.group[other]
            if first == second:
                continue
            across = {(min(pair), max(pair)) for pair in product(self.members[first], self.members[second])}
            if across & unlike:
                continue
            if asked := sorted(across - alike):
                answers = self.judge(np.array(asked))[verdict].tolist()
                alike |= {pair for pair, answer in zip(asked, answers, strict=True) if answer}
                unlike |= {pair for pair, answer in zip(asked, answers, strict=True) if not answer}
            if across <= alike:
                self.members[first] += self.members.pop(second)
                for index in self.members[first]:
                    self.group[index] = first

    def numbers(self) -> list[int]:
        """Return the number of the group of each image."""
        return list(self.group)
