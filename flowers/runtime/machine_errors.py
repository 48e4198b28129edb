"""What a machine lacks, as opposed to a mistake in the program: memory, space, rights, open files, a terminal."""

import errno
import os
import re
import sys

from flowers.runtime.text import one_line

_MEMORY_TEXTS = ("out of memory", "can't allocate memory", "Cannot allocate memory", "failed to map segment")
_MORE_MEMORY = (
    "end other programs, raise the limit (ulimit -v), or use a smaller batch and fewer workers "
    "(data.batch_size, data.num_workers)"
)
# Their errors come as RuntimeError, or as a subclass that only torch has.
_DEVICE_MEMORY = re.compile(r"\b(CUDA|HIP|XPU|MPS)\b.*out of memory|_STATUS_ALLOC_FAILED")
_SHARED_MEMORY = re.compile(r"shared memory\(shm\)|out of shared memory|unable to write to file </torch_")
_ELSEWHERE = "make it writable (or readable, if it is only read), or name another folder"
# What to do, for each error of the system that is not a mistake in the program.
_ADVICE = {
    errno.ENOSPC: "free some space, or name another place",
    errno.EDQUOT: "free some space, or name another place",
    errno.EROFS: _ELSEWHERE,
    errno.EACCES: _ELSEWHERE,
    errno.EPERM: _ELSEWHERE,
    errno.EFBIG: "raise the limit of the size of files (ulimit -f)",
    errno.EMFILE: "raise the limit of open files (ulimit -n), or use fewer workers",
    errno.ENFILE: "end other programs, or use fewer workers",
    errno.ENOMEM: _MORE_MEMORY,
    errno.EAGAIN: "raise the limit of processes (ulimit -u), or use fewer workers",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "give a shorter name",
    errno.EEXIST: "something else is in its place: name another folder",
    errno.ENOTDIR: "a file is in the place of a folder: name another folder",
    errno.EISDIR: "a folder is in the place of the file: name another file",
}


def is_memory_error(error: BaseException) -> bool:
    """Return whether there was not enough memory. Pillow, torch and the loader of programs have errors of their own."""
    if isinstance(error, OSError) and error.errno is not None:
        return error.errno == errno.ENOMEM
    is_other = isinstance(error, (OSError, RuntimeError, ImportError)) and "CUDA" not in str(error)
    return isinstance(error, MemoryError) or (is_other and any(text in str(error) for text in _MEMORY_TEXTS))


def machine_error_text(error: BaseException) -> str | None:
    """Return what the machine lacks, where, and what to do, in one line; None if it is another error."""
    # A worker passes on its traceback, whose last line is the error.
    text = str(error).strip().rpartition("\n")[2] if str(error).startswith("Caught ") else str(error)
    if isinstance(error, RuntimeError) and _SHARED_MEMORY.search(text):
        return (
            "not enough shared memory (/dev/shm) for the batches of the workers: use data.num_workers=0 "
            "(flowers predict: num_workers=0), or make it larger (docker run --shm-size=8g)"
        )
    if isinstance(error, RuntimeError) and _DEVICE_MEMORY.search(text):
        reason = ". ".join(text.partition("\n")[0].split(". ")[:2]).rstrip(".")  # the rest is about the allocator
        return (
            f"not enough memory on the device ({one_line(reason)}): use a smaller data.batch_size (with "
            "trainer.accumulate_grad_batches=N a step keeps its images), trainer.precision=bf16-mixed, "
            "finetune.depth=N, or a smaller network"
        )
    if is_memory_error(error):
        return f"not enough memory ({one_line(text) or type(error).__name__}): {_MORE_MEMORY}"
    if isinstance(error, RuntimeError) and "can't start new thread" in str(error):
        return f"{error}: {_ADVICE[errno.EAGAIN]}"
    if isinstance(error, OSError) and error.errno in _ADVICE and type(error).__str__ is OSError.__str__:
        where = one_line(error.filename) if error.filename else "standard output or a file"
        return f"{where}: {error.strerror}: {_ADVICE[error.errno]}"
    return None


def open_standard_streams() -> None:
    """Open /dev/null in place of each standard stream that is closed.

    Otherwise the next file that is opened gets its number, and what is printed ends up in that file.
    """
    for number, name, mode in ((0, "stdin", "r"), (1, "stdout", "w"), (2, "stderr", "w")):
        try:
            os.fstat(number)
        except OSError:
            null = os.open(os.devnull, os.O_RDWR)
            os.dup2(null, number)  # also makes children inherit it
            if null != number:
                os.close(null)
        if getattr(sys, name) is None:
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115
