"""The store: one strict-JSON file per run, named by the hash of its spec.

    DIR/plan.json         what is compared, written before the first run
    DIR/runs/<key>.json   one record each; <key> is `RunSpec.key()`
    DIR/history.json      when, by what and for how long runs were made

A file is written beside its place, forced to the disk and renamed, so it is there whole or not at
all, on network file systems too. Killing a comparison loses the runs in flight and nothing else.
Who runs a comparison holds a lock on `DIR/.lock`, which goes with the process, however it ends.
"""

import contextlib
import re
import tempfile
from collections.abc import Generator, Iterable, Mapping
from pathlib import Path
from typing import Any

from optim_bench.errors import BenchError, os_reason
from optim_bench.files import read_json, write_bytes, write_json
from optim_bench.protocol import Plan
from optim_bench.records import RunRecord

try:
    import fcntl
except ImportError:  # a system without it has no lock, and a second run only repeats work
    fcntl = None

__all__ = ["Store", "read_json", "write_bytes", "write_json"]


HISTORY = "history.json"


class Store:
    """Records of a comparison in a folder.

    Args:
        root: the folder; `open` makes it, reading does not.
    """

    def __init__(self, root: Path) -> None:
        self.root = root
        self.runs = root / "runs"

    def open(self) -> None:
        """Make the folder and prove that it can be written.

        Raises:
            BenchError: it cannot.
        """
        try:
            self.runs.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.runs):
                pass
        except OSError as error:
            raise BenchError(
                f"cannot write to {self.root} ({os_reason(error)}); choose another --output"
            ) from error

    @contextlib.contextmanager
    def exclusive(self) -> Generator[None, None, None]:
        """Keep every other run out of the folder: it would do the same work a second time.

        Raises:
            BenchError: another process is running the comparison of this folder.
        """
        path = self.root / ".lock"
        try:
            opened = path.open("a", encoding="ascii")
        except OSError as error:
            raise BenchError(
                f"cannot write to {path} ({os_reason(error)}); choose another --output"
            ) from error
        with opened as file:
            if fcntl is not None:
                try:
                    fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError as error:
                    raise BenchError(
                        f"another optim-bench run is at work in {self.root}; wait for it (see "
                        f"optim-bench status {self.root}), or choose another --output"
                    ) from error
                except OSError:
                    pass  # a file system without locks: a second run only repeats work
            yield

    def write(self, record: RunRecord) -> None:
        """Keep a record; an older one of the same spec is replaced."""
        write_json(self.runs / f"{record.spec.key()}.json", record.to_json())

    def remove(self, keys: Iterable[str]) -> None:
        """Forget runs, so that they run again."""
        for key in keys:
            (self.runs / f"{key}.json").unlink(missing_ok=True)

    def records(self) -> dict[str, RunRecord]:
        """Return every record by its key; files of other names are left alone.

        Raises:
            BenchError: a file is damaged, or does not hold what its name says.
        """
        paths = sorted(self.runs.glob("*.json"))
        return {path.stem: self._read(path) for path in paths if _is_run(path)}

    def count(self) -> int:
        """Return how many runs there are, without reading them."""
        return sum(_is_run(path) for path in self.runs.glob("*.json"))

    def strangers(self) -> list[str]:
        """Return the names in `runs/` that are no run's, such as a sync tool's second copies."""
        if not self.runs.is_dir():
            return []
        # Ours are hidden while they are written, and stay so where a run was killed meanwhile.
        names = [p.name for p in self.runs.iterdir() if not (_is_run(p) or _is_unfinished(p))]
        return sorted(names)

    def register(self, plan: Plan) -> None:
        """Write down what is compared, once: a family chosen after its results would be no test.

        Raises:
            BenchError: another comparison is registered here.
        """
        path = self.root / "plan.json"
        # A plan without a single result may be another one: nobody has seen anything yet.
        if path.is_file() and self.plan().identity() != plan.identity() and any(self.records()):
            if changed := _only_sources_differ(self.plan(), plan):
                raise BenchError(
                    f"the source of {', '.join(changed)} is not what it was when {path} was "
                    "written, and runs of both must not meet; choose another --output, or move "
                    "that file away to train it anew beside the runs that are there"
                )
            rule = ""
            if plan.budget.halving and not self.plan().budget.halving:
                rule = (
                    "; an older version wrote it, whose search gave every learning rate all tuning "
                    "seeds, and this one stops the rates that cannot win"
                )
            raise BenchError(
                f"{path} registers another comparison{rule}; choose another --output, or move that "
                "file away to plan anew over the runs that are there"
            )
        write_json(path, plan.to_json())

    def extend(self, plan: Plan) -> None:
        """Replace the plan by one that enters further optimizers, which it says of them."""
        write_json(self.root / "plan.json", plan.to_json())

    def note(self, entry: Mapping[str, Any]) -> None:
        """Add to the history of the folder: when, by what and for how long runs were made."""
        write_json(self.root / HISTORY, {"made": [*self.history(), dict(entry)]})

    def history(self) -> list[dict[str, Any]]:
        """Return the history, oldest first; one that cannot be read is begun anew."""
        try:
            return list(read_json(self.root / HISTORY)["made"])
        except (OSError, ValueError, KeyError, TypeError):
            return []

    def plan(self) -> Plan:
        """Return the plan.

        Raises:
            BenchError: there is none, or it cannot be read.
        """
        path = self.root / "plan.json"
        if not path.is_file():
            raise BenchError(
                f"no comparison in {self.root}; start one: optim-bench run --output {self.root}"
            )
        try:
            return Plan.from_json(read_json(path))
        except OSError as error:
            raise BenchError(
                f"cannot read {path} ({os_reason(error)}); make it readable"
            ) from error
        except ValueError as error:
            raise BenchError(
                f"{path} is damaged ({error}); move it away and repeat your optim-bench run, "
                "which keeps every finished run"
            ) from error

    def _read(self, path: Path) -> RunRecord:
        try:
            record = RunRecord.from_json(read_json(path))
            if record.spec.key() != path.stem:
                raise ValueError("its spec has another hash than its name")
        except OSError as error:
            raise BenchError(
                f"cannot read {path} ({os_reason(error)}); make it readable"
            ) from error
        except (ValueError, TypeError, AttributeError, OverflowError) as error:
            raise BenchError(
                f"{path} is damaged ({error}); delete it and repeat your optim-bench run, "
                "which repeats this run alone: every other one is kept"
            ) from error
        return record


_KEY = re.compile(r"[0-9a-f]{64}\.json")


def _is_run(path: Path) -> bool:
    return _KEY.fullmatch(path.name) is not None


def _is_unfinished(path: Path) -> bool:
    return path.name.startswith(".") and _KEY.match(path.name, 1) is not None


def _only_sources_differ(old: Plan, new: Plan) -> list[str]:
    """Return the optimizers whose source changed where nothing else did."""

    def rest(plan: Plan) -> dict[str, object]:
        cells = [{**cell, "source": None} for cell in plan.identity()["cells"]]
        return {**plan.identity(), "cells": cells}

    if rest(old) != rest(new):
        return []
    pairs = zip(old.cells, new.cells, strict=True)
    return list(dict.fromkeys(a.optimizer for a, b in pairs if a.source != b.source))
