"""Find learning rates by a range test: train with a rate that grows, and watch the loss (arXiv:1506.01186).

The test of the head stage varies `optimizer.lr`. The head stage is then trained with the rate found, and the test of
the fine-tune stage varies `finetune.backbone_lr`, while the head keeps its rate. Tuner.lr_find of Lightning gives all
parameter groups the same rate, and takes the loss of the first steps for that of the rate.
"""

import copy
import logging
import math
import operator
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple, cast

from lightning import Callback, LightningModule, Trainer, seed_everything
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.figures import plot_range_tests
from flowers.runtime.files import atomic_write, write_json
from flowers.runtime.hardware import resolve_trainer_config
from flowers.runtime.logging import configure_logging
from flowers.settings.config import build_parts
from flowers.settings.schema.training import TrainSettings
from flowers.training.build import make_stages, make_task
from flowers.training.callbacks import ProbeHead
from flowers.training.checks import PreparedRun, prepare_run
from flowers.training.input_checks import explained_input_errors
from flowers.training.stage_plan import begin_stage, check_stages, plan_stages, train_stage
from flowers.training.stages import Stage
from flowers.training.task import FineTuning

log = logging.getLogger(__name__)

PICTURE_FILE, FIGURES_FILE = "find_lr.png", "find_lr.json"

_STEPS = 100
_RANGE = 1e-6, 1.0
_DIVERGED = 4.0  # the test ends at so many times the lowest loss, as that of Lightning
_SMOOTHING = 0.9  # weight of the past in the moving average of the loss


class RangeTest(NamedTuple):
    """The loss at each learning rate.

    Attributes:
        stage: The name of the stage that was tested.
        rates: Of the steps, in ascending order.
        losses: Of the same steps, before each.
        smoothed: The moving average of the losses.
        suggestion: The rate that trains best; see `suggest_rate`.
    """

    stage: str
    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    suggestion: float


def find_learning_rates(run: TrainSettings | PreparedRun) -> dict[str, float]:
    """Find the rates of the stages of a run, write a picture and the figures to the run folder, and log them.

    The folder may become that of a run later: it gets nothing else.

    Args:
        run: The settings of `flowers.train`, or what `prepare_run` returned for them.

    Returns:
        The rates by the names of their settings.

    Raises:
        ValueError: The configuration, the images or the run folder cannot be used; or the loss never fell.
    """
    configure_logging()  # Lightning is imported by now
    settings, run_dir = prepare_run(run)
    plans = plan_stages(*make_stages(settings), run_dir)
    data = ImageDataModule.from_settings(**build_parts(settings.data), seed=settings.seed)
    seed_everything(settings.seed)
    trainer = _make_trainer(settings, [])
    task = make_task(settings, data, trainer)
    check_stages(plans, data, trainer)
    probe = [ProbeHead(data, settings.features)] if settings.head.init == "probe" else []
    tests: dict[str, RangeTest] = {}
    for plan in plans:
        setting = plan.stage.rate_setting
        with explained_input_errors(plan.stage, task.network, data, trainer):
            tests[setting] = test = run_range_test(settings, task, data, plan.stage, probe)
            log.info("%s stage: %s=%.2g", plan.stage.name, setting, test.suggestion)
            if plan is not plans[-1]:  # the next stage starts from a trained head
                log.info("training the head stage with it, for the test of the next stage")
                task.optimizer = settings.optimizer.build(lr=test.suggestion)
                train_stage(plan, task, data, _make_trainer(settings, probe))
    found = {setting: float(f"{test.suggestion:.2g}") for setting, test in tests.items()}
    _write(tests, run_dir)
    suggested = " ".join(f"{name}={rate:g}" for name, rate in found.items())
    log.info("suggested: %s\npicture: %s", suggested, run_dir / PICTURE_FILE)
    return found


