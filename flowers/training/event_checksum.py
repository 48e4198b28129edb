"""The checksum of the event files of TensorBoard, computed by NumPy.

TensorBoard computes it byte by byte in Python. For the images of a short run, this takes as long as the training.
"""

import numpy as np
from numpy.typing import NDArray
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow
from tensorboard.summary.writer import record_writer

_TABLE = np.array(pywrap_tensorflow.CRC_TABLE, np.uint32)
_BITS = np.arange(32, dtype=np.uint32)
_ROW = 256  # bytes of a part; a power of two
_SMALL = 32 * _ROW  # fewer bytes take TensorBoard less time


def use_fast_checksums() -> None:
    """Have TensorBoard compute the checksum of each record by `masked_crc32c`."""
    record_writer.masked_crc32c = masked_crc32c


def masked_crc32c(data: bytes) -> int:
    """Return the checksum of a record: its CRC-32C, rotated, plus a constant."""
    if len(data) < _SMALL:
        return int(pywrap_tensorflow.masked_crc32c(data))
    checksum = _crc32c(data)
    return (((checksum >> 15) | (checksum << 17)) + 0xA282EAD8) & 0xFFFFFFFF


def _crc32c(data: bytes) -> int:
    """Return the CRC-32C: of parts of the data, all at the same time, which are then put together in pairs.

    Zeros before the data leave a state of 0 as it is. An initial state of ones is that of 0, with the first four bytes
    inverted.
    """
    count = -(-len(data) // _ROW)
    padded = np.zeros(count * _ROW, np.uint8)
    padded[-len(data) :] = np.frombuffer(data, np.uint8)
    padded[-len(data) :][:4] ^= 255
    states = np.zeros(1 << (count - 1).bit_length(), np.uint32)
    parts = states[-count:]
    for column in np.ascontiguousarray(padded.reshape(count, _ROW).T):
        parts[:] = _TABLE[(parts ^ column) & 255] ^ (parts >> 8)
    one_bit = np.left_shift(np.uint32(1), _BITS)
    after_zeros = _TABLE[one_bit & 255] ^ (one_bit >> 8)  # what a byte of 0 makes of each bit of a state
    for _ in range(_ROW.bit_length() - 1):
        after_zeros = _apply(after_zeros, after_zeros)
    while len(states) > 1:
        states, after_zeros = _apply(after_zeros, states[::2]) ^ states[1::2], _apply(after_zeros, after_zeros)
    return int(states[0]) ^ 0xFFFFFFFF


def _apply(columns: NDArray[np.uint32], states: NDArray[np.uint32]) -> NDArray[np.uint32]:
    """Return the product of a matrix of bits, given by its 32 columns, with each state."""
    return np.asarray(np.bitwise_xor.reduce(columns * ((states[:, None] >> _BITS) & 1), axis=1))
