"""Greedy soup: the mean of the weights of several runs that started from the same weights."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from torch import Tensor

from flowers.data.datamodule import ImageDataModule
from flowers.evaluation.metrics import score, score_line
from flowers.evaluation.statistics import mcnemar, mcnemar_verdict
from flowers.features.extractor import Extraction, extract_features
from flowers.models.network import Network
from flowers.runs.predictions import Predictions, predict_features
from flowers.runs.run import Run
from flowers.runs.run_folder import BEST_CHECKPOINT, CONFIG_FILE, SPLIT_FILE
from flowers.runtime.files import atomic_write, atomic_write_text
from flowers.runtime.text import one_line
from flowers.settings.preprocessing import Preprocessing
from flowers.settings.schema.programs import SoupSettings
from flowers.training.results import make_result, write_result

# What the members must have in common.
_SHARED_HPARAMS = (
    *("architecture", "classes", "options", *(each.name for each in fields(Preprocessing))),
    *("split_digest", "weights_digest"),
)


def run_soup(settings: SoupSettings) -> float:
    """Average the weights of runs greedily into a new run folder, and score it.

    The runs are tried from the best validation accuracy to the worst. A run becomes a member if the mean of the weights
    with it is at least as accurate on val as without it (Wortsman et al., ICML 2022, arXiv:2203.05482).

    Returns:
        The validation accuracy.

    Raises:
        ValueError: There are too few finished runs, they do not fit together, or the output folder is taken.
    """
    start = time.perf_counter()
    output = Path(settings.output).resolve()
    if output.exists() and any(output.iterdir()):
        raise ValueError(f"output={settings.output}: the folder is not empty: give a new one")
    runs = rank_runs(settings)
    check_members(runs)
    data, model = runs[0].data(), runs[0].network()
    how = runs[0].extraction(model)

    console = Console(highlight=False, markup=False, emoji=False)
    states = [run.content["state_dict"] for run in runs]
    members: list[int] = []
    predictions: dict[str, Predictions] = {}
    first: Predictions | None = None
    for index, run in enumerate(runs):
        tried = predict(model, average_weights([states[each] for each in (*members, index)]), data, "val", how)
        accuracy = score(tried)["accuracy"]
        is_added = not members or accuracy >= score(predictions["val"])["accuracy"]
        if is_added:
            members.append(index)
            predictions["val"] = tried
        first = first or tried
        console.print(
            f"{'added' if is_added else 'left out'} {one_line(run.folder)}: accuracy {accuracy:.4f}", soft_wrap=True
        )

    weights, best_member = average_weights([states[each] for each in members]), runs[members[0]]
    if data.counts("test"):
        predictions["test"] = predict(model, weights, data, "test", how)
    seconds = {"soup": time.perf_counter() - start}
    result = make_result(predictions, best_member, how, seconds)
    result["soup"] = {"members": [str(runs[each].folder) for each in members], "tried": len(runs)}
    _write_run(output, {**best_member.content, "state_dict": weights}, runs[0].folder / SPLIT_FILE)
    write_result(output, result, predictions)
    console.print(f"{len(members)} of {len(runs)} runs are in the soup")
    for split in predictions:
        console.print(score_line(split, result[split]))
    if len(members) > 1 and first is not None:
        verdict = mcnemar_verdict(mcnemar(first, predictions["val"]))
        console.print(f"val, against the best member alone: {verdict}", soft_wrap=True)
    console.print("the members were chosen on val: its accuracy is optimistic")
    console.print(f"run folder {one_line(output)}", soft_wrap=True)
    return float(result["val"]["accuracy"])


def average_weights(members: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Return the mean of weights in float32; counters, which are whole numbers, are those of the first member.

    The sum is in float64: the mean of equal weights is these weights, to the bit.
    """
    mean = {}
    for name, first in members[0].items():
        total = sum((member[name].double() for member in members[1:]), first.double())
        mean[name] = (total / len(members)).float() if first.is_floating_point() else first
    return mean


def rank_runs(settings: SoupSettings) -> list[Run]:
    """Return the finished runs that have a best checkpoint, best validation accuracy first.

    Raises:
        ValueError: A run is not finished, or there are fewer than two.
    """
    folders = [Path(run) for run in settings.runs]
    if settings.multirun:
        folders = [path.parents[1] for path in sorted(Path(settings.multirun).glob(f"**/{BEST_CHECKPOINT}"))]
    found: dict[str, tuple[float, float, Run]] = {}
    for folder in folders:
        run = Run(folder / BEST_CHECKPOINT, settings.root, settings.accelerator, settings.precision)
        if run.result is not None and run.checkpoint.is_file():
            found[str(run.folder)] = -run.result.val.accuracy, run.result.val.loss, run
        elif not settings.multirun:
            raise ValueError(f"{folder} is not a finished run with a {BEST_CHECKPOINT}: finish it, or leave it out")
    if len(found) < 2:
        where = f"multirun={settings.multirun}" if settings.multirun else f"runs={settings.runs}"
        raise ValueError(f"{where}: found {len(found)} finished runs with a checkpoint, expected at least two")
    return [found[name][2] for name in sorted(found, key=lambda name: (*found[name][:2], name))]


def check_members(runs: Sequence[Run]) -> None:
    """Check that the weights of runs can be averaged, and that their accuracies compare.

    Raises:
        ValueError: A run has another network, start, split or input than the first one.
    """
    for run in runs:
        for name in _SHARED_HPARAMS:
            if getattr(run.hparams, name) != getattr(runs[0].hparams, name):
                raise ValueError(
                    f"{run.folder} has another {name} than {runs[0].folder}: only runs of the same network, initial "
                    "weights and split can be averaged"
                )


def predict(
    model: Network, weights: Mapping[str, Tensor], data: ImageDataModule, split: str, how: Extraction
) -> Predictions:
    """Return the predictions of a model with other weights for a split."""
    model.load_state_dict(weights)
    dataset = data.dataset(split)
    return predict_features(model, extract_features(model, data, dataset, split, how), dataset)


def _write_run(output: Path, checkpoint: Mapping[str, Any], split_file: Path) -> None:
    (output / BEST_CHECKPOINT).parent.mkdir(parents=True, exist_ok=True)
    split = split_file.read_bytes()
    with atomic_write(output / SPLIT_FILE, len(split)) as part:
        part.write_bytes(split)
    config = checkpoint["hyper_parameters"]["config"] | {"run_dir": str(output)}
    atomic_write_text(output / CONFIG_FILE, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    hparams = checkpoint["hyper_parameters"] | {"config": config}
    with atomic_write(output / BEST_CHECKPOINT) as partial:
        torch.save({**checkpoint, "hyper_parameters": hparams}, partial)
