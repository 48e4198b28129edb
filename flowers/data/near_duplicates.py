"""Group images that are nearly identical, by their perceptual hashes."""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flowers.runtime.files import atomic_write, cache_dir, evict_least_recently_used
from flowers.runtime.hardware import has_native_bf16

# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits;
# the two most similar images of different scenes differ in 84. The middle, 71, is too close to that for larger sets.
NEAR_DUPLICATE_BITS = 64

_GROUPS_FORMAT = 1  # of the cached groups; another number makes all of them stale


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
        pairs = np.concatenate(list(pool.map(lambda block: _near_pairs(bits, block[0], block[1], block_rows), blocks)))
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
