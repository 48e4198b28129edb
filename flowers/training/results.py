"""The end of a run: evaluate the best checkpoint and write result.json."""

import logging
import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import Any, cast

from lightning import Trainer

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.calibration import choose_temperature
from flowers.evaluation.evaluator import fit_rejection
from flowers.evaluation.metrics import metric_values, score, score_line
from flowers.features.extractor import Extraction, extract_features
from flowers.models.checkpoint_format import CHECKPOINT_FORMAT
from flowers.runs.predictions import Predictions, predict_features
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, PREDICTIONS_DIR, REJECTION_FILE, RESULT_FILE, provenance
from flowers.runtime.distributed import broadcast_object
from flowers.runtime.files import write_json
from flowers.runtime.hardware import device_name, peak_memory_bytes
from flowers.runtime.launch import is_rank_zero
from flowers.runtime.text import readable_duration
from flowers.training.callbacks import ImageLogger
from flowers.training.checkpointing import RelocatableModelCheckpoint
from flowers.training.fsdp import FSDP2Strategy
from flowers.training.pictures import log_class_curves
from flowers.training.stage_limits import StageTimer
from flowers.training.task import FineTuning
from flowers.training.trackers.tensorboard import log_embeddings, log_hyperparameters
from flowers.training.trackers.tracker import each_tracker

log = logging.getLogger(__name__)


def finalize_run(run_dir: Path, data: ImageDataModule, trainer: Trainer, timer: StageTimer) -> dict[str, Any]:
    """Evaluate the best checkpoint on val, and on test if there is one, and write predictions and result.json.

    Returns:
        The content of result.json.
    """
    trainer.strategy.barrier()  # the first rank may still be writing the checkpoint
    if not broadcast_object((run_dir / BEST_CHECKPOINT).exists()):
        log.warning("%s is missing: the last epoch takes its place", run_dir / BEST_CHECKPOINT)
        trainer.save_checkpoint(run_dir / BEST_CHECKPOINT, weights_only=True)
        trainer.strategy.checkpoint_io.teardown()  # writes what waits in memory
    run = Run(run_dir / BEST_CHECKPOINT)
    if isinstance(trainer.strategy, FSDP2Strategy):  # the trainer's model is in shards
        model = run.network()
    else:
        model = cast(FineTuning, trainer.lightning_module).network
        model.load_state_dict(run.content["state_dict"])
    how = run.extraction(model)
    datasets = {split: data.dataset(split) for split in ("val", "test") if data.counts(split)}
    features = {split: extract_features(model, data, dataset, split, how) for split, dataset in datasets.items()}
    predictions = {split: predict_features(model, features[split], dataset) for split, dataset in datasets.items()}
    reject = run.settings.reject
    rejection = fit_rejection(model, data, features["val"], how, reject) if reject else None
    photos_per_second = {stage: timer.images[stage] / timer.training[stage] for stage in timer.images}
    result = make_result(predictions, run, how, timer.seconds)
    result["cost"]["photos_per_second"] = photos_per_second
    if is_rank_zero():
        (run_dir / REJECTION_FILE).unlink(missing_ok=True)  # of another best checkpoint, if this run was resumed
        if rejection is not None:
            rejection.save(run_dir)
        write_result(run_dir, result, predictions)
    if any(isinstance(callback, ImageLogger) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        log_embeddings(trainer, features["val"], predictions["val"], data.source)
        log_class_curves(trainer, predictions["val"])
    log_hyperparameters(trainer, run.settings.to_dict(), metric_values(predictions["val"]))
    each_tracker(trainer, lambda tracker: tracker.log_best_checkpoint(run_dir / BEST_CHECKPOINT))
    for logger in trainer.loggers:
        logger.finalize("success")  # its thread would write later, when the folder may be gone
    for split in datasets:
        log.info(score_line(split, result[split]))
    _explain_other_loss(trainer, result["val"]["loss"])
    log.info("\n".join(closing_lines(result, cast(FineTuning, trainer.lightning_module).progress.epochs_done, run_dir)))
    return result


def closing_lines(result: Mapping[str, Any], epochs: int, run_dir: Path) -> list[str]:
    """Return what a run says at its end: what could be better, what it wrote, and what comes next.

    Args:
        result: The content of result.json.
        epochs: The epochs that the run has trained.
        run_dir: The run folder.
    """
    lines = []
    if result["temperature"] == 1:
        lines += ["not calibrated: a temperature makes the probabilities of other photos no better"]
    if epochs > 1 and result["best_epoch"] == epochs:
        lines += ["the last epoch is the best: with more epochs, the accuracy may still grow"]
    run = shlex.quote(f"run={run_dir}")
    seconds = readable_duration(sum(result["cost"]["seconds"].values()))
    lines += [
        f"{seconds} of training, run folder {run_dir}",
        f"next: flowers evaluate {run}, flowers predict {run} photos=FOLDER, flowers app {run}",
    ]
    return lines


def make_result(
    predictions: Mapping[str, Predictions], run: Run, how: Extraction, seconds: Mapping[str, float]
) -> dict[str, Any]:
    """Return the content of result.json.

    Args:
        predictions: The predictions of the best checkpoint by split; "val" is one of them.
        run: The run with the best checkpoint.
        how: How the predictions were computed; with int8, the precision is that of its reference.
        seconds: The seconds of each stage.
    """
    hparams, val = run.hparams, predictions["val"]
    return {
        "format_version": CHECKPOINT_FORMAT,
        **{split: score(predicted) for split, predicted in predictions.items()},
        "temperature": choose_temperature(val),
        "best_epoch": run.content["epoch"] + 1,
        "classes": hparams.classes,
        "seed": run.settings.seed,
        "digest": {"split": hparams.split_digest, "weights": hparams.weights_digest},
        "device": device_name(how.device),
        "precision": how.precision,
        "engine": how.settings.engine,
        **provenance(),
        "cost": {"seconds": dict(seconds), "peak_memory_bytes": peak_memory_bytes(how.device)},
    }


def write_result(run_dir: Path, result: Mapping[str, Any], predictions: Mapping[str, Predictions]) -> None:
    """Write the predictions and, last, result.json."""
    for split, predicted in predictions.items():
        predicted.save(run_dir / PREDICTIONS_DIR / f"{split}.csv")
    write_json(result, run_dir / RESULT_FILE)


def _explain_other_loss(trainer: Trainer, loss: float) -> None:
    """Log why `loss` differs from the validation loss that training printed for the best epoch, if by over 0.1 %."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, RelocatableModelCheckpoint) and callback.monitor == "val/accuracy":
            difference = abs(callback.best_loss - loss)
            if 1e-3 * loss < difference < float("inf"):
                log.info(
                    "training printed a loss of %.4f for this epoch: the final pass folds BatchNorm into the "
                    "convolutions, which rounds differently",
                    callback.best_loss,
                )
