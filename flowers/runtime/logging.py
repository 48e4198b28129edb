"""What reaches the terminal and the log file: progress bars, warnings, tracebacks."""

import logging
import sys
import warnings
from collections.abc import Iterable, Iterator, Sized
from contextlib import contextmanager
from typing import TypeVar

from rich.console import Console
from rich.progress import track

from flowers.runtime.launch import is_rank_zero

log = logging.getLogger(__name__)

_SCRIPT_HANDLER = "flowers: a script without logging of its own"

T = TypeVar("T")


def progress_bar(items: Iterable[T], doing: str, total: int | None = None) -> Iterable[T]:
    """Yield `items`, with a progress bar on standard error if that is a terminal."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    is_shown = sys.stderr.isatty() and is_rank_zero()
    return track(items, doing, total=total, console=Console(file=sys.stderr), disable=not is_shown)


HARMLESS_WARNINGS = (
    # data.num_workers sets the number of workers.
    "The '.*_dataloader' does not have many workers",
    # A resumed run, or its second stage, continues in its folder.
    "Checkpoint directory .* exists and is not empty",
    # log_every_n_steps is for long epochs; a short one is logged at its end.
    "The number of training batches .* is smaller than the logging interval",
    # The frozen backbone is in eval mode on purpose.
    "Found .* module.s. in eval mode at the start of training",
    # Lightning calls a function of PyTorch that has moved.
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    # PyTorch 2.11 uses its own deprecated function, and reads a file of torch.export into a read-only buffer.
    "`torch.jit.script_method` is deprecated",
    "The given buffer is not writable",
    # A notebook without widgets: captum asks tqdm for progress bars but does not show them.
    "IProgress not found",
    # No network of torchvision modifies such an output in place: sharded training gives the same result.
    "FSDP2-wrapped module .* returned a view tensor",
    # The gradient of the class token in a vision transformer; the copy costs almost nothing.
    "Grad strides do not match bucket view strides",
    # read_image raises an error with the size in place of Pillow's warning.
    "Image size .* exceeds limit",
    # As in any program with a DataLoader, workers are forked before they use anything that may be locked.
    "This process .* is multi-threaded, use of fork",
    # A class name in letters that the font lacks: matplotlib draws boxes.
    "Glyph .* missing from font",
    # The plugins' schemas have the names of our files; our files also work without them.
    "\\s*'hydra/launcher/.*' is validated against ConfigStore schema",
)


def filter_harmless_warnings() -> None:
    """Ignore HARMLESS_WARNINGS, and all of Pillow, which warns of each file with a damaged EXIF tag."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
    warnings.filterwarnings("ignore", module=r"PIL\.")


def configure_logging(shows_progress: bool = False) -> None:
    """Keep known-harmless warnings and the progress messages of Lightning off the terminal and out of the log.

    Lightning adds log handlers of its own when it is imported, so call it again after that.

    Args:
        shows_progress: Whether a script or notebook that has set up no logging shows our own lines, and not only
            warnings.
    """
    filter_harmless_warnings()
    root = logging.getLogger()
    if not is_rank_zero():
        root.setLevel(logging.ERROR)
    if not root.handlers:  # a program without a log file: warnings go to standard error
        console = logging.StreamHandler()
        console.set_name(_SCRIPT_HANDLER)
        root.addHandler(console)
        console.setLevel(logging.WARNING)
    if shows_progress:
        for handler in root.handlers:
            if handler.name == _SCRIPT_HANDLER:
                handler.setLevel(logging.INFO)  # the root logger lets no others pass below a warning
                logging.getLogger("flowers").setLevel(logging.INFO)
    for name in ("lightning", "lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    # "Detected out of order event.step": a resumed run repeats the steps after its last checkpoint, on purpose.
    logging.getLogger("tensorboard").setLevel(logging.ERROR)
    for name in ("onnx_ir", "onnxscript"):  # a line for each node that they remove
        logging.getLogger(name).setLevel(logging.WARNING)
    for handler in root.handlers:
        handler.addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if not record.name.startswith("lightning.") or record.levelno >= logging.WARNING:
        return True
    # Lightning's launcher says which process died before it ends the others, and a profiler prints its result.
    return record.name in (
        "lightning.fabric.strategies.launchers.subprocess_script",
        "lightning.pytorch.profilers.profiler",
    )


@contextmanager
def isolated_logging() -> Iterator[None]:
    """Restore the log handlers after the block, which may set up its own."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        for handler in set(root.handlers) - set(handlers):
            handler.close()
        root.handlers[:] = handlers
        root.setLevel(level)


def write_traceback(error: Exception) -> str | None:
    """Write the traceback of `error` to the log file, not to the terminal; return the file's name, or None."""
    info = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run failed", (), info)
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for handler in files:
        handler.handle(record)
    return files[0].baseFilename if files else None
