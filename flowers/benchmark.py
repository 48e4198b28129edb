"""Measures this machine, the plain way and ours side by side: `python -m flowers.benchmark --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.program import program


def benchmark(cfg: DictConfig) -> dict[str, Any]:
    """Prints, writes and returns how fast each piece of fine-tuning is, and how long whole runs would take here."""
    # Imported here: --help answers before these seconds are spent.
    import random

    from hydra.utils import instantiate
    from rich.console import Console

    from flowers import comparison, hardware, progress, results, run, timing
    from flowers.data import FlowersData
    from flowers.model import FlowerClassifier
    from flowers.ours import Ours
    from flowers.plain import Plain

    if cfg.rounds < 1 or cfg.seconds <= 0 or cfg.head.epochs < 1 or (cfg.step_batch or 2) < 2:
        raise ValueError("wanted rounds >= 1, seconds > 0, head.epochs >= 1, and step_batch >= 2 or null")
    data = FlowersData(**{**cfg.data, "source": instantiate(cfg.data.source)}, seed=cfg.seed)
    if data.shards is not None:
        raise ValueError("data=shards: the plain way reads each photo from its own file: wanted a folder (data=folder)")
    counts = data.counts("train").total(), data.counts("val").total()
    if not all(counts):
        raise ValueError(f"{counts[0]} photos are in train and {counts[1]} in val: wanted some in both")
    parts = {name: instantiate(cfg[name]) for name in ("optimizer", "scheduler")}
    model = FlowerClassifier(**run.plain(cfg.model), classes=data.classes, image_size=cfg.data.image_size, **parts)
    settings = hardware.settled(run.plain(cfg.trainer))
    is_cpu = settings["accelerator"] == "cpu"
    batch_size = cfg.step_batch or (8 if is_cpu else cfg.data.batch_size)
    sample = random.Random(cfg.seed).sample(range(counts[0]), min(counts[0], 256))
    looped = sample[: 4 * batch_size] if is_cpu else range(counts[0])  # some seconds of either
    device = hardware.device(settings["accelerator"])
    plain = Plain(data, run.plain(cfg.data), model, device, sample, looped, batch_size, cfg.optimizer.lr)
    needs = comparison.needed(plain, cfg.data.image_size)
    ours = Ours(data, settings, model, parts["optimizer"], sample, looped, batch_size)

    rounds = progress.bar(range(cfg.rounds), "Rounds")
    figures = timing.interleaved(comparison.ways(plain, ours), rounds, cfg.seconds)
    figures = comparison.complete(figures, needs, sum(counts))
    loading = max(data.num_workers, 1), data.num_workers > 0 and not is_cpu
    rows = comparison.predicted(comparison.rows(figures), counts, cfg.head.epochs, run.plain(cfg.predict), *loading)
    Console().print(comparison.table(rows, {"training step": f"training step of {batch_size}"}))
    measured = {
        "rows": rows,
        "spread": {f"{name}, {column}": timing.spread(values) for (name, column), values in figures.items()},
        "needed": needs,
        "photos": {"train": counts[0], "val": counts[1], "step": batch_size, "forward": ours.frozen.batch_size},
        "device": hardware.name(device),
        "precision": settings["precision"],
        **run.provenance(),
        "settings": run.plain(cfg),
    }
    if cfg.output:
        results.save(measured, cfg.output)
    return measured


main = program(benchmark, "benchmark")

if __name__ == "__main__":
    main()
