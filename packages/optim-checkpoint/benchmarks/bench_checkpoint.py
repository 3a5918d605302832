"""Compare save, load and stall with the alternatives on the same bytes; print ratios.

    python benchmarks/bench_checkpoint.py --mib 384 --rounds 5 --folder /somewhere/on/the/disk

Every contender runs once per round, in turn, so that a slow minute of the machine hits all; medians
are compared. A save counts until its bytes are durable: those that do not sync by themselves are
synced here. What is not installed is left out and named. Use an otherwise idle machine.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoint import torch as ckpt

TENSORS = 96


class Bag(torch.nn.Module):
    """A module with tensors and nothing else."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        size = mib * (1 << 20) // TENSORS // 4 // 64 * 64
        for i in range(TENSORS):
            self.register_buffer(f"t{i}", torch.randn(size))


def sync(path: Path) -> None:
    """Sync a file, or every file and folder of a tree."""
    for item in [path, *(path.rglob("*") if path.is_dir() else [])]:
        fd = os.open(item, os.O_RDONLY)
        os.fsync(fd)
        os.close(fd)


def raw(state: dict[str, torch.Tensor], path: Path) -> None:
    """Write the bytes and sync: the bound for everything else."""
    with path.open("wb", buffering=0) as file:
        for tensor in state.values():
            data = memoryview(tensor.view(torch.uint8).numpy())
            while data:
                data = data[file.write(data) :]
        os.fsync(file.fileno())


def savers(model: Bag) -> dict[str, Callable[[Path], object]]:
    """Return what saves the model durably into a fresh path."""
    state = dict(model.state_dict())

    def torch_save(path: Path) -> None:
        torch.save(state, path)
        sync(path)

    def plain_safetensors(path: Path) -> None:
        safetensors.torch.save_file(state, path)
        sync(path)

    def dcp_save(path: Path) -> None:
        dcp.save(state, storage_writer=dcp.FileSystemWriter(path), no_dist=True)
        sync(path)

    found: dict[str, Callable[[Path], object]] = {
        "raw write and fsync": lambda path: raw(state, path),
        "optim-checkpoint": lambda path: ckpt.save(path, 1, model=model, rng=False),
        "safetensors and fsync": plain_safetensors,
        "torch.save and fsync": torch_save,
        "torch DCP and fsync": dcp_save,
    }
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        return found
    arrays = {name: tensor.numpy() for name, tensor in state.items()}

    def orbax_save(path: Path) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), arrays)
            checkpointer.wait_until_finished()
        sync(path)

    found["Orbax and fsync"] = orbax_save
    return found


def loaders(model: Bag, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what loads a saved model; the files are in the cache."""
    state = dict(model.state_dict())
    raw(state, folder / "raw")
    ckpt.save(folder / "ours", 1, model=model, rng=False)
    torch.save(state, folder / "torch")
    targets = [np.empty(t.numel(), np.float32) for t in state.values()]

    def readinto() -> None:
        with (folder / "raw").open("rb", buffering=0) as file:
            for target in targets:
                view = memoryview(target).cast("B")
                while view:
                    view = view[file.readinto(view) :]

    return {
        "raw readinto": readinto,
        "optim-checkpoint, verified": lambda: ckpt.restore(folder / "ours", model=model),
        "torch.load": lambda: torch.load(folder / "torch", weights_only=True),
    }


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(args: argparse.Namespace, folder: Path) -> dict[str, dict[str, float]]:
    """Run all rounds and return the medians."""
    model = Bag(args.mib)
    seconds: dict[str, dict[str, list[float]]] = {"save": {}, "load": {}, "stall": {}}
    contenders = savers(model)
    background = ckpt.AsyncCheckpointer(folder / "async", keep=1)
    hot = loaders(model, folder)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    ckpt.save(folder / "memory", 1, model=model, rng=False)
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    for round_ in range(args.rounds + 1):
        for name, save in contenders.items():
            path = folder / f"save-{round_}"
            taken = timed(lambda save=save, path=path: save(path))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
            # The first round warms up caches and staging memory and does not count.
            if round_:
                seconds["save"].setdefault(name, []).append(taken)
        stall = timed(lambda step=round_: background.save(step, model=model, rng=False))
        background.wait()
        if round_:
            seconds["stall"].setdefault("optim-checkpoint", []).append(stall)
        for name, load in hot.items():
            taken = timed(load)
            if round_:
                seconds["load"].setdefault(name, []).append(taken)
    result = {
        kind: {name: statistics.median(values) for name, values in table.items()}
        for kind, table in seconds.items()
    }
    result["memory"] = {"peak growth of a save, MiB": memory / 1024}
    return result


def report(result: dict[str, dict[str, float]]) -> str:
    """Return the ratios as text."""
    ours = result["save"]["optim-checkpoint"]
    lines = ["durable save, speed relative to optim-checkpoint:"]
    lines += [
        f"  {name:28} {seconds:8.3f} s   optim-checkpoint is {seconds / ours:5.2f}x as fast"
        for name, seconds in result["save"].items()
    ]
    loaded = result["load"]["optim-checkpoint, verified"]
    lines += ["hot load:"]
    lines += [
        f"  {name:28} {seconds:8.3f} s   optim-checkpoint is {seconds / loaded:5.2f}x as fast"
        for name, seconds in result["load"].items()
    ]
    stall = result["stall"]["optim-checkpoint"]
    lines += [f"async stall: {stall:.3f} s, {stall / ours:.2f} of the durable save"]
    lines += [f"{name}: {value:.1f}" for name, value in result["memory"].items()]
    return "\n".join(lines)


def main() -> None:
    """Parse the arguments, measure, print and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="where to write the medians")
    args = parser.parse_args()
    if args.mib < 1 or args.rounds < 1:
        parser.error("--mib and --rounds must be at least 1")
    with tempfile.TemporaryDirectory(dir=args.folder) as folder:
        result = measure(args, Path(folder))
    sys.stdout.write(report(result) + "\n")
    if args.json is not None:
        args.json.write_text(json.dumps(result, indent=2) + "\n")


if __name__ == "__main__":
    main()
