"""Processes of a gloo group that save, restore and fail; `test_sharded.py` starts them.

Run by path: ``mesh_worker.py WORLD FOLDER``. The processes are forked from one that has imported
torch, meet at a file in FOLDER, and end by themselves after two minutes. Process 0 prints what was
found as JSON.
"""

import json
import multiprocessing
import os
import signal
import sys
import warnings
from pathlib import Path

import optim_checkpoint as oc
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from mesh_four import four
from mesh_training import (
    CASES,
    STEPS,
    build,
    error_of,
    fingerprint,
    gathered,
    layouts,
    shard,
    train,
    whole,
)
from optim_checkpoint import _fs
from optim_checkpoint import torch as ckpt
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor


def left(folder):
    return sorted(path.name for path in folder.iterdir())


def two_save(folder):
    mesh = init_device_mesh("cpu", (2,))
    result = {}
    for number, case in enumerate(CASES):
        run = folder / f"run{number}"
        model, make = build(case)
        shard(model, mesh)
        optimizer = make()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        train(model, optimizer, 0, scheduler=scheduler)
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        path = ckpt.save(run, STEPS, **state, rng=False, extra={"case": case})
        result[case] = {
            "run": str(run),
            "path": str(path),
            "start": fingerprint(model, optimizer),
            "kinds": layouts(optimizer),
        }
        for name, first in (("middle", STEPS), ("end", 2 * STEPS)):
            train(model, optimizer, first, scheduler=scheduler)
            result[case][name] = fingerprint(model, optimizer)
    return result


def two_generators(folder):
    """Each process gets its own generators and data back, and what comes after is the same."""
    mesh = init_device_mesh("cpu", (2,))
    model, _ = build()
    shard(model, mesh)
    torch.manual_seed(100 + dist.get_rank())
    ckpt.save(folder / "rng", 1, model=model, data=Saved(10 + dist.get_rank()))
    drawn = torch.rand(3)
    ckpt.restore(folder / "rng", model=model, data=(loader := Saved(0)))
    again = torch.rand(3)
    draws = gathered(drawn.tolist())
    return {
        "equal": gathered(torch.equal(drawn, again)),
        "distinct": draws[0] != draws[1],
        "data": gathered(loader.value),
    }


def two_replicas(folder):
    """Without DTensors, a group given makes the processes save together: one copy is stored."""
    model, make = build()
    optimizer = make()
    train(model, optimizer, 0)
    group = dist.group.WORLD
    state = {"model": model, "optimizer": optimizer}
    torch.manual_seed(dist.get_rank())
    path = ckpt.save(folder / "replicas", 1, process_group=group, **state)
    drawn = torch.rand(3)
    ckpt.restore(folder / "replicas", process_group=group, **state)
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    return {"files": files, "equal": gathered(torch.equal(drawn, torch.rand(3)))}


def two_reader(folder, run):
    """Torch's own reader loads the optimizer folder into DTensors of this mesh."""
    mesh = init_device_mesh("cpu", (2,))
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    ckpt.restore(run, model=model, optimizer=optimizer, rng=False)
    names = {id(p): name for name, p in model.named_parameters()}
    state = {
        f"state.{names[id(p)]}.{slot}": torch.zeros_like(value)
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    folders = sorted(Path(run).glob("step-*/optim"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folders[-1])))
    equal = [
        torch.equal(whole(state[f"state.{names[id(p)]}.{slot}"]), whole(value))
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    ]
    return {"equal": all(equal), "count": len(equal)}