def run_range_test(
    settings: TrainSettings,
    task: FineTuning,
    data: ImageDataModule,
    stage: Stage,
    callbacks: Sequence[Callback] = (),
) -> RangeTest:
    """Train a stage for some steps with a growing rate, and return the losses. The network stays as it was.

    Args:
        settings: Those of `flowers.train`.
        task: The training, as the stage would start with it.
        data: The images.
        stage: The stage.
        callbacks: Callbacks that prepare the network.
    """
    network, before = task.network, copy.deepcopy(task.network.state_dict())
    reference: float = operator.attrgetter(stage.rate_setting)(settings)
    tested = stage.for_range_test(_STEPS)
    scheduler = partial(_growing, is_tuned=stage.is_tuned, reference=reference)
    trial = FineTuning(network, task.optimizer, scheduler, task.loss, task.seed)
    batches = begin_stage(trial, tested, data, steps=1)
    losses = LossRecorder()
    trainer = _make_trainer(settings, [*callbacks, losses], max_epochs=_STEPS, max_steps=_STEPS)
    trainer.fit(trial, batches)
    network.load_state_dict(before)
    rates = [rate_at(step) for step in range(len(losses.means))]
    smoothed = smooth(losses.means)
    return RangeTest(stage.name, rates, losses.means, smoothed, suggest_rate(stage.name, rates, smoothed))


def rate_at(step: int) -> float:
    """Return the rate of a step: from the lowest to the highest one, in equal ratios."""
    low, high = _RANGE
    return low * math.pow(high / low, step / (_STEPS - 1))


def smooth(losses: Sequence[float]) -> list[float]:
    """Return the moving average of losses, without the bias of its start (as Adam)."""
    average, smoothed = 0.0, []
    for step, loss in enumerate(losses, 1):
        average = _SMOOTHING * average + (1 - _SMOOTHING) * loss
        smoothed.append(average / (1 - _SMOOTHING**step))
    return smoothed


def suggest_rate(stage: str, rates: Sequence[float], smoothed: Sequence[float]) -> float:
    """Return a tenth of the highest rate whose loss is close to the lowest one: from there on, it grows.

    Close is within a tenth of the fall: where the loss is flat, the lowest one is a matter of chance.

    Raises:
        ValueError: The loss grew from the first step on.
    """
    lowest = min(range(len(rates)), key=smoothed.__getitem__, default=0)
    if lowest == 0:
        raise ValueError(
            f"find_lr=true: the loss of the {stage} stage does not fall at any rate: is it trained already?"
        )
    limit = smoothed[lowest] + 0.1 * (max(smoothed[:lowest]) - smoothed[lowest])
    return max(rate for rate, loss in zip(rates, smoothed, strict=True) if loss <= limit) / 10


class LossRecorder(Callback):
    """Record the mean training loss of each optimizer step, and stop once it has grown too much.

    Attributes:
        means: The loss of each step.
    """

    def __init__(self) -> None:
        self.means: list[float] = []
        self._batches: list[float] = []

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Record the loss of the batch."""
        self._batches.append(float(cast(dict[str, Tensor], outputs)["loss"]) * trainer.accumulate_grad_batches)
        if cast(FineTuning, pl_module).progress.steps == len(self.means):
            return  # gradients still accumulate
        loss, self._batches = sum(self._batches) / len(self._batches), []
        if not math.isfinite(loss):
            trainer.should_stop = True
            return
        self.means.append(loss)
        smoothed = smooth(self.means)
        trainer.should_stop |= smoothed[-1] > _DIVERGED * min(smoothed)


def _growing(optimizer: Optimizer, total_steps: int, is_tuned: Callable[[str], bool], reference: float) -> LambdaLR:
    """Let the rates of the groups that a stage is tested for grow, in their proportions; the others stay."""

    def grow(step: int) -> float:
        return rate_at(step) / reference

    def stay(step: int) -> float:
        return 1.0

    return LambdaLR(optimizer, [grow if is_tuned(group["name"]) else stay for group in optimizer.param_groups])


def _make_trainer(settings: TrainSettings, callbacks: Sequence[Callback], **limits: int) -> Trainer:
    arguments = resolve_trainer_config(settings.trainer.to_dict()) | {
        "max_time": None,
        "profiler": None,
        "limit_val_batches": 0,
    }
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(**arguments | quiet | limits, callbacks=list(callbacks))


def _write(tests: Mapping[str, RangeTest], run_dir: Path) -> None:
    """Write the picture and the figures."""
    figures = {setting: test._asdict() for setting, test in tests.items()}
    figure = plot_range_tests(figures)
    run_dir.mkdir(parents=True, exist_ok=True)
    with atomic_write(run_dir / PICTURE_FILE) as partial_file:
        figure.savefig(partial_file, format="png", dpi=150, facecolor="white")
    write_json(figures, run_dir / FIGURES_FILE)
