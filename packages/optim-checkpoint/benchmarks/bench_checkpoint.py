"""Compare save, load, stall and memory with the alternatives on the same bytes; print ratios.

    python benchmarks/bench_checkpoint.py --mib 384 --rounds 9 --folder FOLDER_ON_THE_DISK

Every contender runs once per round, in an order that changes from round to round, so that a slow
minute of the machine hits all and none always follows the same other. A ratio is the median over
the rounds of (time of the other) / (our time) within a round. The bound runs twice a round, against
itself: the middle half of those ratios is the A/A band, and a difference inside it is noise. A save
starts when the disk has nothing else to write and counts until its bytes are durable: what does not
sync by itself is synced here. What is not installed is left out and named. Use an otherwise idle
machine.
"""

import argparse
import importlib.metadata
import json
import os
import platform
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import safetensors.torch
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optim_checkpoint import torch as ckpt
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Shard

TENSORS = 96
OURS = "optim-checkpoint"
DIRECT = "optim-checkpoint, staging=False"
SHARDED = "optim-checkpoint, DTensors"
RAW = "raw write and fsync"
WARM = "readinto, memory that is reused"
FRESH = "readinto, new tensors"
OPERATIONS = ("save", "async save", "restore", "restore, staging=False")
Table = dict[str, list[float]]


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
        RAW: lambda path: raw(state, path),
        f"{RAW}, again": lambda path: raw(state, path),
        OURS: lambda path: ckpt.save(path, 1, model=model, rng=False),
        "safetensors and fsync": plain_safetensors,
        "torch.save and fsync": torch_save,
        "torch DCP and fsync": dcp_save,
    }
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        sys.stderr.write("orbax-checkpoint is not installed and is left out\n")
        return found
    arrays = {name: tensor.numpy() for name, tensor in state.items()}

    def orbax_save(path: Path) -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.save(path.absolute(), arrays)
            checkpointer.wait_until_finished()
        sync(path)

    found["Orbax and fsync"] = orbax_save
    return found


def read_into(path: Path, tensors: list[torch.Tensor]) -> None:
    """Read a file into tensors, unverified: the bound of a load."""
    with path.open("rb", buffering=0) as file:
        for tensor in tensors:
            view = memoryview(tensor.view(torch.uint8).numpy())
            while view:
                view = view[file.readinto(view) :]


def loaders(model: Bag, folder: Path) -> dict[str, Callable[[], object]]:
    """Return what loads a saved model; the files are in the page cache."""
    state = dict(model.state_dict())
    raw(state, folder / "raw")
    ckpt.save(folder / "ours", 1, model=model, rng=False)
    torch.save(state, folder / "torch")
    safetensors.torch.save_file(state, folder / "safetensors")
    dcp.save(state, storage_writer=dcp.FileSystemWriter(folder / "dcp"), no_dist=True)
    reused = [torch.zeros_like(tensor) for tensor in state.values()]

    def fresh() -> None:
        read_into(folder / "raw", [torch.empty_like(tensor) for tensor in state.values()])

    found: dict[str, Callable[[], object]] = {
        WARM: lambda: read_into(folder / "raw", reused),
        f"{WARM}, again": lambda: read_into(folder / "raw", reused),
        FRESH: fresh,
        OURS: lambda: ckpt.restore(folder / "ours", model=model),
        DIRECT: lambda: ckpt.restore(folder / "ours", model=model, staging=False),
        "torch.load and copy": lambda: model.load_state_dict(
            torch.load(folder / "torch", weights_only=True)
        ),
        # By itself load_file maps the file and reads nothing.
        "safetensors and copy": lambda: model.load_state_dict(
            safetensors.torch.load_file(folder / "safetensors")
        ),
        "torch DCP": lambda: dcp.load(
            state, storage_reader=dcp.FileSystemReader(folder / "dcp"), no_dist=True
        ),
    }
    try:
        import orbax.checkpoint as ocp
    except ImportError:
        return found
    arrays = {name: tensor.numpy() for name, tensor in state.items()}
    with ocp.StandardCheckpointer() as checkpointer:
        checkpointer.save((folder / "orbax").absolute(), arrays)

    def orbax_load() -> None:
        with ocp.StandardCheckpointer() as checkpointer:
            checkpointer.restore((folder / "orbax").absolute(), arrays)

    found["Orbax"] = orbax_load
    return found


