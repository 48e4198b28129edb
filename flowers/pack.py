"""Pack a folder of images into shards: `python -m flowers.pack --help`."""

from flowers.cli import program
from flowers.settings.schema.programs import PackSettings


def pack(settings: PackSettings) -> int:
    """Write the images into shards; return how many images there are."""
    from flowers.data.packing import run_packing

    return run_packing(settings)


main = program(pack, PackSettings)

if __name__ == "__main__":
    main()
