"""A warm process that forks a writer per request and lets it kill itself at a chosen call.

Run by path from the crash tests; one request per line of JSON on stdin, one answer per line.
Importing takes a second, forking a few milliseconds: this is what makes thousands of kills cheap.
"""

import json
import os
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
from optim_checkpoint import CheckpointError, _fs
from optim_checkpoint._collect import Collector
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._numpy import bytes_of, dtype_name
from optim_checkpoint._options import Options

OPTIONS = ("keep", "replace", "incremental")


class KillingOps(_fs.FileOps):
    """Kills the process at the n-th call: before it, after it, or in the middle of a write."""

    def __init__(self, at, when):
        self.at = at
        self.when = when
        self.count = 0

    def __getattribute__(self, name):
        method = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(method):
            return method

        def call(*arguments):
            self.count += 1
            fatal = self.count == self.at
            if fatal and self.when == "middle" and name == "write":
                fd, data = arguments
                os.write(fd, data[: len(data) // 2])
            if fatal and self.when != "after":
                os.kill(os.getpid(), signal.SIGKILL)
            result = method(*arguments)
            if fatal:
                os.kill(os.getpid(), signal.SIGKILL)
            return result

        return call


def arrays_of(step, size):
    """Return the arrays that conftest returns: the two are compared bit for bit."""
    rng = np.random.default_rng(step)
    arrays = {
        "a.weight": rng.standard_normal((size // 3, 3)).astype(np.float32),
        "a.bias": rng.standard_normal(size),
        "count": np.array(step, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": rng.integers(0, 2, 37).astype(bool),
        "words": rng.integers(0, 255, 64).astype(np.uint8),
    }
    return arrays if step == 1 else {**arrays, "words": arrays_of(1, size)["words"]}


def document(step, size):
    """Build the document of a step."""
    arrays = arrays_of(step, size)
    collector = Collector()
    for name, array in arrays.items():
        collector.add(
            name, dtype_name(array.dtype, name), array.shape, lambda array=array: bytes_of(array)
        )
    return Document(step, {"name": "numpy", "versions": {}}, {}, {"model": collector.entries})


def child(request):
    """Save in a forked process and leave with 0, 3 for a typed error, or by the signal."""
    if "fsize" in request:
        resource.setrlimit(resource.RLIMIT_FSIZE, (request["fsize"], request["fsize"]))
    if "at" in request:
        _fs.ops = KillingOps(request["at"], request["when"])
    try:
        commit(
            request["root"],
            document(request["step"], request.get("size", 300)),
            Options(**{key: request[key] for key in OPTIONS if key in request}),
        )
    except CheckpointError:
        return 3
    return 0


def start(request):
    """Fork a writer; with "strace" in the request it begins once that traces it."""
    start_read, start_write = os.pipe()
    pid = os.fork()
    if pid == 0:
        code = 99
        try:
            if "strace" in request:
                os.close(start_write)
                os.read(start_read, 1)
            code = child(request)
        finally:
            os._exit(code)
    if "strace" in request:
        tracer = subprocess.Popen(["strace", "-qq", "-p", str(pid), *request["strace"]])
        status = Path(f"/proc/{pid}/status")
        while "TracerPid:\t0\n" in status.read_text() and tracer.poll() is None:
            time.sleep(0.0005)
        os.write(start_write, b"x")
    os.close(start_read)
    os.close(start_write)
    return pid, tracer if "strace" in request else None


def main():
    """Serve requests until stdin ends."""
    for line in sys.stdin:
        request = json.loads(line)
        pid, tracer = start(request)
        sys.stdout.write(f"{pid}\n")
        sys.stdout.flush()
        _, status = os.waitpid(pid, 0)
        if tracer is not None:
            tracer.wait()
        sys.stdout.write(f"{os.waitstatus_to_exitcode(status)}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
