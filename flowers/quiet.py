"""What libraries say that no user of this project can do anything about, silenced one by one."""

import logging
import warnings

from flowers import processes

HARMLESS = (
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
    # Workers are forked before they use what may be locked, as in any program with a DataLoader.
    "This process .* is multi-threaded, use of fork",
    # The plugins' schemas bring the defaults for our files of the same name, which do without them too.
    "\\s*'hydra/launcher/.*' is validated against ConfigStore schema",
)


def filter_warnings() -> None:
    """Filters the warnings above, by message."""
    for message in HARMLESS:
        warnings.filterwarnings("ignore", message=message)


def silence() -> None:
    """Filters the warnings above; leaves of Lightning's log what is a warning or worse, each line once."""
    filter_warnings()
    if not processes.is_first():
        logging.getLogger().setLevel(logging.ERROR)
    import lightning.pytorch  # noqa: F401  # gives its loggers a handler of their own, beside Hydra's on the root logger

    for name in ("lightning.pytorch", "lightning.fabric"):
        logger = logging.getLogger(name)
        logger.handlers.clear()
        logger.propagate = True
        logger.setLevel(logging.WARNING)
    # Says which process has died before it ends the others.
    logging.getLogger("lightning.fabric.strategies.launchers.subprocess_script").setLevel(logging.INFO)
