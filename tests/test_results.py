import pytest

from flowers.results import interval


def test_the_interval_is_wilsons():
    assert interval(540, 570) == pytest.approx([0.92588, 0.96286], abs=1e-4)
    assert interval(0, 10)[0] == pytest.approx(0, abs=1e-12)
    assert interval(10, 10)[1] == pytest.approx(1)
