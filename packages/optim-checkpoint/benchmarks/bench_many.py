"""Compare save and load of very many small tensors with torch; print and write ratios.

    python benchmarks/bench_many.py --tensors 100000 --rounds 5 --folder FOLDER_ON_THE_DISK

What counts here is what a tensor costs beside its bytes. Both are interleaved, both saves are
synced and both loads end in the model. Ratios are of the processor time of the process, which other
work on the machine moves least, and of the clock; medians over the rounds and their middle half.
"""

import argparse
import json
import os
import shutil
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from bench_checkpoint import machine, paired, sync
from optim_checkpoint import torch as ckpt

Times = dict[str, list[float]]


class Many(torch.nn.Module):
    """A module with very many small tensors."""

    def __init__(self, count: int) -> None:
        super().__init__()
        for i in range(count):
            self.register_buffer(f"t{i}", torch.randn(16))


def clocks(call: Callable[[], object]) -> tuple[float, float]:
    """Return the seconds of the processor and of the clock that a call takes."""
    cpu, wall = time.process_time(), time.perf_counter()
    call()
    return time.process_time() - cpu, time.perf_counter() - wall


def measure(count: int, rounds: int, folder: Path) -> dict[str, Times]:
    """Run all rounds and return every time, of the processor and of the clock."""
    model = Many(count)
    state = model.state_dict()
    file, run = folder / "state.pt", folder / "run"

    def torch_save() -> None:
        torch.save(state, file)
        sync(file)

    calls: dict[str, Callable[[], object]] = {
        "torch.save": torch_save,
        "save": lambda: ckpt.save(run, 1, model=model, rng=False),
        "torch.load": lambda: model.load_state_dict(torch.load(file, weights_only=True)),
        "restore": lambda: ckpt.restore(run, model=model),
    }
    seconds: dict[str, Times] = {"cpu": {}, "wall": {}}
    for number in range(rounds + 1):
        shutil.rmtree(run, ignore_errors=True)
        for name, call in calls.items():
            times = clocks(call)
            # The first round warms up and does not count.
            for clock, value in zip(seconds, times, strict=True):
                if number:
                    seconds[clock].setdefault(name, []).append(value)
    return seconds


def main() -> None:
    """Parse the arguments, measure, print and optionally write JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--tensors", type=int, default=100_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    parser.add_argument("--json", type=Path, default=None, help="where to write the result")
    args = parser.parse_args()
    if args.tensors < 1 or args.rounds < 2:
        parser.error("--tensors must be at least 1 and --rounds at least 2")
    before = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        seconds = measure(args.tensors, args.rounds, Path(name))
    document = {
        "tensors": args.tensors,
        "rounds": args.rounds,
        "machine": machine(),
        "load average": [round(before, 1), round(os.getloadavg()[0], 1)],
        "seconds": {
            clock: {name: round(min(row), 3) for name, row in table.items()}
            for clock, table in seconds.items()
        },
        "ratios": {
            clock: {
                "save": paired(table["save"], table["torch.save"]),
                "load": paired(table["restore"], table["torch.load"]),
            }
            for clock, table in seconds.items()
        },
    }
    text = json.dumps(document, indent=2) + "\n"
    sys.stdout.write(text)
    if args.json is not None:
        args.json.write_text(text)


if __name__ == "__main__":
    main()
