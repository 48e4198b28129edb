from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy

from flowers.runtime.files import read_json
from flowers.settings.preprocessing import Preprocessing
from flowers.training.cuda_graphs import can_use_graphs
from flowers.training.experiment import run_training
from flowers.training.stages import FinetuneStage, HeadStage
from tests.helpers import SMALL, configuration


def test_graphs_are_for_whole_images_on_one_gpu_with_one_backward_pass_per_step():
    def is_used(**changes: Any) -> bool:
        on_gpu = {"strategy": SingleDeviceStrategy(torch.device("cpu")), "accumulate_grad_batches": 1}
        finetuning = {
            "stage": FinetuneStage(),
            "device": torch.device("cuda"),
            "network.preprocessing": Preprocessing(),
        }
        return can_use_graphs(Mock(**on_gpu | changes), Mock(**finetuning | changes))

    assert is_used()
    assert not is_used(stage=HeadStage())
    assert not is_used(stage=FinetuneStage(cached_views=1, depth=1))
    assert not is_used(device=torch.device("cpu"))
    assert not is_used(strategy=DDPStrategy())
    assert not is_used(accumulate_grad_batches=2)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_run_with_cuda_graphs_learns_what_a_run_without_learns(painted: Path, tmp_path: Path, precision: str):
    losses = []
    for graphed in ("true", "false"):
        run = tmp_path / graphed
        settings = [f"data.root={painted}", f"run_dir={run}", f"finetune.cuda_graph={graphed}"]
        settings += ["trainer.accelerator=gpu", f"trainer.precision={precision}", "data.batch_size=16"]
        run_training(configuration(*SMALL, *settings))
        losses.append(read_json(run / "result.json")["val"]["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=0.05)
