"""Exports a trained run for use elsewhere: `python -m flowers.export --help`."""

from typing import Any

from omegaconf import DictConfig

from flowers.program import program


def export(cfg: DictConfig) -> dict[str, Any]:
    """Makes the folder `cfg.output` of a run's best checkpoint; returns the parity report that lies in it.

    Raises ValueError, and leaves nothing there, where a version does not say what the run's model says.
    """
    # Imported here: --help answers before these seconds are spent.
    from pathlib import Path

    from filelock import FileLock
    from rich.console import Console

    from flowers import atomic, formats, package, parity, paths, results, run

    formats.require()
    if cfg.calibration < 1 or cfg.batch < 1 or cfg.rounds < 1 or cfg.seconds < 0:
        raise ValueError("wanted calibration, batch and rounds of at least 1, and seconds of at least 0")
    folder = Path(cfg.output).resolve()
    if folder.exists():
        raise ValueError(f"output={cfg.output} is there already: give a new folder, or remove that one")
    trained = package.Trained(run.existing(cfg.run), cfg.photos, cfg.on_bad_photo)
    limits = {name: (key, cfg[key]) for name, key in package.LIMITS.items() if cfg.int8 or key != "int8_limit"}

    folder.parent.mkdir(parents=True, exist_ok=True)
    paths.cache().mkdir(parents=True, exist_ok=True)
    with FileLock(paths.cache() / "export.lock"), atomic.filling(folder) as beside:  # two would measure each other
        files = package.write(trained, beside, cfg.calibration if cfg.int8 else 0, cfg.reduce_range)
        programs = package.read(beside, files)
        answers = package.answers(trained, programs)
        rows = parity.compared(answers, trained.labels)
        parity.check(rows, limits, len(trained.labels))
        measured = package.measured(trained, programs, cfg.batch, cfg.rounds, cfg.seconds)
        report = package.report(beside, files, rows, measured) | {"limits": dict(limits.values())}
        results.save(report, beside / "parity.json")
        package.describe(trained, beside, files, report)
    Console().print(parity.table(report["versions"]))
    Console().print(f"exported to {folder}", soft_wrap=True, highlight=False)
    return report


main = program(export, "export")

if __name__ == "__main__":
    main()
