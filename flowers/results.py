"""How good a model is on a split, with an interval, and the file that says so."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from lightning import Trainer
from rich import box
from rich.table import Table
from scipy.stats import binomtest
from torch.nn.functional import cross_entropy
from torch.utils.data import DataLoader

from flowers import atomic, checkpoints, hardware, run, tensorboard
from flowers.callbacks import Clock
from flowers.data import FlowersData
from flowers.model import FlowerClassifier

log = logging.getLogger(__name__)

RESULT = "result.json"


def conclude(run_dir: Path, data: FlowersData, trainer: Trainer, clock: Clock) -> dict[str, Any]:
    """Scores the best checkpoint on val, and on test where there is one; writes result.json, logs and returns it."""
    kept = checkpoints.read(run_dir / checkpoints.BEST)
    config = kept["hyper_parameters"]["config"]
    scores = {
        split: score(checkpoints.load(run_dir / checkpoints.BEST), data.batches(data.dataset(split)), config["trainer"])
        for split in ("val", "test")
        if data.counts(split)
    }
    result = scores | {
        "best_epoch": kept["epoch"] + 1,
        "classes": data.classes,
        "seed": config["seed"],
        "digest": {"split": data.split_digest, "weights": kept["hyper_parameters"]["weights_digest"]},
        "device": hardware.name(trainer.strategy.root_device),
        "precision": trainer.precision,
        **run.provenance(),
        "cost": {
            "seconds": dict(clock.seconds),
            "photos_per_second": {stage: clock.photos[stage] / clock.training[stage] for stage in clock.photos},
            "peak_memory_bytes": hardware.peak_memory(trainer.strategy.root_device),
        },
    }
    if run.is_first_process():
        save(result, run_dir / RESULT)
    tensorboard.log_hyperparameters(
        trainer, config, {f"best/{name}": scores["val"][name] for name in ("accuracy", "loss")}
    )
    for split, scored in scores.items():
        log.info(line(split, scored))
    log.info("%.1f s of training, run folder %s", sum(clock.seconds.values()), run_dir)
    return result


def score(model: FlowerClassifier, batches: DataLoader[Any], trainer_settings: Mapping[str, Any]) -> dict[str, Any]:
    """Accuracy, mean cross-entropy loss, number of photos, and the accuracy's 95 % interval, on one device."""
    bare: dict[str, Any] = {"logger": False, "enable_checkpointing": False, "enable_model_summary": False}
    settings = {name: trainer_settings[name] for name in ("accelerator", "precision", "deterministic")}
    trainer = Trainer(**hardware.settled(settings), devices=1, enable_progress_bar=False, **bare)
    predictions = trainer.predict(model, batches)
    assert predictions is not None, "predict returns what it predicts"
    logits = torch.cat([logits for logits, _ in predictions]).double()
    labels = torch.cat([labels for _, labels in predictions])
    correct = int((logits.argmax(1) == labels).sum())
    return {
        "accuracy": correct / len(labels),
        "loss": cross_entropy(logits, labels).item(),
        "n": len(labels),
        "interval": interval(correct, len(labels)),
    }


def interval(correct: int, n: int) -> list[float]:
    """Wilson's 95 % interval of an accuracy."""
    low, high = binomtest(correct, n).proportion_ci(0.95, method="wilson")
    return [float(low), float(high)]


def save(result: Mapping[str, Any], path: str | Path) -> None:
    """Writes JSON for people: indented, whole or not at all."""
    atomic.write_text(Path(path), json.dumps(result, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def load(path: str | Path) -> dict[str, Any]:
    """Reads what `save` wrote."""
    return dict(json.loads(Path(path).read_text(encoding="utf-8")))


def table(scores: Mapping[str, Any]) -> Table:
    """The scores for people, a row each."""
    rows = Table("photos", "accuracy", "95 % interval", "loss", "n", box=box.SIMPLE)
    for name, scored in scores.items():
        low, high = scored["interval"]
        cells = f"{scored['accuracy']:.6f}", f"{low:.4f} to {high:.4f}", f"{scored['loss']:.4f}", str(scored["n"])
        rows.add_row(name, *cells)
    return rows


def line(split: str, scored: Mapping[str, Any]) -> str:
    """A score for people: `val accuracy 0.9470 (95 % interval 0.9254 to 0.9626), loss 0.1710, n = 570`."""
    low, high = scored["interval"]
    return (
        f"{split} accuracy {scored['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scored['loss']:.4f}, n = {scored['n']}"
    )
