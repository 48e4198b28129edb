import pytest
import torch

from flowers.training import lr_schedules
from flowers.training.lr_schedules import constant, cosine, one_cycle, step
from flowers.training.schedule_position import Schedule


def rates(schedule: Schedule, steps: int = 100) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = schedule(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return seen


def test_constant_keeps_the_rate():
    assert set(rates(constant)) == {1.0}


def test_step_divides_the_rate_by_ten_after_each_third():
    seen = rates(step)
    assert [seen[0], seen[50], seen[99]] == pytest.approx([1, 0.1, 0.01])


def test_cosine_warms_up_linearly_and_decays_to_almost_zero():
    seen = rates(cosine)
    assert seen[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert seen[5:] == sorted(seen[5:], reverse=True)
    assert seen[-1] < 0.001


def test_one_cycle_peaks_at_the_configured_rate_and_ends_near_zero():
    seen = rates(one_cycle)
    assert max(seen) == pytest.approx(1.0, abs=1e-3)
    assert seen[-1] < 1e-4


@pytest.mark.parametrize("name", ["constant", "step", "cosine", "one_cycle"])
def test_schedules_accept_a_stage_of_one_step(name: str):
    assert len(rates(getattr(lr_schedules, name), steps=1)) == 1
