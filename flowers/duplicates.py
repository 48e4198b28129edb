"""Which photos are the same one: byte for byte, or nearly so by their perceptual hash."""

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy.sparse import coo_array
from scipy.sparse.csgraph import connected_components

# Of 256 bits. Among the 5.4 million pairs of flower_photos, re-encodings and shots of one burst differ in 0 to 58 bits
# and the first two unlike photos in 84; halfway lies too near the latter for a larger set.
NEAR = 64

_BLOCK = 4096  # rows compared at once: 64 MiB of distances


def group(phashes: Sequence[str]) -> list[int]:
    """A group number for each perceptual hash (hexadecimal, N of one length): near ones share it, also through others.

    Compares all pairs as one matrix product: exact, and quadratic in the number of distinct hashes.
    """
    distinct, which = np.unique(np.asarray(phashes), return_inverse=True)
    pairs = np.array([pair for block in _near(_bits(distinct)) for pair in block.tolist()], dtype=int).reshape(-1, 2)
    graph = coo_array((np.ones(len(pairs)), (pairs[:, 0], pairs[:, 1])), shape=(len(distinct), len(distinct)))
    return [int(number) for number in connected_components(graph, directed=False)[1][which]]


def _bits(phashes: NDArray[np.str_]) -> NDArray[np.float32]:
    """(N, 256) of -1 and 1."""
    packed = np.array([list(bytes.fromhex(phash)) for phash in phashes.tolist()], dtype=np.uint8)
    return np.unpackbits(packed, axis=1).astype(np.float32) * 2 - 1


def _near(bits: NDArray[np.float32]) -> Iterator[NDArray[np.int64]]:
    """Pairs (K, 2) of rows that differ in at most NEAR bits."""
    agreement = bits.shape[1] - 2 * NEAR  # of two rows that differ in NEAR bits: their product's value
    for start in range(0, len(bits), _BLOCK):
        rows, columns = np.nonzero(bits[start : start + _BLOCK] @ bits[start:].T >= agreement)
        yield np.stack([rows, columns], axis=1)[rows < columns] + start
