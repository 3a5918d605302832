"""Gloo processes that save in the background, one of which is killed; `test_async_sharded.py`.

Run by path: ``async_worker.py FOLDER WORLD POINTS``, where POINTS is how many of the points to kill
at, or "all". The processes are forked from one that has imported torch. They save step 1 and wait,
save step 2, change what they saved and use the group of the training meanwhile; one of them dies
before or after a call to the disk or to the others. What is left is read here. Prints JSON.
"""

import json
import os
import signal
import sys
import warnings
from datetime import timedelta
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
import torch

# The first operation on a DTensor imports it: once here, and not in each of the processes.
import torch._dynamo
import torch.distributed as dist
from optim_checkpoint import _fs
from optim_checkpoint import torch as ckpt
from optim_checkpoint.torch._processes import GroupProcesses
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

CALLS = ["make_folder", "create", "allocate", "write", "sync", "close", "rename", "remove"]


class Points:
    """Counts the points of one process, and kills it at one of them."""

    def __init__(self):
        self.count = 0
        self.last = 0

    def around(self, function):
        def call(*arguments):
            self.strike()
            result = function(*arguments)
            self.strike()
            return result

        return call

    def strike(self):
        self.count += 1
        if self.count == self.last:
            os.kill(os.getpid(), signal.SIGKILL)


points = Points()
for name in CALLS:
    setattr(_fs.FileOps, name, points.around(getattr(_fs.FileOps, name)))
for name in ("exchange", "gather"):
    setattr(GroupProcesses, name, points.around(getattr(GroupProcesses, name)))


def values(step, rows=7):
    return torch.from_numpy(np.random.default_rng(step).standard_normal((rows, 4), np.float32))


class Net(torch.nn.Module):
    """A sharded parameter, one with fewer rows than processes, and a plain buffer."""

    def __init__(self, wrap=lambda tensor: tensor):
        super().__init__()
        self.weight = torch.nn.Parameter(wrap(torch.zeros(7, 4)))
        self.row = torch.nn.Parameter(wrap(torch.zeros(1, 4)))
        self.register_buffer("scale", torch.zeros(7, 4))

    @torch.no_grad()
    def fill(self, step, wrap=lambda tensor: tensor):
        self.weight.copy_(wrap(values(step)))
        self.row.copy_(wrap(values(step, 1)))
        self.scale.copy_(values(step + 100))


def train(folder, world, rank, last, store):
    """Do what the module says; return how it ended."""
    # Who waits in the group of the training for one that waits is no matter of the save.
    wait = timedelta(seconds=20)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world, timeout=wait)
    if world % 2 or world == 2:
        mesh, places = init_device_mesh("cpu", (world,)), [Shard(0)]
    else:
        mesh, places = init_device_mesh("cpu", (2, world // 2)), [Replicate(), Shard(0)]

    def wrap(tensor):
        return distribute_tensor(tensor, mesh, places)

    model = Net(wrap)
    checkpointer = ckpt.AsyncCheckpointer(folder, keep=2)
    model.fill(1, wrap)
    checkpointer.save(1, model=model)
    checkpointer.wait()
    model.fill(2, wrap)
    dist.barrier()
    points.count, points.last = 0, last
    try:
        checkpointer.save(2, model=model)
        with torch.no_grad():
            for tensor in (*model.parameters(), model.scale):
                tensor.fill_(-1)
        for _ in range(5):
            dist.all_reduce(torch.ones(3))
    except RuntimeError:
        # The group of the training is broken, too.
        pass
    try:
        checkpointer.wait()
    except oc.CheckpointWriteError:
        return 3
    return 100 + points.count


def trial(folder, world, victim, last):
    """Return how each process ended."""
    store_file = str(folder.with_suffix(".store"))
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            signal.alarm(90)
            code = 9
            try:
                store = dist.FileStore(store_file, world)
                code = train(folder, world, rank, last if rank == victim else 0, store)
            finally:
                os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


def sound(folder, step):
    """Say whether a step has every bit of what was live at its save."""
    model, expected = Net(), Net()
    expected.fill(step)
    ckpt.restore(folder, step, model=model, rng=False)
    pairs = zip(model.state_dict().values(), expected.state_dict().values(), strict=True)
    return all(torch.equal(one, other) for one, other in pairs)


def main(root, world, share):
    """Kill each process at its points, as many of them as asked for."""
    calls = [code - 100 for code in trial(root / "count", world, None, 0)]
    every = [(rank, n) for rank, count in enumerate(calls) for n in range(1, count + 1)]
    wanted = len(every) if share == "all" else min(int(share), len(every))
    picked = [every[i * len(every) // wanted] for i in range(wanted)]
    trials = []
    for victim, number in picked:
        folder = root / f"{victim}-{number}"
        ended = trial(folder, world, victim, number)
        steps = oc.steps(folder)
        found = [sound(folder, step) for step in steps]
        ckpt.save(folder, 3, model=Net())
        left = sorted(p.name for p in folder.iterdir() if not p.name.startswith("step-"))
        trials.append(
            {
                "victim": victim,
                "number": number,
                "ended": ended,
                "steps": steps,
                "sound": found,
                "left": left,
            }
        )
    print(json.dumps({"calls": calls, "trials": trials}))  # noqa: T201 - the answer to the test


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    main(Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3])
