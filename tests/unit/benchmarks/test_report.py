import pytest

from benchmarks.report import COLUMNS, comparison_row, finetune_stage, head_stage

ROWS = {
    "decoding": {"baseline": 100.0, "flowers": 200.0, "roofline": 1000.0},
    "input pipeline": {"baseline": 50.0, "flowers": 100.0, "roofline": 500.0},
    "forward pass": {"baseline": 10.0, "flowers": 40.0, "roofline": 50.0},
    "head pass": {"baseline": 8.0, "flowers": 20.0, "roofline": 50.0},
    "head epoch": {"baseline": 12.5, "flowers": 0.5, "roofline": None},
    "training step": {"baseline": 2.0, "flowers": 8.0, "roofline": 16.0},
}
COUNTS = (80, 20)


def test_head_stage_is_one_pass_and_epochs_on_cached_features():
    assert head_stage(ROWS, COUNTS, epochs=50) == {"baseline": 625.0, "flowers": 5.0 + 25.0, "roofline": 2.0}
    assert head_stage(ROWS, COUNTS, epochs=0) == dict.fromkeys(COLUMNS, 0.0)


def test_finetune_stage_waits_for_the_slower_of_loading_and_computing_or_for_both():
    overlapped = finetune_stage(ROWS, COUNTS, epochs=2, loaders=1, is_overlapped=True)
    assert overlapped == {"baseline": 2 * (40.0 + 2.0), "flowers": 2 * (10.0 + 0.5), "roofline": 2 * (5.0 + 0.4)}
    in_turns = finetune_stage(ROWS, COUNTS, epochs=2, loaders=1, is_overlapped=False)
    assert in_turns["baseline"] == pytest.approx(overlapped["baseline"] + 2 * 100 / 50)
    assert in_turns["roofline"] == overlapped["roofline"]
    slow_loading = finetune_stage({**ROWS, "input pipeline": ROWS["training step"]}, COUNTS, 1, 1, True)
    assert slow_loading["baseline"] == 100 / 2


def test_comparison_row_has_ratios_of_speeds():
    rates = comparison_row("images/s", {"baseline": 2.0, "flowers": 8.0, "roofline": 16.0})
    assert (rates["flowers/baseline"], rates["flowers/roofline"]) == (4.0, 0.5)
    durations = comparison_row("seconds", {"baseline": 12.5, "flowers": 0.5, "roofline": None})
    assert (durations["flowers/baseline"], durations["flowers/roofline"]) == (25.0, None)
