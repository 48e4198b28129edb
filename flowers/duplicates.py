"""Which photos are the same one: byte for byte, or nearly so by their perceptual hash."""

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components
from torch import Tensor

from flowers import atomic, hardware, paths

# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits
# and the first two unlike photos in 84; halfway lies too near the latter for a larger set.
NEAR = 64

_SMALL = 10_000  # hashes: so many are grouped in 0.1 s, and not kept
_BLOCK = 2048  # rows compared with as many others at once: 8 MiB of products, which stay in the processor's cache
_FORMAT = 1  # of the kept groups: another number forgets them all
_KEPT = 32  # files of kept groups: of so many sets of photos


def group(phashes: Sequence[str]) -> list[int]:
    """A group number for each perceptual hash (hexadecimal, N of one length): near ones share it, also through others.

    Exact, and quadratic in the number of distinct hashes: at a quarter of the bits no index spares comparing all pairs.
    What takes long is therefore kept in the cache folder.
    """
    distinct = sorted(set(phashes))
    found = (_components if len(distinct) <= _SMALL else _kept)(distinct)
    number_of = dict(zip(distinct, found.tolist(), strict=True))
    return [number_of[phash] for phash in phashes]


def _kept(distinct: Sequence[str]) -> NDArray[np.int32]:
    """`_components`, computed once for the same hashes."""
    key = hashlib.sha256("\n".join([f"{_FORMAT} {NEAR}", *distinct]).encode()).hexdigest()
    kept_at = paths.cache() / "groups" / key
    numbers = _load(kept_at)
    if numbers is None or len(numbers) != len(distinct):
        numbers = _components(distinct)
        content = numbers.astype("<i4").tobytes()
        with atomic.writing(kept_at) as beside:
            beside.write_bytes(hashlib.sha256(content).digest() + content)
        _forget(kept_at.parent)
    return numbers


def _load(path: Path) -> NDArray[np.int32] | None:
    """Kept numbers; None where the file is missing or not what was written."""
    try:
        content = path.read_bytes()
    except OSError:
        return None
    digest, numbers = content[:32], content[32:]
    return np.frombuffer(numbers, dtype="<i4") if hashlib.sha256(numbers).digest() == digest else None


def _forget(folder: Path) -> None:
    """Removes all but the newest files; another process may do so at the same time."""
    ages = {}
    for path in folder.glob("[!.]*"):
        try:
            ages[path] = path.stat().st_mtime_ns
        except FileNotFoundError:
            continue
    for path in sorted(ages, key=lambda path: ages[path], reverse=True)[_KEPT:]:
        path.unlink(missing_ok=True)


def _components(distinct: Sequence[str]) -> NDArray[np.int32]:
    """The group number of each hash: the connected components of the graph of near pairs."""
    bits = _bits(distinct)
    starts = range(0, len(bits), _BLOCK)
    blocks = [(top, left) for top in starts for left in starts if left >= top]
    threads = torch.get_num_threads()
    # A thread a block, not all threads for one: six times as fast where other processes keep the cores busy.
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        pairs = np.concatenate(list(pool.map(lambda block: _near(bits, *block), blocks)))
    torch.set_num_threads(threads)  # for threads to come; those of the pool changed their own and the default
    return _connected(pairs, len(distinct))


def _bits(phashes: Sequence[str]) -> Tensor:
    """(N, 256) of -1 and 1; products and their sums up to 256 are exact in bfloat16 as well."""
    packed = np.frombuffer(bytes.fromhex("".join(phashes)), dtype=np.uint8).reshape(len(phashes), -1)
    # Where the processor has no instructions for bfloat16, it is slower than float32.
    dtype = torch.bfloat16 if hardware.has_bf16("cpu") else torch.float32
    return torch.from_numpy(np.unpackbits(packed, axis=1)).to(dtype) * 2 - 1


def _near(bits: Tensor, top: int, left: int) -> NDArray[np.int64]:
    """Pairs (K, 2) of rows, at most 2 * _BLOCK, that connect what differs in at most NEAR bits in one block.

    The block compares _BLOCK rows from `top` with as many from `left`.
    """
    agreement = bits.shape[1] - 2 * NEAR  # of two rows that differ in NEAR bits: their product's value
    nodes = np.r_[top : min(top + _BLOCK, len(bits)), left : min(left + _BLOCK, len(bits))]
    products = bits[top : top + _BLOCK] @ bits[left : left + _BLOCK].T
    if left == top:
        products.fill_diagonal_(-bits.shape[1])
    # Reading the rows' largest first is much cheaper than listing what exceeds, and most rows have nothing.
    rows = (products.amax(dim=1) >= agreement).nonzero()[:, 0]
    if not len(rows):
        return np.empty((0, 2), dtype=np.int64)
    hits = (products[rows] >= agreement).nonzero().int()
    ends = torch.stack([rows.int()[hits[:, 0]], hits[:, 1] + len(products)], dim=1).numpy()
    numbers = _connected(ends, len(nodes))
    first = np.unique(numbers, return_index=True)[1][numbers]
    joined = np.flatnonzero(first != np.arange(len(nodes)))
    return np.stack([nodes[joined], nodes[first[joined]]], axis=1)


def _connected(pairs: NDArray[np.int32] | NDArray[np.int64], count: int) -> NDArray[np.int32]:
    """The number of its connected component for each of `count` nodes."""
    graph = coo_array((np.ones(len(pairs), dtype=np.int8), (pairs[:, 0], pairs[:, 1])), shape=(count, count))
    numbers: NDArray[np.int32] = connected_components(graph, directed=False)[1]
    return numbers
