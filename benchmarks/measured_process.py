"""Run a command and write its seconds and peak memory: `python measured_process.py RESULT.json COMMAND ...`.

Linux counts the memory of the process that starts another one into the peak of the new one. benchmarks.speed has torch
loaded, so it starts this small program, which starts the command. Nothing but the standard library is imported here.
"""

import json
import os
import subprocess
import sys
import time
from pathlib import Path


def main() -> None:
    """Run the command, and write its exit code, seconds from start to exit and peak memory in bytes."""
    result, *command = sys.argv[1:]
    start = time.perf_counter()
    process = subprocess.Popen(command)
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    unit = 1 if sys.platform == "darwin" else 1024
    figures = {"code": process.returncode, "seconds": seconds, "peak_bytes": usage.ru_maxrss * unit}
    Path(result).write_text(json.dumps(figures), encoding="utf-8")


if __name__ == "__main__":
    main()
