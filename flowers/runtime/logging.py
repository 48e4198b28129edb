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


T = TypeVar("T")


def progress_bar(items: Iterable[T], doing: str, total: int | None = None) -> Iterable[T]:
    """Yields `items`, with a bar on standard error if that is a terminal and nothing at all elsewhere."""
    if total is None and isinstance(items, Sized):
        total = len(items)
    is_shown = sys.stderr.isatty() and is_rank_zero()
    return track(items, doing, total=total, console=Console(file=sys.stderr), disable=not is_shown)


HARMLESS_WARNINGS = (
    # The datasets here are small and local; the number of workers is set and was chosen (data.num_workers).
    "The '.*_dataloader' does not have many workers",
    # A resumed run, or the second stage of one, goes on in the folder that it began in.
    "Checkpoint directory .* exists and is not empty",
    # log_every_n_steps is for long epochs; a short one is logged at its end.
    "The number of training batches .* is smaller than the logging interval",
    # The frozen backbone is in eval mode on purpose.
    "Found .* module.s. in eval mode at the start of training",
    # Lightning's own call of PyTorch's pytree, which has moved.
    "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
    # PyTorch 2.11's own use of what it has given up, and its own way to read what torch.export has written.
    "`torch.jit.script_method` is deprecated",
    "The given buffer is not writable",
    # In a notebook without widgets; captum asks tqdm for bars that it then does not draw.
    "IProgress not found",
    # torchvision's networks change no such output in place: sharded, all of them train as they do whole.
    "FSDP2-wrapped module .* returned a view tensor",
    # The class token's gradient in a vision transformer; the copy costs next to nothing.
    "Grad strides do not match bucket view strides",
    # read_image raises an error with the size in place of Pillow's warning.
    "Image size .* exceeds limit",
    # Workers are forked before they use what may be locked, as in any program with a DataLoader.
    "This process .* is multi-threaded, use of fork",
    # The plugins' schemas bring the defaults for our files of the same name, which do without them too.
    "\\s*'hydra/launcher/.*' is validated against ConfigStore schema",
)


def filter_harmless_warnings() -> None:
    """Filters the warnings above, by message."""
    for message in HARMLESS_WARNINGS:
        warnings.filterwarnings("ignore", message=message)


def configure_logging() -> None:
    """Keep known-harmless warnings and Lightning's progress messages off the terminal and out of the log.

    Call it before `lightning` is imported: Lightning adds handlers of its own only if the root logger has none.
    """
    filter_harmless_warnings()
    root = logging.getLogger()
    if not is_rank_zero():
        root.setLevel(logging.ERROR)
    if not root.handlers:  # a program without a log file: warnings go to standard error
        console = logging.StreamHandler()
        console.setLevel(logging.WARNING)
        root.addHandler(console)
    for name in ("lightning.pytorch", "lightning.fabric"):  # if Lightning was imported first, as in a notebook
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
    for handler in root.handlers:
        handler.addFilter(_is_worth_showing)


def _is_worth_showing(record: logging.LogRecord) -> bool:
    if not record.name.startswith("lightning.") or record.levelno >= logging.WARNING:
        return True
    # Lightning's launcher says which process died before it ends the others.
    return record.name == "lightning.fabric.strategies.launchers.subprocess_script"


@contextmanager
def isolated_logging() -> Iterator[None]:
    """The block may set up its own logging; after it, all is as before."""
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
    """Writes it to the job's log file and not to the terminal; returns that file's name, None where there is none."""
    info = (type(error), error, error.__traceback__)
    record = log.makeRecord(log.name, logging.ERROR, __file__, 0, "the run failed", (), info)
    files = [handler for handler in logging.getLogger().handlers if isinstance(handler, logging.FileHandler)]
    for handler in files:
        handler.handle(record)
    return files[0].baseFilename if files else None
