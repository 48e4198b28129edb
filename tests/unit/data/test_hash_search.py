import random

import numpy as np
import pytest
import torch

from flowers.data.hash_search import NEAR_BITS, NEAR_LOW_BITS, find_near_hashes, hash_distances, hash_words

LOW = sum(1 << (255 - 16 * row - column) for row in range(8) for column in range(8))


def random_hashes(count: int) -> list[int]:
    """Return hashes of which every fourth differs from an earlier one in some of the bits, many of them low ones."""
    rng = random.Random(0)
    low = [bit for bit in range(256) if LOW >> bit & 1]
    bits: list[int] = []
    for number in range(count):
        if number % 4 == 3:
            flips = {
                *rng.sample(low, rng.choice([0, 1, 17, 18, 19, 20])),
                *rng.sample(range(256), rng.choice([0, 60, 90])),
            }
            bits.append(rng.choice(bits) ^ sum(1 << flip for flip in flips))
        else:
            bits.append(rng.getrandbits(256))
    return bits


def as_words(hashes: list[int]) -> np.ndarray:
    return hash_words([f"{value:064x}" for value in hashes])


@pytest.mark.parametrize("block_rows", [6, 7, 100, 2048])
def test_find_near_hashes_agrees_with_brute_force_for_any_block_size(block_rows: int):
    hashes = random_hashes(200)
    expected = [
        [one, other]
        for one in range(200)
        for other in range(one + 1, 200)
        if ((hashes[one] ^ hashes[other]) & LOW).bit_count() <= NEAR_LOW_BITS
        and (hashes[one] ^ hashes[other]).bit_count() <= NEAR_BITS
    ]
    found = find_near_hashes(as_words(hashes), 16, block_rows)
    assert len(expected) > 10
    assert found.pairs.tolist() == expected
    assert found.crowded.tolist() == []


@pytest.mark.parametrize("block_rows", [7, 2048])
def test_find_near_hashes_gives_no_pairs_of_crowded_hashes(block_rows: int):
    rng = random.Random(1)
    crowd = [1 << number for number in range(6)]
    hashes = [*crowd, *(rng.getrandbits(256) for _ in range(20))]
    assert find_near_hashes(as_words(hashes), 5, block_rows).pairs.tolist() == [
        [one, other] for one in range(6) for other in range(one + 1, 6)
    ]
    found = find_near_hashes(as_words(hashes), 4, block_rows)
    assert found.pairs.tolist() == []
    assert found.crowded.tolist() == [0, 1, 2, 3, 4, 5]


def test_hash_distances_counts_bits_and_the_search_restores_the_threads_of_torch():
    words = as_words([0, 2**256 - 1, 7])
    assert hash_distances(words, np.array([[0, 1], [0, 2], [1, 2]])).tolist() == [256, 3, 253]
    threads = torch.get_num_threads()
    find_near_hashes(words, 16)
    assert torch.get_num_threads() == threads
