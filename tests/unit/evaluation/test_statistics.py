import pytest

from flowers.evaluation.statistics import wilson_interval


def test_the_interval_is_wilsons():
    assert wilson_interval(540, 570) == pytest.approx([0.92588, 0.96286], abs=1e-4)
    assert wilson_interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert wilson_interval(10, 10)[1] == pytest.approx(1)
