"""Scores a trained run: `python -m flowers.evaluate --help`."""

from omegaconf import DictConfig

from flowers.program import program


def evaluate(cfg: DictConfig) -> float:
    """Scores a run's best checkpoint, or a given one, on the photos that `cfg` names; returns the accuracy."""
    from pathlib import Path

    from rich.console import Console

    from flowers import checkpoints, gallery, metrics, report, results, run
    from flowers.data import FlowersData, shown
    from flowers.nearest import nearest
    from flowers.split import SPLITS

    if cfg.split not in SPLITS:
        raise ValueError(f"split={cfg.split}: wanted {', '.join(SPLITS)}{nearest(cfg.split, SPLITS)}")
    if cfg.run and cfg.checkpoint:
        raise ValueError("both run= and checkpoint= are given: wanted one of them")
    path = Path(cfg.checkpoint) if cfg.checkpoint else run.existing(cfg.run) / checkpoints.BEST
    trained = checkpoints.read(path)["hyper_parameters"]
    settings = trained["config"]["data"]
    seen = shown(settings) | ({"on_bad_photo": cfg.on_bad_photo} if cfg.on_bad_photo else {})
    if cfg.photos:
        name = cfg.photos
        data = FlowersData(cfg.photos, **seen | {"packed": False})
        dataset = data.everything(trained["classes"])
    else:
        name = cfg.split
        split_file = run.split_of(path, trained["split_digest"])
        data = FlowersData(settings["root"], split_file=split_file, **seen)
        dataset = data.dataset(cfg.split)

    given = {name: cfg[name] for name in ("accelerator", "precision") if cfg[name] is not None}
    config = trained["config"] | {"trainer": trained["config"]["trainer"] | given}
    model = checkpoints.load(path)
    predictions = results.predict(model, results.embed(model, data, dataset, name, config), dataset)
    scored = metrics.detailed(predictions)
    for table in results.tables(name, scored):
        Console().print(table)
    if cfg.output:
        results.save({name: scored}, cfg.output)
    folder = Path(cfg.report or (cfg.run if cfg.run and not cfg.photos else ""))
    if folder != Path():
        suffix = "" if cfg.photos or cfg.split == "val" else f"-{cfg.split}"
        folder.mkdir(parents=True, exist_ok=True)
        gallery.save_mistakes(gallery.said(predictions), folder / f"mistakes{suffix}.csv")
        page = folder / f"report{suffix}.html"
        report.write(page, path.resolve().parent.parent, config, name, data.root, predictions, scored)
        Console().print(f"{page} and mistakes{suffix}.csv say more", soft_wrap=True, highlight=False)
    return float(scored["accuracy"])


main = program(evaluate, "evaluate")

if __name__ == "__main__":
    main()
