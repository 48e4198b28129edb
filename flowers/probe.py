"""Rank backbones by linear probes: `python -m flowers.probe --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def probe(cfg: DictConfig) -> float:
    """Rank backbones for a folder of images; return the accuracy of the best."""
    from flowers.search.backbone_probe import run_probe

    return run_probe(cfg)


main = program(probe, "probe")

if __name__ == "__main__":
    main()
