"""How good a model is on a split, with an interval, and the file that says so."""

import json
import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Trainer
from rich import box
from rich.table import Table
from scipy.stats import binomtest
from torch import Tensor
from torch.nn.functional import cross_entropy

from flowers import atomic, backbone, calibration, checkpoints, hardware, processes, run, tensorboard
from flowers.callbacks import Clock
from flowers.data import FlowersData
from flowers.features import Features
from flowers.model import FlowerClassifier
from flowers.photoset import PhotoSet
from flowers.pictures import Pictures
from flowers.predictions import FOLDER, Predictions
from flowers.sharded import Sharded

log = logging.getLogger(__name__)

RESULT = "result.json"


def conclude(run_dir: Path, data: FlowersData, trainer: Trainer, clock: Clock) -> dict[str, Any]:
    """Scores the best checkpoint on val, and on test where there is one; writes result.json, logs and returns it."""
    trainer.strategy.barrier()  # the first process may still be writing it
    kept = checkpoints.read(run_dir / checkpoints.BEST)
    config = kept["hyper_parameters"]["config"]
    if isinstance(trainer.strategy, Sharded):
        model = checkpoints.load(run_dir / checkpoints.BEST)
    else:
        model = cast(FlowerClassifier, trainer.lightning_module)
        model.load_state_dict(kept["state_dict"])
    asked = {split: data.dataset(split) for split in ("val", "test") if data.counts(split)}
    features = {split: embed(model, data, dataset, split, config) for split, dataset in asked.items()}
    said = {split: predict(model, features[split], dataset) for split, dataset in asked.items()}
    scores = {split: score(predictions) for split, predictions in said.items()}
    result = scores | {
        "temperature": calibration.temperature(said["val"].logits, said["val"].labels),
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
    if processes.is_first():
        for split, predictions in said.items():
            predictions.save(run_dir / FOLDER / f"{split}.csv")
        save(result, run_dir / RESULT)
    if any(isinstance(callback, Pictures) for callback in trainer.callbacks):  # type: ignore[attr-defined]
        tensorboard.log_embeddings(trainer, features["val"], said["val"], data.root)
    tensorboard.log_hyperparameters(
        trainer, config, {f"best/{name}": scores["val"][name] for name in ("accuracy", "loss")}
    )
    for split, scored in scores.items():
        log.info(line(split, scored))
    log.info("%.1f s of training, run folder %s", sum(clock.seconds.values()), run_dir)
    return result


def embed(
    model: FlowerClassifier,
    data: FlowersData,
    dataset: PhotoSet,
    name: str,
    config: Mapping[str, Any],
) -> Tensor:
    """A model's features (N, F) of photos, computed on one device, on the CPU.

    The backbone is taken as frozen, as in the head stage; features of one that was never trained are kept.

    Args:
        model: whose backbone is asked; it is left in evaluation mode.
        data: how photos are read.
        dataset: the photos, as in validation.
        name: of the photos, for people.
        config: `trainer` and `features` of a run's configuration.
    """
    settings = hardware.settled(config["trainer"])
    model.eval().to(hardware.device(settings["accelerator"]))
    keeping = dict(config["features"])
    keeping["cache"] = keeping["cache"] and backbone.digest(model.backbone) == model.hparams["weights_digest"]
    return Features(data, model, str(settings["precision"]), **keeping).of(dataset, name)


@torch.inference_mode()
def predict(model: FlowerClassifier, features: Tensor, dataset: PhotoSet) -> Predictions:
    """What a model's head says of features (N, F) of the photos of `dataset`."""
    logits = model(features.float().to(model.device)).double().cpu()
    return Predictions(dataset.paths, torch.tensor(dataset.labels), logits, model.classes)


def score(predictions: Predictions) -> dict[str, Any]:
    """Accuracy, mean cross-entropy loss, number of photos, and the accuracy's 95 % interval."""
    correct = int(predictions.correct.sum())
    return {
        "accuracy": correct / len(predictions),
        "loss": cross_entropy(predictions.logits, predictions.labels).item(),
        "n": len(predictions),
        "interval": interval(correct, len(predictions)),
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


def tables(name: str, scores: Mapping[str, Any]) -> list[Table]:
    """`metrics.detailed` of the photos `name` for people: as a whole, by class, and which is taken for which."""
    error = scores["calibration"]["error"]
    whole = Table(name, "", "95 % interval", box=box.SIMPLE)
    whole.add_row("accuracy", f"{scores['accuracy']:.6f}", _interval(scores["interval"]))
    whole.add_row("top-2 accuracy", f"{scores['top2']['value']:.6f}", _interval(scores["top2"]["interval"]))
    whole.add_row("loss", f"{scores['loss']:.4f}", "")
    whole.add_row("calibration error", f"{error['before']:.4f}", "")
    whole.add_row("  calibrated", f"{error['after']:.4f}", "")
    whole.add_row("photos", str(scores["n"]), "")
    by_class = Table("class", "n", "precision", "recall", "F1", box=box.SIMPLE)
    averaged = {"mean of classes": {"n": scores["n"], **scores["macro"]}}
    for label, row in (scores["classes"] | averaged).items():
        by_class.add_row(label, str(row["n"]), *(_measured(row[name]) for name in ("precision", "recall", "f1")))
    confusion = Table("true \\ predicted", *scores["classes"], box=box.SIMPLE)
    for label, counts in zip(scores["classes"], scores["confusion"], strict=True):
        confusion.add_row(label, *map(str, counts))
    return [whole, by_class, confusion]


def ranking(scores: Mapping[str, Any], against_best: Mapping[str, Any]) -> Table:
    """Runs for people, the best first, each with what the best is ahead of it by (`paired.compare`)."""
    rows = Table("run", "accuracy", "best is ahead by", "95 % interval", "p", box=box.SIMPLE)
    for name, scored in scores.items():
        pair = against_best.get(name)
        ahead = [f"{pair['difference']:.4f}", _interval(pair["interval"]), f"{pair['p']:.3g}"] if pair else []
        rows.add_row(name, f"{scored['accuracy']:.4f}", *ahead)
    return rows


def _measured(number: Mapping[str, Any]) -> str:
    return "none" if number["value"] is None else f"{number['value']:.3f} {_interval(number['interval'], 3, '-')}"


def _interval(pair: Sequence[float], digits: int = 4, between: str = " to ") -> str:
    return f"{pair[0]:.{digits}f}{between}{pair[1]:.{digits}f}"


def line(split: str, scored: Mapping[str, Any]) -> str:
    """A score for people: `val accuracy 0.9470 (95 % interval 0.9254 to 0.9626), loss 0.1710, n = 570`."""
    low, high = scored["interval"]
    return (
        f"{split} accuracy {scored['accuracy']:.4f} (95 % interval {low:.4f} to {high:.4f}), "
        f"loss {scored['loss']:.4f}, n = {scored['n']}"
    )
