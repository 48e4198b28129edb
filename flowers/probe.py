"""Rank backbones by linear probes: `python -m flowers.probe --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import ProbeSettings


def probe(settings: ProbeSettings) -> float:
    """Rank backbones for a folder of images; return the accuracy of the best."""
    from flowers.studies.backbone_probe import run_probe

    return run_probe(settings)


main = program(probe, ProbeSettings)

if __name__ == "__main__":
    main()
