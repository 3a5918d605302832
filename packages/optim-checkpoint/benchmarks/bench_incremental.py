"""Count what an incremental save writes and time it, and the stall of a save in the background.

    python benchmarks/bench_incremental.py --mib 384 --rounds 7 --folder FOLDER_ON_THE_DISK

A frozen model of 96 tensors has adapters of 1 % of its bytes, which change before every save. Each
round saves it in full, incrementally to another run, and in the background from a new checkpointer,
the first and the second time apart; the order changes from round to round, and each save starts
when the disk has nothing else to write. A ratio is the median over the rounds of the shares of the
full save in the same round. The full save runs twice a round, against itself: the A/A band.
"""

import argparse
import json
import os
import random
import sys
import tempfile
from pathlib import Path

import torch
from bench_checkpoint import machine, paired, timed
from optim_checkpoint import _fs
from optim_checkpoint import torch as ckpt

TENSORS = 96
FULL, AGAIN, PARTLY = "full", "full, again", "incremental"
FIRST, LATER = "stall, first save", "stall, later save"


class Counting(_fs.FileOps):
    """Counts the bytes that are written."""

    written = 0

    def write(self, fd: int, data: memoryview) -> int:
        """Write and count."""
        count = super().write(fd, data)
        self.written += count
        return count


class Adapted(torch.nn.Module):
    """Frozen tensors, each with an adapter of a hundredth of its size."""

    def __init__(self, mib: int) -> None:
        super().__init__()
        size = mib * (1 << 20) // TENSORS // 4
        for i in range(TENSORS):
            self.register_buffer(f"layer{i}_frozen", torch.randn(size))
            self.register_buffer(f"layer{i}_adapter", torch.randn(max(size // 100, 1)))

    def step(self) -> None:
        """Change the adapters."""
        for name, tensor in self.named_buffers():
            if name.endswith("adapter"):
                tensor.add_(1)


def measure(mib: int, rounds: int, folder: Path) -> tuple[dict[str, list[float]], list[float]]:
    """Return the seconds of each save, and the shares of the state that the saves wrote."""
    model = Adapted(mib)
    total = sum(tensor.nbytes for tensor in model.buffers())
    counting = _fs.ops = Counting()
    seconds: dict[str, list[float]] = {}
    shares: list[float] = []

    def save(number: int, what: str) -> None:
        ckpt.save(folder / what, number, model=model, rng=False, keep=2, incremental=what == PARTLY)

    for number in range(rounds + 1):
        model.step()
        order = random.Random(number).sample([FULL, AGAIN, PARTLY, FIRST], 4)  # noqa: S311 - any order
        for what in order:
            os.sync()
            before = counting.written
            if what != FIRST:
                taken = timed(lambda what=what, number=number: save(number, what))
                if what == PARTLY:
                    shares.append(round((counting.written - before) / total, 4))
                # What parts the files, and fills caches, does not count.
                seconds.setdefault(what, []).extend([taken] * (number > 0))
                continue
            with ckpt.AsyncCheckpointer(folder / "async", keep=1) as background:
                for i, name in enumerate((FIRST, LATER)):
                    os.sync()
                    step = 2 * number + i
                    taken = timed(lambda s=step: background.save(s, model=model, rng=False))
                    background.wait()
                    seconds.setdefault(name, []).extend([taken] * (number > 0))
    return seconds, shares


def main() -> None:
    """Parse the arguments, measure and print JSON."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mib", type=int, default=384)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--folder", type=Path, default=None, help="a folder on the disk to measure")
    args = parser.parse_args()
    if args.mib < 1 or args.rounds < 2:
        parser.error("--mib must be at least 1 and --rounds at least 2")
    load = os.getloadavg()[0]
    with tempfile.TemporaryDirectory(dir=args.folder) as name:
        seconds, shares = measure(args.mib, args.rounds, Path(name))
    document = {
        "mib": args.mib,
        "rounds": args.rounds,
        "machine": machine(),
        "load average": [round(load, 1), round(os.getloadavg()[0], 1)],
        "shares written": shares,
        "seconds": {name: [round(value, 3) for value in row] for name, row in seconds.items()},
        "ratios": {
            name: paired(row, seconds[FULL]) for name, row in seconds.items() if name != FULL
        },
    }
    sys.stdout.write(json.dumps(document, indent=2) + "\n")


if __name__ == "__main__":
    main()
