"""Saves on a mounted file system that loses its power at a chosen call; run by path.

``powercut_worker.py MOUNT STEP KEEP AT``: at call AT (0: after the save returned) the file system
is shut down without flushing its log, as FS_IOC_SHUTDOWN does. Exit 0: the save returned before the
cut; 5: it did not.
"""

import fcntl
import os
import struct
import sys
from pathlib import Path

import numpy as np
from optim_checkpoint import _fs
from optim_checkpoint._collect import Collector
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._numpy import bytes_of
from optim_checkpoint._options import Options

FS_IOC_SHUTDOWN = 0x8004587D
NOLOGFLUSH = 2


def cut(mount):
    """Cut the power."""
    fd = os.open(mount, os.O_RDONLY)
    fcntl.ioctl(fd, FS_IOC_SHUTDOWN, struct.pack("I", NOLOGFLUSH))


class CuttingOps(_fs.FileOps):
    """Cuts the power before the n-th call and ends the process there."""

    def __init__(self, mount, at):
        self.mount = mount
        self.at = at
        self.count = 0

    def __getattribute__(self, name):
        method = object.__getattribute__(self, name)
        if name.startswith("_") or not callable(method):
            return method

        def call(*arguments):
            self.count += 1
            if self.count == self.at:
                cut(self.mount)
                os._exit(5)
            return method(*arguments)

        return call


def save(mount, step, keep):
    """Save arrays that depend on the step."""
    array = np.random.default_rng(step).standard_normal(5000)
    collector = Collector()
    collector.add("a", "F64", array.shape, lambda: bytes_of(array))
    commit(
        Path(mount) / "run",
        Document(step, {}, {}, {"model": collector.entries}),
        Options(keep=keep),
    )


def main():
    """Save and lose the power."""
    mount, step, keep, at = sys.argv[1], *map(int, sys.argv[2:])
    _fs.ops = CuttingOps(mount, at)
    save(mount, step, keep)
    cut(mount)


if __name__ == "__main__":
    main()
