"""Packs a folder of photos into shards: `python -m flowers.pack --help`."""

from omegaconf import DictConfig

from flowers.program import program


def pack(cfg: DictConfig) -> int:
    """Writes the photos that `cfg` names into shards, with their split; returns how many photos there are."""
    # Imported here: --help answers before these seconds are spent.
    from pathlib import Path

    from filelock import FileLock
    from rich.console import Console

    from flowers import hardware, packing, run
    from flowers.data import FlowersData

    if cfg.shard_mb <= 0 or (cfg.workers is not None and cfg.workers < 1):
        raise ValueError(f"shard_mb={cfg.shard_mb} workers={cfg.workers}: wanted more than 0")
    root, output = Path(cfg.photos).resolve(), Path(cfg.output).resolve()
    if output.is_relative_to(root):
        raise ValueError(f"output={output} lies within photos={root}: give another folder")
    data = FlowersData(root, **run.plain(cfg.data))
    rows, classes = data.rows, data.classes
    output.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(output.with_name(f".{output.name}.lock")):
        shards = packing.write(root, rows, classes, output, cfg.shard_mb, cfg.workers or hardware.cores())
    counts = ", ".join(f"{data.counts(split).total():,} {split}" for split in ("train", "val", "test"))
    Console().print(f"{len(rows):,} photos ({counts}) in {shards} shards: {output}", soft_wrap=True, highlight=False)
    return len(rows)


main = program(pack, "pack")

if __name__ == "__main__":
    main()
