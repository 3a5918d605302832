"""The store: one strict-JSON file per run, named by the hash of its spec.

    DIR/plan.json         what is compared, written before the first run
    DIR/runs/<key>.json   one record each; <key> is `RunSpec.key()`

A file is written beside its place, forced to the disk and renamed, so it is there whole or not at
all, on network file systems too. Killing a comparison loses the runs in flight and nothing else.
"""

import contextlib
import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NoReturn

from optim_bench.errors import BenchError
from optim_bench.protocol import Plan
from optim_bench.records import RunRecord


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
                f"cannot write to {self.root} ({_reason(error)}); choose another --output"
            ) from error

    def write(self, record: RunRecord) -> None:
        """Keep a record; an older one of the same spec is replaced."""
        write_json(self.runs / f"{record.spec.key()}.json", record.to_json())

    def remove(self, keys: Iterable[str]) -> None:
        """Forget runs, so that they run again."""
        for key in keys:
            (self.runs / f"{key}.json").unlink(missing_ok=True)

    def records(self) -> dict[str, RunRecord]:
        """Return every record by its key.

        Raises:
            BenchError: a file is damaged, or does not hold what its name says.
        """
        return {path.stem: self._read(path) for path in sorted(self.runs.glob("*.json"))}

    def register(self, plan: Plan) -> None:
        """Write down what is compared, once: a family chosen after its results would be no test.

        Raises:
            BenchError: another comparison is registered here.
        """
        path = self.root / "plan.json"
        if path.is_file() and self.plan().to_json() != plan.to_json():
            raise BenchError(
                f"{path} registers another comparison; choose another --output, or move that file "
                "away to plan anew over the runs that are there"
            )
        write_json(path, plan.to_json())

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
            raise BenchError(f"cannot read {path} ({_reason(error)}); make it readable") from error
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
            raise BenchError(f"cannot read {path} ({_reason(error)}); make it readable") from error
        except (ValueError, TypeError, AttributeError) as error:
            raise BenchError(
                f"{path} is damaged ({error}); delete it and repeat your optim-bench run, "
                "which repeats this run alone"
            ) from error
        return record


def read_json(path: Path) -> dict[str, Any]:
    """Read an object from a strict-JSON file.

    Raises:
        ValueError: it is not strict JSON, or no object.
    """
    data = json.loads(path.read_text(encoding="utf-8"), parse_constant=_refuse_constant)
    if not isinstance(data, dict):
        raise ValueError(f"it holds a {type(data).__name__}, not an object")  # noqa: TRY004
    return data


def write_json(path: Path, data: Mapping[str, Any]) -> None:
    """Write strict JSON, the same bytes for the same data, atomically."""
    text = json.dumps(data, indent=1, sort_keys=True, allow_nan=False, ensure_ascii=False)
    write_bytes(path, (text + "\n").encode("utf-8"))


def write_bytes(path: Path, data: bytes) -> None:
    """Write a file so that it is there whole or not at all.

    Raises:
        BenchError: the folder cannot be written.
    """
    try:
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise BenchError(
            f"cannot write {path} ({_reason(error)}); choose another folder"
        ) from error
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        # mkstemp's 0600 would hide results from the rest of a group.
        Path(name).chmod(0o644)
        Path(name).replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            Path(name).unlink()
        raise BenchError(f"cannot write {path} ({_reason(error)}); free some space") from error


def _reason(error: OSError) -> str:
    return (error.strerror or str(error)).lower()


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not strict JSON")
