import os
import threading
from concurrent.futures import ThreadPoolExecutor

import pytest

from flowers.runtime.memory_budget import MemoryBudget


def test_memory_budget_holds_over_all_threads():
    budget, used, most, lock = MemoryBudget(10), [], [], threading.Lock()

    def work(size: int) -> None:
        with budget.share(size):
            with lock:
                used.append(size)
                most.append(sum(used))
            with lock:
                used.remove(size)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, [4, 3, 6, 10, 1] * 40))
    assert len(most) == 200
    assert max(most) <= 10


def test_memory_budget_lets_a_large_share_work_alone():
    budget, is_done = MemoryBudget(10), threading.Event()

    def small() -> None:
        with budget.share(1):
            is_done.set()

    with ThreadPoolExecutor(1) as pool:
        with budget.share(100):
            pool.submit(small)
            assert not is_done.wait(0.05)
        assert is_done.wait(10)


def test_memory_budget_is_given_back_after_an_error():
    budget = MemoryBudget(10)
    with pytest.raises(ZeroDivisionError), budget.share(10):
        raise ZeroDivisionError
    with budget.share(10):
        pass


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded")
def test_memory_budget_is_whole_again_in_a_forked_process():
    budget = MemoryBudget(10)
    with budget.share(10):
        child = os.fork()
        if not child:
            with budget.share(10):
                os._exit(7)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 7
