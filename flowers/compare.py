"""Compares trained runs on the photos that they all judged: `python -m flowers.compare --help`."""

from omegaconf import DictConfig

from flowers.program import program


def compare(cfg: DictConfig) -> None:
    """Compares the runs that `cfg` names pair by pair, the best first; prints tables, and writes JSON where asked."""
    from pathlib import Path

    from rich.console import Console

    from flowers import paired, recipes, results, run

    console = Console(highlight=False)
    if cfg.multirun:
        found = recipes.load(Path(cfg.multirun), cfg.split)
        console.print(recipes.table(found))
        console.print(recipes.verdict(found), soft_wrap=True)
        return
    if not cfg.runs or len(cfg.runs) < 2:
        raise ValueError("which runs? Give runs='[A,B]' with two folders or more, or multirun=FOLDER")
    folders = [run.existing(str(folder)) for folder in cfg.runs]
    said = {str(folder): paired.of_run(folder, cfg.split) for folder in folders}
    best, *others = sorted(said, key=lambda name: -results.score(said[name])["accuracy"])
    compared = {other: paired.compare(said[other], said[best]) for other in others}
    console.print(results.ranking({name: results.score(said[name]) for name in (best, *others)}, compared))
    for other, pair in compared.items():
        console.print(f"{best} against {other}: {paired.verdict(pair)}", soft_wrap=True)
        for word in ("gained", "lost"):
            shown = ", ".join(pair[word][: cfg.photos]) + (", …" if len(pair[word]) > cfg.photos else "")
            console.print(f"  {word} {len(pair[word])}" + (f": {shown}" if shown else ""), soft_wrap=True)
    if cfg.output:
        results.save({"best": best, "against": compared}, cfg.output)


main = program(compare, "compare")

if __name__ == "__main__":
    main()
