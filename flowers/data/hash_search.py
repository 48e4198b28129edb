"""Find perceptual hashes that are close to each other, among all pairs."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

# Of the 64 lowest of 256 frequencies. Of 250 photos of flower_photos, cropped by 5 % at each side, 98 % differ in at
# most 18; so do 0.1 % of the pairs of different photos.
NEAR_LOW_BITS = 18
NEAR_BITS = 104  # of all 256: 98 % of these crops

# A matrix product in float64 compares six rows at once. Its sums are integers of 48 bits: six fields of 8 bits, each
# with 128 + NEAR_LOW_BITS - d for two hashes that differ in d of the 64 bits. The highest bit of a field says whether d
# is small enough. No field is below 0, and all sums are exact.
_FIELDS = 6
_FIELD_BITS = 8
_NEAR_PER_FIELD = sum(128 << (_FIELD_BITS * field) for field in range(_FIELDS))
# Added to a sum below 2^52, it leaves the sum in the mantissa: the bits of the float are then those of the integer.
_MANTISSA = 2.0**52
_LOW = np.zeros((16, 16), dtype=bool)
_LOW[:8, :8] = True


class NearHashes(NamedTuple):
    """Which hashes are close.

    Attributes:
        pairs: The pairs (K, 2) of close hashes, the smaller index first, but for those of two crowded hashes.
        crowded: The hashes that are close to more others than asked for.
    """

    pairs: NDArray[np.int64]
    crowded: NDArray[np.int64]


def hash_words(phashes: Sequence[str]) -> NDArray[np.uint64]:
    """Return hexadecimal hashes of 256 bits as (N, 4)."""
    return np.frombuffer(bytes.fromhex("".join(phashes)), dtype=np.uint64).reshape(len(phashes), 4)


def hash_distances(words: NDArray[np.uint64], pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the number of bits in which the hashes of each pair (K, 2) differ."""
    distances: NDArray[np.int64] = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1, dtype=np.int64)
    return distances


def find_near_hashes(words: NDArray[np.uint64], most: int, block_rows: int = 2048) -> NearHashes:
    """Return the pairs of hashes that differ in at most NEAR_LOW_BITS of the low bits and in at most NEAR_BITS in all.

    The result is exact. The time is quadratic in the number of hashes: at a quarter of the bits, no index avoids
    comparing all pairs.

    Args:
        words: See `hash_words`.
        most: The most close hashes of a hash; one with more is crowded.
        block_rows: Rows and columns of a block of pairs. With 2048 its products take 6 MiB, which fits into the cache
            of the processor.
    """
    bits = np.unpackbits(words.view(np.uint8), axis=1)[:, _LOW.ravel()]  # (N, 64)
    columns = _columns(bits)
    threads = torch.get_num_threads()
    # One thread per strip is several times as fast as all threads for one block when other processes use the cores.
    starts = range(0, len(bits), block_rows)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        strips = list(pool.map(lambda start: _search_strip(bits, columns, words, start, block_rows, most), starts))
    torch.set_num_threads(threads)  # the threads of the pool have also changed the default for new threads
    pairs = np.sort(np.concatenate([strip.pairs for strip in strips]), axis=1)
    return NearHashes(np.unique(pairs, axis=0), np.concatenate([strip.crowded for strip in strips]))


def _search_strip(
    bits: NDArray[np.uint8], columns: Tensor, words: NDArray[np.uint64], start: int, size: int, most: int
) -> NearHashes:
    """Return the pairs of the `size` hashes from `start` on with all hashes, but for the crowded ones among them."""
    rows = _packed_rows(bits[start : start + size])  # (R, B + 2)
    block = torch.empty(size, rows.shape[1], dtype=torch.float64)  # once for all blocks: new memory takes as long
    products = torch.empty(len(rows) * size, dtype=torch.float64)
    counts = np.zeros(len(rows) * _FIELDS, dtype=np.int64)
    found = []
    for first in range(0, len(bits), size):
        count = min(size, len(bits) - first)
        block[:count] = columns[first : first + count]
        sums = products[: len(rows) * count].view(len(rows), count)
        torch.mm(rows, block[:count].T, out=sums)
        fields = sums.numpy().view(np.int64)  # (R, count)
        # Most rows have no near hash. One pass finds the others.
        candidates = np.flatnonzero(np.bitwise_or.reduce(fields, axis=1) & _NEAR_PER_FIELD)
        index, column = np.nonzero(fields[candidates] & _NEAR_PER_FIELD)
        row, column, hits = candidates[index], first + column, fields[candidates[index], column]
        for field in range(_FIELDS):
            is_hit = (hits & (128 << (_FIELD_BITS * field))) != 0
            own = row[is_hit] + field * len(rows)
            pairs = np.stack([start + own, column[is_hit]], axis=1)
            # The zeros that fill the last field stand for rows of the next strip, or for none.
            is_new = (own < size) & (pairs[:, 0] < len(bits)) & (pairs[:, 0] != pairs[:, 1]) & (counts[own] <= most)
            pairs = pairs[is_new]
            pairs = pairs[hash_distances(words, pairs) <= NEAR_BITS]
            counts += np.bincount(pairs[:, 0] - start, minlength=len(counts))
            found.append(pairs)
    pairs = np.concatenate(found)
    return NearHashes(pairs[counts[pairs[:, 0] - start] <= most], start + np.flatnonzero(counts > most))


def _packed_rows(bits: NDArray[np.uint8]) -> Tensor:
    """Return bits (R, B) as float64 (ceil(R / 6), B + 2), six rows in one; see _FIELDS."""
    count = -(-len(bits) // _FIELDS)
    rows = np.zeros((_FIELDS, count, bits.shape[1] + 2))
    rows.reshape(-1, rows.shape[2])[: len(bits), :-2] = bits
    rows[:, :, -2] = 1
    rows[0, :, -1] = _MANTISSA
    return torch.from_numpy(np.tensordot(2.0 ** (_FIELD_BITS * np.arange(_FIELDS)), rows, axes=1))


def _columns(bits: NDArray[np.uint8]) -> Tensor:
    """Return bits (N, B) as int16 (N, B + 2), the factors of `_packed_rows`; see _FIELDS.

    Two hashes a and b differ in sum(b) - sum(a * (2 b - 1)) bits.
    """
    columns = np.ones((len(bits), bits.shape[1] + 2), dtype=np.int16)
    np.subtract(bits * 2, 1, out=columns[:, :-2], dtype=np.int16)
    columns[:, -2] = 128 + NEAR_LOW_BITS - bits.sum(axis=1, dtype=np.int16)
    return torch.from_numpy(columns)
