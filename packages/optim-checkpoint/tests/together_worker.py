"""Two processes save together, and one is killed at a given call; run by path with a folder.

For every rank and every call that it makes, two processes are forked that save step 2, one of them
dies there, and what is left is read. Prints what happened as JSON.
"""

import json
import os
import signal
import socket
import struct
import sys
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
from optim_checkpoint import _fs
from optim_checkpoint._boxes import whole
from optim_checkpoint._commit import Document
from optim_checkpoint._errors import CheckpointWriteError
from optim_checkpoint._files import ShardEntry
from optim_checkpoint._folder import parse_name
from optim_checkpoint._generation import Generation
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Team
from optim_checkpoint._shard import Entry
from optim_checkpoint._together import save_together

CALLS = ["make_folder", "create", "allocate", "write", "sync", "close", "rename", "remove"]


class Pair:
    """Two processes joined by a socket, whose end is seen when one dies."""

    size = 2

    def __init__(self, rank, connection):
        self.rank = rank
        self.connection = connection

    def _receive(self, count):
        data = b""
        while len(data) < count:
            more = self.connection.recv(count - len(data))
            if not more:
                raise RuntimeError("the other one is gone")
            data += more
        return data

    def exchange(self, message):
        try:
            self.connection.sendall(struct.pack("<Q", len(message)) + message)
            other = self._receive(struct.unpack("<Q", self._receive(8))[0])
        except OSError as error:
            raise RuntimeError(str(error)) from None
        return [message, other] if self.rank == 0 else [other, message]

    gather = exchange


class Killing(_fs.FileOps):
    """Kills the process before or after its n-th call."""

    def __init__(self, number):
        self.count = 0
        self.number = number


def counted(name):
    def call(self, *arguments):
        self.count += 1
        if self.count == self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        result = getattr(_fs.FileOps, name)(self, *arguments)
        if self.count == -self.number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    return call


for call in CALLS:
    setattr(Killing, call, counted(call))


def values(step):
    return np.random.default_rng(step).standard_normal((6, 2)).astype(np.float32)


def document(step, rank):
    rows = np.ascontiguousarray(values(step)[3 * rank : 3 * rank + 3])
    entries = [
        ShardEntry("t", "F32", (3, 2), lambda: memoryview(rows).cast("B"), (3 * rank, 0), (6, 2)),
        Entry("shared", "F32", (3, 2), lambda: memoryview(values(step)[:3]).cast("B")),
    ]
    return Document(step, {"name": "numpy", "versions": {}}, {"train": {}}, {"model": entries})


def save(folder, step, victim, number):
    """Save from two processes; return how each ended and how many calls it made."""
    ends = socket.socketpair()
    children = []
    for rank in range(2):
        pid = os.fork()
        if pid == 0:
            signal.alarm(60)
            ends[1 - rank].close()
            _fs.ops = Killing(number if rank == victim else 0)
            team = Team(Pair(rank, ends[rank]), f"saving step {step}", CheckpointWriteError)
            code, own = 9, document(step, rank)
            try:
                save_together(
                    folder,
                    lambda own=own: own,
                    team,
                    Options(keep=2, replace=False, max_shard_size=10**9),
                )
                code = 100 + _fs.ops.count
            except CheckpointWriteError:
                code = 3
            os._exit(code)
        children.append(pid)
    for end in ends:
        end.close()
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def sound(folder, step):
    """Say whether a step is there with every bit."""
    found = np.empty((6, 2), np.float32)
    region = whole(found.view(np.uint8).reshape(-1), (6, 2), 4)
    with (
        _fs.opened(_fs.open_folder(folder)) as root,
        Generation(root, parse_name(f"step-{step:08d}")) as generation,
    ):
        generation.read(lambda part, key, info: [region] if key == "t" else None)
    return bool((found == values(step)).all())


def main(root):
    """Kill at every point."""
    save(root / "count", 1, 0, 0)
    codes = save(root / "count", 2, 0, 0)
    calls = [code - 100 for code in codes]
    trials = []
    for victim in range(2):
        for number in range(1, calls[victim] + 1):
            for sign in (1, -1):
                folder = root / f"{victim}-{number}-{sign}"
                assert min(save(folder, 1, 0, 0)) >= 100
                ended = save(folder, 2, victim, sign * number)
                steps = oc.steps(folder)
                before = [sound(folder, step) for step in steps]
                after = save(folder, 3, 0, 0)
                trials.append(
                    {
                        "victim": victim,
                        "number": sign * number,
                        "ended": ended,
                        "steps": steps,
                        "sound": before,
                        "after": min(after) >= 100 and sound(folder, 3),
                        "left": sorted(p.name for p in folder.iterdir()),
                    }
                )
    print(json.dumps({"calls": calls, "trials": trials}))  # noqa: T201 - the answer to the test


if __name__ == "__main__":
    main(Path(sys.argv[1]))
