from pathlib import Path
from typing import Any

import pytest

from flowers.training.results import closing_lines


def result(temperature: float = 1.3, best_epoch: int = 3) -> dict[str, Any]:
    return {"temperature": temperature, "best_epoch": best_epoch, "cost": {"seconds": {"head": 5.0, "finetune": 67.0}}}


def test_closing_lines_name_what_was_written_and_what_comes_next():
    assert closing_lines(result(), 5, Path("runs/mum's")) == [
        "1 min 12 s of training, run folder runs/mum's",
        """next: flowers evaluate 'run=runs/mum'"'"'s', flowers predict 'run=runs/mum'"'"'s' photos=FOLDER, """
        """flowers app 'run=runs/mum'"'"'s'""",
    ]


@pytest.mark.parametrize(("best_epoch", "epochs", "is_said"), [(5, 5, True), (4, 5, False), (1, 1, False)])
def test_closing_lines_say_that_the_run_was_still_improving(best_epoch: int, epochs: int, is_said: bool):
    lines = closing_lines(result(best_epoch=best_epoch), epochs, Path("run"))
    assert ("the last epoch is the best: with more epochs, the accuracy may still grow" in lines) == is_said


def test_closing_lines_say_that_the_probabilities_are_not_calibrated():
    assert closing_lines(result(temperature=1.0), 5, Path("run"))[0].startswith("not calibrated: ")