class Failing(_fs.FileOps):
    """Fails from the n-th write on, or kills the process there."""

    def __init__(self, number, *, kill=False):
        self.left = number
        self.kill = kill

    def write(self, fd, data):
        self.left -= 1
        if self.left < 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def two_failures(folder):
    """What goes wrong in one process is an error in both, and nothing is committed."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    run = folder / "failures"
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    state = {"model": model, "optimizer": optimizer}
    ckpt.save(run, 1, **state)
    result = {}

    def attempt(name, **changes):
        result[name] = gathered(error_of(lambda: ckpt.save(run, 2, **{**state, **changes})))

    attempt("unsupported", extra={"f": print} if rank else {"f": 1})
    attempt("differing", extra={"epoch": rank})
    result["exists"] = gathered(error_of(lambda: ckpt.save(run, 1, **state)))
    result["steps"] = gathered(error_of(lambda: ckpt.save(run, 2 + rank, **state)))
    model.scale.fill_(rank)
    attempt("replica")
    model.scale.fill_(0.5)
    if rank:
        _fs.ops = Failing(1)
    attempt("full disk of process 1")
    _fs.ops = Failing(1) if rank == 0 else _fs.FileOps()
    attempt("full disk of process 0")
    _fs.ops = _fs.FileOps()
    elsewhere = folder / "elsewhere" if rank else run
    result["elsewhere"] = gathered(error_of(lambda: ckpt.save(elsewhere, 2, **state)))
    partial = distribute_tensor(torch.ones(2), mesh, [Shard(0)])
    one = DTensor.from_local(partial.to_local(), mesh, [Replicate()])
    attempt("replicas that differ", extra={"t": one * (1 + rank)})
    checkpointer = ckpt.AsyncCheckpointer(run)

    def background(**changes):
        checkpointer.save(2, **{**state, **changes})
        checkpointer.wait()

    extra = {"f": print} if rank else {"f": 1}
    result["background"] = gathered(error_of(lambda: background(extra=extra)))
    result["background, again"] = gathered(error_of(lambda: background(extra={"epoch": rank})))
    result["left"] = left(run)
    return result


def two_background(folder):
    """What is saved in the background is what was there at the call, and as `save` saves it."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    state = {"model": model, "optimizer": optimizer}
    torch.manual_seed(rank)
    ckpt.save(folder / "front", 1, **state)
    with ckpt.AsyncCheckpointer(folder / "back") as checkpointer:
        checkpointer.save(1, **state)
        # Training goes on, with collectives of its own.
        train(model, optimizer, STEPS)
        path = checkpointer.wait()
        checkpointer.save(2, **state)
    files = [file for file in sorted(path.rglob("*")) if file.is_file()]
    front = [folder / "front" / path.name / file.relative_to(path) for file in files]
    # Without staging the shards are read into the live memory.
    end = fingerprint(model, optimizer)
    train(model, optimizer, 2 * STEPS)
    slots = [v for p in model.parameters() for v in optimizer.state.get(p, {}).values()]
    live = [getattr(t, "_local_tensor", t) for t in (*model.parameters(), *slots)]
    where = [t.data_ptr() for t in live]
    ckpt.restore(folder / "back", 2, staging=False, **state)
    slots = [v for p in model.parameters() for v in optimizer.state.get(p, {}).values()]
    live = [getattr(t, "_local_tensor", t) for t in (*model.parameters(), *slots)]
    return {
        "restored": gathered(fingerprint(model, optimizer) == end),
        "moved": gathered(sum(a != t.data_ptr() for a, t in zip(where, live, strict=True))),
        "files": [file.name for file in files],
        "equal": [a.read_bytes() == b.read_bytes() for a, b in zip(files, front, strict=True)],
        "steps": gathered(oc.steps(folder / "back")),
    }


def two_damage(folder):
    """Both processes take the older generation where one finds damage in the newer."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    run = folder / "damage"
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    state = {"model": model, "optimizer": optimizer}
    ckpt.save(run, 1, **state, rng=False)
    before = fingerprint(model, optimizer)
    train(model, optimizer, STEPS)
    path = ckpt.save(run, 2, **state, rng=False)
    dist.barrier()
    if rank == 0:
        # The last byte of a file that process 1 needs.
        victim = sorted((path / "optim").iterdir())[-1]
        raw = bytearray(victim.read_bytes())
        raw[-1] ^= 1
        victim.write_bytes(raw)
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ckpt.restore(run, **state)
    result = {
        "step": gathered(found.step),
        "warnings": gathered([str(w.message) for w in caught]),
        "equal": gathered(fingerprint(model, optimizer) == before),
    }
    result["asked for"] = gathered(error_of(lambda: ckpt.restore(run, 2, **state)))
    changed, make = build()
    changed.down = nn.Linear(10, 5)
    changed.scale = torch.zeros(3)
    shard(changed, mesh)
    untouched = fingerprint(changed, make())
    result["mismatch"] = gathered(
        error_of(lambda: ckpt.restore(run, 1, model=changed, optimizer=make()))
    )
    result["untouched"] = fingerprint(changed, make()) == untouched

    class Picky(Saved):
        def load_state_dict(self, state):
            if rank and state["a"] == 2:
                raise RuntimeError("no")
            super().load_state_dict(state)

    ckpt.save(folder / "picky", 1, **state, scheduler=Saved(2), rng=False)
    train(model, optimizer, STEPS)
    before = fingerprint(model, optimizer)
    try:
        ckpt.restore(folder / "picky", **state, scheduler=Picky(1))
    except Exception as error:  # noqa: BLE001 - its class is what is reported
        result["refused"] = gathered([type(error).__name__, str(error)])
    result["rolled back"] = gathered(fingerprint(model, optimizer) == before)
    return result


class Saved:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"a": self.value}

    def load_state_dict(self, state):
        self.value = state["a"]


def two_killed(folder):
    """Process 1 is killed while it writes; process 0 raises and the step before stays."""
    run = folder / "failures"
    mesh = init_device_mesh("cpu", (2,))
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    if dist.get_rank() == 1:
        _fs.ops = Failing(2, kill=True)
    error = error_of(lambda: ckpt.save(run, 2, model=model, optimizer=optimizer))
    return {"error": error, "left": left(run)}


def two(folder):
    result = {"save": two_save(folder)}
    result["generators"] = two_generators(folder)
    result["replicas"] = two_replicas(folder)
    result["reader"] = two_reader(folder, result["save"]["AdamW torch.float32"]["run"])
    result["failures"] = two_failures(folder)
    result["background"] = two_background(folder)
    result["damage"] = two_damage(folder)
    result["killed"] = two_killed(folder)
    return result


def main(world, folder, rank):
    """Run what `world` processes do."""
    signal.alarm(120)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    result = {2: two, 4: four}[world](folder)
    if rank == 0:
        (folder / f"result{world}.json").write_text(json.dumps(result))
    if world == 4:
        dist.destroy_process_group()


def start(world, folder):
    """Fork the processes; return how each ended."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=main, args=(world, folder, rank)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(start(int(sys.argv[1]), Path(sys.argv[2]))))  # noqa: T201 - the answer to the test
