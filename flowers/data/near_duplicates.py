"""Group images that are nearly identical, by their perceptual hashes."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flowers.runtime.files import cache_dir, evict_least_recently_used, optional_cache, read_cache, write_cache

# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits;
# the two most similar images of different scenes differ in 84. The middle, 71, is too close to that for larger sets.
NEAR_DUPLICATE_BITS = 64

_GROUPS_FORMAT = 1  # of the cached groups; another number makes all of them stale

# A matrix product in float64 compares six rows at once. Its sums are integers of 48 bits: six fields of 8 bits, each
# with 128 + NEAR_DUPLICATE_BITS - d for two hashes that differ in d of the bits that are compared. The highest bit of a
# field says whether d is small enough. With at most as many bits, no field is below 0, and all sums are exact.
_FIELDS = 6
_FIELD_BITS = 8
_SCREENED_BITS = 128 + NEAR_DUPLICATE_BITS
_NEAR_PER_FIELD = sum(128 << (_FIELD_BITS * field) for field in range(_FIELDS))
# Added to a sum below 2^52, it leaves the sum in the mantissa: the bits of the float are then those of the integer.
_MANTISSA = 2.0**52


def group_hashes(
    phashes: Sequence[str], block_rows: int = 2048, cache_above: int = 10_000, cache_bytes: int = 64 * 2**20
) -> list[int]:
    """Return a group number for each perceptual hash.

    Two hashes that differ in at most NEAR_DUPLICATE_BITS bits share a group, as do hashes that are connected through
    others. The result is exact. The time is quadratic in the number of distinct hashes: at a quarter of the bits, no
    index avoids comparing all pairs. Results for large sets are therefore cached.

    Args:
        phashes: Hexadecimal hashes of 256 bits.
        block_rows: Rows and columns of a block of pairs. With 2048 its products take 6 MiB, which fits into the cache
            of the processor.
        cache_above: Number of distinct hashes above which the result is cached; 10,000 take 0.3 s to group.
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
    content = read_cache(path)
    if content is not None and len(content) == 4 * len(distinct):
        return np.frombuffer(content, dtype="<i4")
    numbers = _components(distinct, block_rows)
    if write_cache(path, numbers.astype("<i4").tobytes()):
        with optional_cache(path.parent):
            evict_least_recently_used(filter(type(path).is_file, path.parent.glob("[!.]*")), cache_bytes)
    return numbers


def _components(distinct: Sequence[str], block_rows: int) -> NDArray[np.int32]:
    """Return the group number of each hash: its connected component in the graph of near pairs."""
    packed = np.frombuffer(bytes.fromhex("".join(distinct)), dtype=np.uint8).reshape(len(distinct), -1)
    words = packed.view(np.uint64)  # (N, 4)
    # The last bits: of the pairs of flower_photos, half as many are near in these as in the first ones.
    bits = np.unpackbits(packed, axis=1)[:, -_SCREENED_BITS:]
    columns = _columns(bits)
    threads = torch.get_num_threads()
    # One thread per strip is several times as fast as all threads for one block when other processes use the cores.
    starts = range(0, len(bits), block_rows)
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        strips = list(pool.map(lambda start: _near_pairs(bits, columns, words, start, block_rows), starts))
    torch.set_num_threads(threads)  # the threads of the pool have also changed the default for new threads
    return _connected_components(np.concatenate(strips), len(distinct))


def _near_pairs(
    bits: NDArray[np.uint8], columns: Tensor, words: NDArray[np.uint64], start: int, size: int
) -> NDArray[np.int64]:
    """Return pairs (K, 2) that connect all near hashes among a strip of pairs.

    The strip compares the `size` hashes from `start` on with all hashes from `start` on.

    Args:
        bits: Some bits of each hash, (N, B) with B up to _SCREENED_BITS.
        columns: `_columns(bits)`.
        words: All bits of each hash, (N, 4).
        start: The first hash of the strip.
        size: Rows and columns of a block.
    """
    rows = _packed_rows(bits[start : start + size])  # (R, B + 2)
    block = torch.empty(size, rows.shape[1], dtype=torch.float64)  # once for all blocks: new memory takes as long
    products = torch.empty(len(rows) * size, dtype=torch.float64)
    found = []
    for first in range(start, len(bits), size):
        count = min(size, len(bits) - first)
        block[:count] = columns[first : first + count]
        sums = products[: len(rows) * count].view(len(rows), count)
        torch.mm(rows, block[:count].T, out=sums)
        fields = sums.numpy().view(np.int64)  # (R, count)
        # Most rows have no near hash. One pass finds the others.
        candidates = np.flatnonzero(np.bitwise_or.reduce(fields, axis=1) & _NEAR_PER_FIELD)
        index, column = np.nonzero(fields[candidates] & _NEAR_PER_FIELD)
        row, column, hits = start + candidates[index], first + column, fields[candidates[index], column]
        for field in range(_FIELDS):
            is_hit = (hits & (128 << (_FIELD_BITS * field))) != 0
            pairs = np.stack([row[is_hit] + field * len(rows), column[is_hit]], axis=1)
            # Each pair once. The zeros that fill the last field stand for rows of the next strip, or for none.
            pairs = pairs[pairs[:, 0] < pairs[:, 1]]
            distances = np.bitwise_count(words[pairs[:, 0]] ^ words[pairs[:, 1]]).sum(axis=1)
            pairs = pairs[distances <= NEAR_DUPLICATE_BITS]
            found.append(pairs if len(pairs) < size else _spanning_pairs(pairs))
    return np.concatenate(found)


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
    columns[:, -2] = _SCREENED_BITS - bits.sum(axis=1, dtype=np.int16)
    return torch.from_numpy(columns)


def _spanning_pairs(pairs: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return fewer pairs than nodes that connect the same nodes."""
    nodes, ends = np.unique(pairs, return_inverse=True)
    numbers = _connected_components(ends.reshape(-1, 2), len(nodes))
    first = np.unique(numbers, return_index=True)[1][numbers]
    joined = np.flatnonzero(first != np.arange(len(nodes)))
    return np.stack([nodes[joined], nodes[first[joined]]], axis=1)


def _connected_components(pairs: NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """Return the number of the connected component of each of `count` nodes."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return numbers
