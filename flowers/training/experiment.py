"""Train a classifier from its settings: the whole run, in the order in which things happen."""

from collections.abc import Sequence
from contextlib import nullcontext
from pathlib import Path

from lightning import Callback, seed_everything

from flowers.runs.run_folder import own_run_dir
from flowers.runtime.distributed import broadcast_object
from flowers.runtime.interrupt import resumable
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.logging import configure_logging
from flowers.runtime.text import shell_setting
from flowers.settings.schema.training import TrainSettings
from flowers.settings.schema.values import parse_duration
from flowers.training.build import make_data, make_profiler, make_stages, make_task, make_trainer
from flowers.training.callbacks import GlobalStep, ProbeHead
from flowers.training.checks import PreparedRun, check_is_free, prepare_run
from flowers.training.cuda_graphs import GraphTraining
from flowers.training.input_checks import check_last_batch, explained_input_errors
from flowers.training.manifest import log_run_summary, log_time_limit, write_run_manifest
from flowers.training.results import finalize_run
from flowers.training.stage_limits import StageTimer
from flowers.training.stage_plan import check_stages, plan_stages, train_stage
from flowers.training.trackers.session import tracked


def run_training(run: TrainSettings | PreparedRun, extra_callbacks: Sequence[Callback] = ()) -> float:
    """Train the stages that are left of a run, and evaluate its best checkpoint.

    Args:
        run: The settings of `flowers.train`, or what `prepare_run` returned for them.
        extra_callbacks: Callbacks in addition to `settings.callbacks`.

    Returns:
        The validation accuracy of the best checkpoint.

    Raises:
        ValueError: The settings, the images or the run folder cannot be used. What needs neither images nor
            network is checked before anything is downloaded, read or written.
    """
    configure_logging(shows_progress=True)  # Lightning is imported by now
    settings, run_dir = prepare_run(run)
    with own_run_dir(run_dir) if is_rank_zero() else nullcontext():
        check_is_free(settings, run_dir)  # another process may have finished a run since
        return _run_stages(settings, run_dir, extra_callbacks)


def _run_stages(settings: TrainSettings, run_dir: Path, extra_callbacks: Sequence[Callback]) -> float:
    plans = plan_stages(*make_stages(settings), run_dir)
    data = make_data(settings, run_dir)
    timer = StageTimer(parse_duration(settings.trainer.max_time) if settings.trainer.max_time else None)
    own_callbacks: list[Callback] = [timer, GlobalStep()]
    if settings.finetune.cuda_graph and not settings.finetune.compile:
        own_callbacks.append(GraphTraining())
    if settings.head.init == "probe":
        own_callbacks.append(ProbeHead(data, settings.features))
    trainer = make_trainer(settings, run_dir, own_callbacks, extra_callbacks)
    seed_everything(settings.seed)
    # The first use of the images: downloads, verifies and splits them.
    settings = settings.replace(data=settings.data.replace(bit_depth=data.bit_depth or settings.data.bit_depth))
    task = make_task(settings, data, trainer)
    check_stages(plans, data, trainer, settings.reject)
    for plan in plans:
        check_last_batch(plan.stage, task.network, data, trainer)
    write_run_manifest(settings, run_dir, data)
    log_run_summary(data, task, plans, trainer)
    with resumable(f"python -m flowers.train {shell_setting('resume', run_dir)}"), tracked(trainer, settings):
        for plan in plans:
            trainer.profiler = make_profiler(settings.trainer.profiler, run_dir, plan.stage.name)  # type: ignore[attr-defined]
            with explained_input_errors(plan.stage, task.network, data, trainer):
                train_stage(plan, task, data, trainer)
            if broadcast_object(timer.is_over):
                log_time_limit(settings, run_dir, task.progress.epochs_done)
                break
        result = finalize_run(run_dir, data, trainer, timer)
    return float(result["val"]["accuracy"])
