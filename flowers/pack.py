"""Pack a folder of images into shards: `python -m flowers.pack --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def pack(cfg: DictConfig) -> int:
    """Write the images into shards; return how many images there are."""
    from flowers.data.shard_writer import (
        run_packing,  # torch takes seconds to import: --help and typos do without it
    )

    return run_packing(cfg)


main = program(pack, "pack")

if __name__ == "__main__":
    main()
