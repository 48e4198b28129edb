"""Run a program in a forked process that tells what it did: sockets, processes, code, files, memory and time.

The processes are forked from a server (`multiprocessing.forkserver`) that has imported the programs and computed
nothing: a process with threads of OpenMP cannot be forked.
"""

import contextlib
import importlib
import logging
import multiprocessing
import os
import pkgutil
import re
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from flowers.runtime.logging import filter_harmless_warnings

CPU_SECONDS = 20  # of the promise; the clock has a larger bound, for machines that do other work too
CLOCK_SECONDS = 300
WAITING_SECONDS = 15  # a process that computes nothing for so long waits for something that never comes
MEMORY_BYTES = 2 << 30  # more than at the start
STRANGER_MODULES = ("hubconf", "stranger_module")  # lie in each folder of a stranger, and must not be imported

# Modules from which a pickle may name something: what the processes of this machine send to each other.
_PICKLED = ("flowers", "torch", "numpy", "collections", "multiprocessing", "concurrent", "pathlib", "PIL", "builtins")
_PICKLED_BUILTINS = ("set", "frozenset", "complex", "bytearray", "slice", "range", "object")
# Programs that may be started: the commit of a checkout is written down, and libraries ask for the processor.
_STARTED = ("git", "lscpu", "uname", "ldconfig", "gcc", "cc", "ld")
_HEAVY = ("cleanlab", "captum.attr", "onnx", "onnxruntime", "optuna", "scipy.stats", "sklearn.linear_model", "timm")


class Ended(NamedTuple):
    """How a program ended.

    Attributes:
        status: The exit status, negative for a signal.
        output: What it printed to standard output and standard error.
        findings: What it must not do, one line each.
        opened: The files below the watched folder that Python opened, relative to it.
        seconds: The time on the clock.
    """

    status: int
    output: str
    findings: list[str]
    opened: set[str]
    seconds: float


class Confinement(NamedTuple):
    """What a program may do.

    Attributes:
        name: The program.
        arguments: Its overrides.
        folder: For its log, and the working directory, home and temporary folder, which are made.
        watched: The folder of the stranger.
        writable: Files and folders that may be written, besides those in `folder`/out and its home.
        environment: More variables.
        prepare: Is called in the process before it is confined.
        serves: Whether it may listen on this machine: it is interrupted as soon as it does.
        cpu_seconds: How long it may compute.
    """

    name: str
    arguments: Sequence[str]
    folder: Path
    watched: Path
    writable: Sequence[Path] = ()
    environment: Mapping[str, str] = {}
    prepare: Callable[[], object] | None = None
    serves: bool = False
    cpu_seconds: float = CPU_SECONDS


