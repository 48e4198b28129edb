"""Pack a folder of images into shards: `python -m flowers.pack --help`."""

from omegaconf import DictConfig

from flowers.cli import program


def pack(cfg: DictConfig) -> int:
    """Write the images into shards; return how many images there are."""
    from flowers.data.packing import run_packing

    return run_packing(cfg)


main = program(pack, "pack")

if __name__ == "__main__":
    main()
