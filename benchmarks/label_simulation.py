"""Compare the methods of flowers.suggest on labeled photos: `python -m benchmarks.label_simulation --help`."""

from omegaconf import DictConfig

from benchmarks import settings as settings  # adds the program
from flowers.cli import program


def label_simulation(cfg: DictConfig) -> None:
    """Print how many labels each method needs."""
    from benchmarks.simulated_labeling import run_simulation

    run_simulation(cfg)


main = program(label_simulation, "label_simulation")

if __name__ == "__main__":
    main()