def sharded_of(model: Bag) -> torch.nn.Module:
    """Return a module whose tensors are DTensors of the same memory, on a mesh of this process."""
    dist.init_process_group("gloo", store=dist.HashStore(), rank=0, world_size=1)
    mesh = init_device_mesh("cpu", (1,))
    sharded = torch.nn.Module()
    for name, tensor in model.state_dict().items():
        sharded.register_buffer(name, DTensor.from_local(tensor, mesh, [Shard(0)]))
    return sharded


def timed(call: Callable[[], object]) -> float:
    """Return the seconds a call takes."""
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(mib: int, rounds: int, folder: Path) -> dict[str, Table]:
    """Run all rounds and return every time."""
    model = Bag(mib)
    seconds: dict[str, Table] = {"save": {}, "load": {}, "stall": {}}
    contenders, hot = savers(model), loaders(model, folder)
    background = ckpt.AsyncCheckpointer(folder / "async", keep=1)
    together = ckpt.AsyncCheckpointer(folder / "together", keep=1)
    shards = sharded_of(model)
    contenders[SHARDED] = lambda path: ckpt.save(path, 1, model=shards, rng=False)
    for number in range(rounds + 1):
        taken: dict[str, dict[str, float]] = {"save": {}, "load": {}, "stall": {}}
        order = random.Random(number)  # noqa: S311 - the order only has to differ
        for name, save in order.sample(list(contenders.items()), len(contenders)):
            path = folder / f"save-{number}"
            os.sync()
            taken["save"][name] = timed(lambda save=save, path=path: save(path))
            shutil.rmtree(path) if path.is_dir() else path.unlink()
        for name, load in order.sample(list(hot.items()), len(hot)):
            taken["load"][name] = timed(load)
        os.sync()
        taken["stall"][OURS] = timed(
            lambda number=number: background.save(number, model=model, rng=False)
        )
        background.wait()
        os.sync()
        taken["stall"][SHARDED] = timed(
            lambda number=number: together.save(number, model=shards, rng=False)
        )
        together.wait()
        # The first round warms up caches and staging memory and does not count.
        if number:
            for kind, row in taken.items():
                for name, value in row.items():
                    seconds[kind].setdefault(name, []).append(value)
    return seconds


def memory_of(what: str, mib: int, folder: Path) -> int:
    """Return by how many bytes the peak of this process grows over what it holds already."""
    model = Bag(mib)
    small = torch.nn.Linear(2, 2)
    # Imports and the first thread are not what a save costs.
    ckpt.save(folder / "small", 1, model=small)
    restores = what.startswith("restore")
    if restores:
        ckpt.save(folder / "run", 1, model=model, rng=False)
    Path("/proc/self/clear_refs").write_text("5")
    before = resident("VmRSS")
    if what == "save":
        ckpt.save(folder / "run", 1, model=model, rng=False)
    elif restores:
        ckpt.restore(folder / "run", model=model, staging=what == "restore")
    else:
        with ckpt.AsyncCheckpointer(folder / "run") as background:
            background.save(1, model=model, rng=False)
    return resident("VmHWM") - before


def resident(field: str) -> int:
    """Return the resident bytes of this process, now (VmRSS) or at most (VmHWM)."""
    words = Path("/proc/self/status").read_text().split()
    return int(words[words.index(f"{field}:") + 1]) * 1024


def measured_memory(mib: int, folder: Path) -> dict[str, float]:
    """Return the MiB that each operation needs beside the state, each in a process of its own."""
    found: dict[str, float] = {}
    if sys.platform != "linux":
        sys.stderr.write("peak memory is read from /proc and is left out\n")
        return found
    for what in OPERATIONS:
        with tempfile.TemporaryDirectory(dir=folder) as own:
            command = [sys.executable, __file__, "--mib", str(mib), "--folder", own]
            command += ["--memory-of", what]
            out = subprocess.run(command, check=True, capture_output=True, text=True)  # noqa: S603 - this file
            found[what] = round(int(out.stdout) / (1 << 20), 1)
    return found


