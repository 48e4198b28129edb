import logging

import pytest

from flowers.runtime.logging import configure_logging


@pytest.mark.parametrize(
    ("name", "level", "is_shown"),
    [
        ("flowers.training", logging.INFO, True),
        ("lightning.pytorch.utilities.rank_zero", logging.INFO, False),
        ("lightning.pytorch.utilities.rank_zero", logging.WARNING, True),
        ("lightning.pytorch.profilers.profiler", logging.INFO, True),  # trainer.profiler=simple prints its result
    ],
)
def test_configure_logging_shows_what_a_user_asked_for(name: str, level: int, is_shown: bool):
    root, handler = logging.getLogger(), logging.NullHandler()
    root.addHandler(handler)
    try:
        configure_logging()
        record = logging.LogRecord(name, level, __file__, 1, "message", (), None)
        assert bool(handler.filter(record)) is is_shown
    finally:
        root.removeHandler(handler)
