"""Measures how hostile files are refused: one forked process for each; run by path.

``refusing_worker.py KIND FILE...`` prints a line per file: seconds of processor time, peak bytes of
memory. The parent never holds a file, so a peak is that of the interpreter and one refusal.
"""

import os
import sys
import time
from pathlib import Path

from optim_checkpoint import CorruptCheckpointError, _header, _manifest


def refuse(kind, path):
    """Read a file, which must be refused; return the seconds it took."""
    before = time.process_time()
    try:
        with path.open("rb") as file:
            if kind == "header":
                _header.read_header(file.fileno(), path.stat().st_size, "f")
            else:
                _manifest.parse(file.read(), "m")
    except CorruptCheckpointError:
        return time.process_time() - before
    raise AssertionError(f"{path} was accepted")


def main():
    """Fork for every file and print what its refusal took."""
    kind, *files = sys.argv[1:]
    for name in files:
        sys.stdout.flush()
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                seconds = refuse(kind, Path(name))
                # ru_maxrss would count the parent too.
                status = Path("/proc/self/status").read_text().split()
                peak = int(status[status.index("VmHWM:") + 1]) * 1024
                sys.stdout.write(f"{seconds} {peak}\n")
                sys.stdout.flush()
                code = 0
            finally:
                os._exit(code)
        if os.waitpid(pid, 0)[1]:
            sys.exit(f"{name} was not refused")


if __name__ == "__main__":
    main()
