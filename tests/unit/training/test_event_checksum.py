import random

import pytest
from tensorboard.compat.tensorflow_stub import pywrap_tensorflow

from flowers.training.event_checksum import masked_crc32c


@pytest.mark.parametrize("length", [0, 3, 8191, 8192, 8193, 8448, 16384, 65537, 100_000])
def test_masked_crc32c_is_that_of_tensorboard(length: int):
    data = random.Random(length).randbytes(length)
    assert masked_crc32c(data) == pywrap_tensorflow.masked_crc32c(data)
