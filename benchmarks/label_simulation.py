"""Compare the methods of flowers.suggest on labeled photos: `python -m benchmarks.label_simulation --help`."""

from benchmarks.settings import LabelSimulation
from flowers.cli import program


def label_simulation(settings: LabelSimulation) -> None:
    """Print how many labels each method needs."""
    from benchmarks.simulated_labeling import run_simulation

    run_simulation(settings)


main = program(label_simulation, LabelSimulation)

if __name__ == "__main__":
    main()