def paired(others: list[float], ours: list[float]) -> dict[str, float]:
    """Return median and middle half of the ratios within the rounds."""
    ratios = [other / own for other, own in zip(others, ours, strict=True)]
    low, middle, high = statistics.quantiles(ratios, n=4, method="inclusive")
    return {"median": round(middle, 3), "low": round(low, 3), "high": round(high, 3)}


def ratios_of(seconds: dict[str, Table]) -> dict[str, dict[str, dict[str, float]]]:
    """Return how many times as fast as each alternative we are, and the A/A bands."""
    save, load = seconds["save"], seconds["load"]
    return {
        "save": {name: paired(row, save[OURS]) for name, row in save.items() if name != OURS},
        "load": {name: paired(row, load[OURS]) for name, row in load.items() if name != OURS},
        "load, staging=False": {
            name: paired(row, load[DIRECT]) for name, row in load.items() if name != DIRECT
        },
        "stall": {
            "share of the durable save": paired(seconds["stall"][OURS], save[OURS]),
            "share of the durable save, DTensors": paired(seconds["stall"][SHARDED], save[SHARDED]),
        },
        "A/A": {
            "save": paired(save[f"{RAW}, again"], save[RAW]),
            "load": paired(load[f"{WARM}, again"], load[WARM]),
        },
    }


def machine() -> dict[str, object]:
    """Return what the figures depend on."""
    model = platform.processor()
    cpuinfo = Path("/proc/cpuinfo")
    if cpuinfo.exists():
        names = [line for line in cpuinfo.read_text().splitlines() if line.startswith("model name")]
        model = names[0].partition(":")[2].strip() if names else model
    names = ("torch", "numpy", "safetensors", "xxhash", "orbax-checkpoint")
    versions: dict[str, str] = {}
    for name in names:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "cpu": model,
        "cores": os.cpu_count(),
        "kernel": platform.release(),
        "python": platform.python_version(),
        "versions": versions,
    }


def report(document: dict[str, object], seconds: dict[str, Table]) -> str:
    """Return the ratios as text."""
    ratios = ratios_of(seconds)
    lines: list[str] = []
    for kind in ("save", "load"):
        lines.append(f"{'durable save' if kind == 'save' else 'hot load, verified'}:")
        for name, row in seconds[kind].items():
            line = f"  {name:38} {statistics.median(row):8.3f} s"
            if name != OURS:
                ratio = ratios[kind][name]
                line += f"   {OURS} is {ratio['median']:5.2f}x as fast"
                line += f" ({ratio['low']:.2f} to {ratio['high']:.2f})"
            lines.append(line)
        band = ratios["A/A"][kind]
        lines.append(f"  A/A band {band['low']:.2f} to {band['high']:.2f}")
    for name, ratio in ratios["load, staging=False"].items():
        lines.append(f"  {DIRECT} is {ratio['median']:5.2f}x as fast as {name}")
    for name, stall in ratios["stall"].items():
        lines.append(f"async stall, {name}: {stall['median']:.2f}")
    lines.append(f"memory beside the state, MiB: {document['memory MiB']}")
    lines.append(f"machine: {document['machine']}, load {document['load average']}")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Parse the arguments, measure, print and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="where to write the result")
    parser.add_argument("--memory-of", choices=OPERATIONS, default=None)
    args = parser.parse_args()
    if args.mib < 1 or args.rounds < 2:
        parser.error("--mib must be at least 1 and --rounds at least 2")
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        folder = Path(name)
        if args.memory_of is not None:
            sys.stdout.write(f"{memory_of(args.memory_of, args.mib, folder)}\n")
            return
        load_before = os.getloadavg()[0]
        memory = measured_memory(args.mib, folder)
        seconds = measure(args.mib, args.rounds, folder)
        dist.destroy_process_group()
    document = {
        "mib": args.mib,
        "rounds": args.rounds,
        "machine": machine(),
        "load average": [round(load_before, 1), round(os.getloadavg()[0], 1)],
        "seconds": {
            kind: {name: round(statistics.median(row), 4) for name, row in table.items()}
            for kind, table in seconds.items()
        },
        "ratios": ratios_of(seconds),
        "memory MiB": memory,
    }
    sys.stdout.write(report(document, seconds))
    if args.json is not None:
        args.json.write_text(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
