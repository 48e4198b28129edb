import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from flowers.runtime.files import DiskFullError, atomic_write
from flowers.runtime.machine_errors import is_memory_error, machine_error_text


@pytest.mark.parametrize(
    "error",
    [
        MemoryError(),
        OSError("out of memory when reading image file"),
        OSError(errno.ENOMEM, "Cannot allocate memory"),
        RuntimeError("unable to mmap 9 bytes from file <best.ckpt>: Cannot allocate memory (12)"),
        RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"),
        ImportError("libtorch_cpu.so: failed to map segment from shared object"),
    ],
)
def test_machine_error_text_says_what_to_do_without_memory(error: Exception):
    assert is_memory_error(error)
    text = machine_error_text(error)
    assert text is not None
    assert text.startswith("not enough memory (")
    assert "ulimit -v" in text
    assert "\n" not in text


@pytest.mark.parametrize(
    "text",
    [
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\n  …\n"
        "RuntimeError: unable to allocate shared memory(shm) for file </torch_1_2_0>: No space left on device (28)\n",
        "DataLoader worker (pid 7) is killed by signal: Bus error. It is possible that dataloader's workers are out of "
        "shared memory. Please try to raise your shared memory limit.",
        "unable to write to file </torch_1_2_0>: No space left on device (28)",
    ],
)
def test_machine_error_text_says_what_to_do_without_shared_memory(text: str):
    found = machine_error_text(RuntimeError(text))
    assert found is not None
    assert "use data.num_workers=0" in found
    assert "\n" not in found


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        (
            "CUDA out of memory. Tried to allocate 20.00 MiB. GPU 0 has a total capacity of 7.91 GiB of which 2 MiB is "
            "free. Of the allocated memory 7 GiB is allocated by PyTorch.",
            "(CUDA out of memory. Tried to allocate 20.00 MiB)",
        ),
        ("CUDA error: out of memory\nCUDA kernel errors might be reported later.", "(CUDA error: out of memory)"),
        (
            "MPS backend out of memory (MPS allocated: 5 GB). Tried to allocate 1 GB on shared pool.",
            "Tried to allocate",
        ),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", "CUBLAS_STATUS_ALLOC_FAILED"),
    ],
)
def test_machine_error_text_names_the_settings_that_need_less_memory_of_a_device(text: str, reason: str):
    found = machine_error_text(RuntimeError(text))
    assert found is not None
    assert found.startswith("not enough memory on the device (")
    assert reason in found
    assert "use a smaller data.batch_size" in found
    assert "\n" not in found


def test_machine_error_text_of_a_worker_is_its_error_without_the_traceback():
    text = (
        "Caught RuntimeError in DataLoader worker process 0.\nOriginal Traceback …\nRuntimeError: can't allocate memory"
    )
    found = machine_error_text(RuntimeError(text))
    assert found is not None
    assert found.startswith("not enough memory (RuntimeError: can't allocate memory): ")


@pytest.mark.parametrize("error", [ValueError("out of memory"), RuntimeError("a mistake"), OSError("no"), KeyError(1)])
def test_machine_error_text_is_none_for_other_errors(error: Exception):
    assert machine_error_text(error) is None


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EROFS, "another"),
        (errno.EMFILE, "ulimit -n"),
        (errno.EFBIG, "ulimit -f"),
        (errno.EEXIST, "another"),
        (errno.ENOSPC, "free some"),
    ],
)
def test_machine_error_text_names_the_path_and_what_to_do(number: int, advice: str):
    text = machine_error_text(OSError(number, os.strerror(number), "out/a.csv"))
    assert text is not None
    assert text.startswith(f"out/a.csv: {os.strerror(number)}: ")
    assert advice in text


def test_machine_error_text_leaves_a_full_disk_its_own_text(tmp_path: Path):
    assert machine_error_text(DiskFullError(tmp_path / "a")) is None


@pytest.mark.parametrize("named", [True, False])
def test_atomic_write_names_the_file_and_not_the_temporary_one(tmp_path: Path, named: bool):
    def write() -> None:
        with atomic_write(tmp_path / "a.csv") as temporary:
            temporary.touch()
            raise OSError(errno.EFBIG, "File too large", *([str(temporary)] if named else []))

    with pytest.raises(OSError, match="File too large") as caught:
        write()
    assert caught.value.filename == str(tmp_path / "a.csv")


STREAMS = """
import os, sys
from flowers.runtime.machine_errors import open_standard_streams
open_standard_streams()
file = open(sys.argv[1], "w")
print("to nobody"); print("to nobody", file=sys.stderr); os.write(1, b"to nobody"); os.write(2, b"to nobody")
assert sys.stdin.read() == "" and not sys.stdout.isatty() and not sys.stderr.isatty()
file.write(str(file.fileno()))
"""


def test_open_standard_streams_keeps_what_is_printed_out_of_other_files(tmp_path: Path):
    subprocess.run(
        ["sh", "-c", 'exec "$@" <&- >&- 2>&-', "sh", sys.executable, "-c", STREAMS, tmp_path / "a"], check=True
    )
    assert int((tmp_path / "a").read_text(encoding="utf-8")) > 2


def test_open_standard_streams_leaves_open_streams():
    code = "from flowers.runtime.machine_errors import open_standard_streams as o; o(); print(input())"
    found = subprocess.run([sys.executable, "-c", code], input="seen", capture_output=True, text=True, check=True)
    assert found.stdout == "seen\n"