def start_server() -> None:
    """Start the server that imports the programs; the first start counts."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload([__name__, f"{__package__}.preloaded"])
    process = context.Process(target=int)
    process.start()
    process.join()


def preload() -> None:
    """Import all modules of the project, and what they import later."""
    import flowers

    names = [each.name for each in pkgutil.walk_packages(flowers.__path__, "flowers.")]
    for name in (*(name for name in names if "__main__" not in name and "peers" not in name), *_HEAVY):
        with contextlib.suppress(ImportError), warnings.catch_warnings(action="ignore"):
            importlib.import_module(name)


def run_confined(case: Confinement, method: str = "forkserver") -> Ended:
    """Run a program, and end it and its processes after the time or the memory that it may take.

    Args:
        case: The program.
        method: "forkserver", or "fork" to fork this process: it must not have computed with several threads.
    """
    case.folder.mkdir(parents=True, exist_ok=True)
    process = multiprocessing.get_context(method).Process(target=_become, args=(case,))  # type: ignore[attr-defined]
    start = worked = time.monotonic()
    process.start()
    pid, findings, computed = process.pid, list[str](), 0.0
    assert pid is not None
    while process.is_alive():
        process.join(0.05)
        now, reason = time.monotonic(), None
        if case.serves and _listens(pid):
            os.kill(pid, signal.SIGINT)
        if now - worked > 1 and (seconds := _cpu_seconds(pid)) > computed + 0.05:
            computed, worked = seconds, now
        if (used := _grown(case.folder, pid)) > 1.25 * MEMORY_BYTES:
            reason = f"took {used / 1e9:.1f} GB"
        elif computed > 2 * case.cpu_seconds:
            reason = f"computed for {computed:.0f} s"
        elif now - worked > WAITING_SECONDS or now - start > CLOCK_SECONDS:
            reason = f"waited, {now - start:.0f} s in all"
        if reason:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
            process.join()
            findings.append(f"{reason} and was killed")
    seconds = time.monotonic() - start
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)  # workers that it left
    output = _read(case.folder / "log")
    lines = _read(case.folder / "events").splitlines()
    findings += dict.fromkeys(line.removeprefix("! ") for line in lines if line.startswith("! "))
    opened = {line.removeprefix("< ") for line in lines if line.startswith("< ")}
    return Ended(process.exitcode or 0, output, findings, opened, seconds)


def _read(path: Path) -> str:
    return path.read_text(encoding="utf-8", errors="replace") if path.exists() else ""


def _grown(folder: Path, pid: int) -> int:
    """Return by how many bytes a process has grown since it was confined."""
    try:
        start = int((folder / "start").read_text() or 0)
        return max(0, _status(pid, "VmHWM") - start) if start else 0
    except (OSError, ValueError):
        return 0


def _status(pid: int | str, name: str) -> int:
    match = re.search(rf"{name}:\s+(\d+) kB", Path(f"/proc/{pid}/status").read_text())
    return int(match[1]) * 1024 if match else 0


def _listens(pid: int) -> bool:
    """Return whether a process has a TCP socket that listens."""
    with contextlib.suppress(OSError):
        lines = [line.split() for line in Path(f"/proc/{pid}/net/tcp").read_text().splitlines()[1:]]
        listening = {f"socket:[{fields[9]}]" for fields in lines if fields[3] == "0A"}
        return any(str(each.readlink()) in listening for each in Path(f"/proc/{pid}/fd").iterdir())
    return False


def _cpu_seconds(group: int) -> float:
    """Return the seconds that the processes of a group have computed."""
    ticks = 0
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[2]) == group:
                ticks += sum(map(int, fields[11:15]))
    return ticks / os.sysconf("SC_CLK_TCK")


def _become(case: Confinement) -> None:
    os.setsid()
    warnings.resetwarnings()
    filter_harmless_warnings()
    for handler in logging.getLogger().handlers[:]:  # those of pytest
        logging.getLogger().removeHandler(handler)
    multiprocessing.set_start_method("fork", force=True)  # as in a program that a user starts
    vars(multiprocessing.current_process())["_config"].pop("tempdir", None)  # that of the server, where it forked this
    home, work, out = (case.folder / name for name in ("home", "work", "out"))
    for each in (home, work, out):
        each.mkdir(exist_ok=True)
    for name in ("HOME", "TMPDIR", "FLOWERS_DATA", "XDG_CACHE_HOME", "TORCH_HOME", "HF_HOME", "MPLCONFIGDIR"):
        os.environ[name] = str(home)
    os.environ["FLOWERS_CACHE"] = str(home / "cache")
    os.environ.update(case.environment)
    tempfile.tempdir = None
    os.chdir(work)
    log = os.open(case.folder / "log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    events = os.open(case.folder / "events", os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    status = 70
    try:
        if case.prepare is not None:
            case.prepare()
        os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
        os.dup2(log, 1)
        os.dup2(log, 2)
        sys.stdout, sys.stderr = (os.fdopen(number, "w", encoding="utf-8", errors="replace") for number in (1, 2))
        sys.argv = [f"flowers.{case.name}", *case.arguments]
        module = importlib.import_module(f"flowers.{case.name}")
        Path("/proc/self/clear_refs").write_text("5")  # the peak is that of what comes now
        (case.folder / "start").write_text(str(_status("self", "VmRSS")))
        sys.addaudithook(_Hook(case, events))
        status = _call(module.main)
    except BaseException:
        traceback.print_exc()
    finally:
        _finish(events, status, case.cpu_seconds)


def _call(main: Callable[[], object]) -> int:
    try:
        main()
        return 0
    except SystemExit as error:
        if isinstance(error.code, str):
            sys.stderr.write(f"{error.code}\n")
        return error.code if isinstance(error.code, int) else int(error.code is not None)


def _finish(events: int, status: int, cpu_seconds: float) -> None:
    with contextlib.suppress(OSError, ValueError):
        sys.stdout.flush()
        sys.stderr.flush()
    seconds = sum(os.times()[:4])
    if seconds > cpu_seconds:
        os.write(events, f"! computed for {seconds:.0f} s\n".encode())
    with contextlib.suppress(OSError, ValueError):
        grown = _status("self", "VmHWM") - int(Path("../start").read_text())
        if grown > MEMORY_BYTES:
            os.write(events, f"! took {grown / 1e9:.1f} GB\n".encode())
    os._exit(status)


class _Hook:
    """Write down what a process does: `! FINDING` for what it must not do, `< FILE` for what it reads."""

    def __init__(self, case: Confinement, events: int) -> None:
        self.events, self.serves, self.is_busy = events, case.serves, False
        self.watched = os.path.realpath(case.watched)
        allowed = (*(case.folder / name for name in ("home", "out", "work", "start")), *case.writable)
        self.writable = tuple(os.path.realpath(path) for path in allowed)
        self.checks: dict[str, Callable[..., str | None]] = {
            "open": self._opened,
            "exec": self._executed,
            "import": self._imported,
            "pickle.find_class": self._unpickled,
            "socket.getaddrinfo": self._looked_up,
            "socket.gethostbyname": lambda host: f"looked up {host!r}",
            "socket.gethostbyaddr": lambda host: f"looked up {host!r}",
            "socket.connect": self._connected,
            "socket.sendto": self._connected,
            "socket.bind": self._bound,
            "subprocess.Popen": self._started,
            "os.system": lambda command: f"ran {command!r}",
            "os.exec": lambda path, *_: f"executed {path!r}",
            "os.posix_spawn": lambda path, *_: f"started {path!r}",
            "pty.spawn": lambda arguments: f"started {arguments!r}",
            "ctypes.dlopen": self._loaded,
            "webbrowser.open": lambda address: f"opened {address!r} in a browser",
            "urllib.Request": lambda address, *_: f"requested {address!r}",
            **dict.fromkeys(
                ("os.remove", "os.rmdir", "os.truncate", "os.chmod", "os.chown", "os.utime"), self._changed
            ),
            **dict.fromkeys(("os.mkdir", "shutil.rmtree", "shutil.chown"), self._changed),
            "os.rename": lambda source, target, *rest: self._changed(source, *rest[:1]) or self._changed(target),
            "os.link": lambda source, target, *_: self._changed(target),
            "os.symlink": lambda source, target, *_: self._changed(target),
        }

    def __call__(self, event: str, args: tuple[Any, ...]) -> None:
        check = self.checks.get(event)
        if check is None or self.is_busy:
            return
        self.is_busy = True
        try:
            if finding := check(*args):
                self._write(f"! {finding}")
        finally:
            self.is_busy = False

    def _write(self, line: str) -> None:
        os.write(self.events, (line.replace("\n", " ")[:500] + "\n").encode(errors="backslashreplace"))

    def _opened(self, path: Any, mode: str | None, flags: int) -> str | None:
        if isinstance(path, int):
            return None
        name = os.path.realpath(os.fsdecode(path))
        if flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC):
            return self._changed(path)
        for each in (name, os.path.normpath(Path.cwd() / os.fsdecode(path))):
            if each.startswith(f"{self.watched}/"):
                self._write(f"< {os.path.relpath(each, self.watched)}")
        return None

    def _changed(self, path: Any, *rest: Any) -> str | None:
        if isinstance(path, int) or (rest and isinstance(rest[-1], int) and rest[-1] not in (-1, 0o777)):
            return None  # relative to an open folder, which was opened by its name
        name = os.path.realpath(os.fsdecode(path))
        if name.startswith(("/dev/null", "/dev/tty", "/dev/shm/", "/proc/")):
            return None
        if any(name == each or name.startswith(f"{each}/") for each in self.writable):
            return None
        return f"wrote or deleted {name}"

    def _executed(self, code: Any) -> str | None:
        name = os.path.realpath(getattr(code, "co_filename", ""))
        return f"executed the code of {name}" if name.startswith(f"{self.watched}/") else None

    def _imported(self, module: str, *_: Any) -> str | None:
        return f"imported {module}" if module.partition(".")[0] in STRANGER_MODULES else None

    def _unpickled(self, module: str, name: str) -> str | None:
        known = module.partition(".")[0] in _PICKLED and (module != "builtins" or name in _PICKLED_BUILTINS)
        return None if known else f"unpickled {module}.{name}"

    def _looked_up(self, host: Any, *_: Any) -> str | None:
        return None if self.serves and host in ("127.0.0.1", "localhost", "::1") else f"looked up {host!r}"

    def _connected(self, own: Any, address: Any) -> str | None:
        return None if isinstance(address, (str, bytes)) else f"connected to {address!r}"

    def _bound(self, own: Any, address: Any) -> str | None:
        is_local = isinstance(address, (str, bytes)) or (self.serves and address[0] in ("127.0.0.1", "::1"))
        return None if is_local else f"listens at {address!r}"

    def _started(self, program: Any, arguments: Any, *_: Any) -> str | None:
        first = arguments[0] if isinstance(arguments, (list, tuple)) and arguments else arguments
        name = Path(os.fsdecode(first)).name if isinstance(first, (str, bytes)) else str(first)
        return None if name.split(" ")[0] in _STARTED else f"started {arguments!r}"

    def _loaded(self, name: Any) -> str | None:
        found = isinstance(name, str) and os.path.realpath(name).startswith(f"{self.watched}/")
        return f"loaded {name}" if found else None
