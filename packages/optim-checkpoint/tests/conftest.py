"""Documents and folders that need no framework."""

import contextlib
import importlib.metadata
import json
import os
import platform
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from optim_checkpoint._collect import Collector, Staging, read_staged
from optim_checkpoint._commit import Document, commit
from optim_checkpoint._numpy import bytes_of, dtype_name
from optim_checkpoint._select import Chosen, choose

Arrays = dict[str, np.ndarray]


def arrays_of(step: int, size: int = 300) -> Arrays:
    """Return arrays that depend on every bit of `step`, but for the words, which stay."""
    rng = np.random.default_rng(step)
    arrays = {
        "a.weight": rng.standard_normal((size // 3, 3)).astype(np.float32),
        "a.bias": rng.standard_normal(size),
        "count": np.array(step, np.int64),
        "empty": np.zeros((0, 4), np.float16),
        "flags": rng.integers(0, 2, 37).astype(bool),
        "words": rng.integers(0, 255, 64).astype(np.uint8),
    }
    return arrays if step == 1 else {**arrays, "words": arrays_of(1, size)["words"]}


def document_of(step: int, size: int = 300) -> Document:
    """Return a document with `arrays_of` in the model part and one optimizer tensor."""
    parts = {"model": Collector(), "optim": Collector(), "train": Collector()}
    arrays = arrays_of(step, size)
    for name, array in arrays.items():
        parts["model"].add(
            name, dtype_name(array.dtype, name), array.shape, lambda array=array: bytes_of(array)
        )
    moment = arrays["a.weight"] * 2
    parts["optim"].add(
        "state.a.weight.mu", "F32", moment.shape, lambda moment=moment: bytes_of(moment)
    )
    return Document(
        step,
        {"name": "numpy", "versions": {}},
        {"optimizer": {"kind": "none"}, "train": {"extra": {"int": str(step)}}},
        {part: collector.entries for part, collector in parts.items()},
    )


def load_arrays(path: Path, step: int | None = None) -> Chosen[Arrays]:
    """Read the model part of the newest generation that verifies."""

    def read(generation) -> Arrays:
        staging = Staging.of(generation, "model")
        arrays = {key: staging.array(key) for key in staging.tensors}
        read_staged(generation, staging)
        return arrays

    return choose(path, step, read)


def assert_is(arrays: Arrays, step: int, size: int = 300) -> None:
    """Assert that arrays are those of `step`, bit for bit."""
    expected = arrays_of(step, size)
    assert arrays.keys() == expected.keys()
    for name, array in expected.items():
        assert arrays[name].dtype == array.dtype
        assert arrays[name].tobytes() == array.tobytes()


class Tally:
    """Counts the trials of each campaign and the time they took."""

    def __init__(self) -> None:
        self.rows: dict[str, Counter[str]] = {}
        self.seconds: Counter[str] = Counter()
        self.last = time.perf_counter()

    def __call__(self, campaign: str, **counts: int) -> None:
        """Add trials that ended well; a failed one raises and is never counted."""
        self.rows.setdefault(campaign, Counter()).update(counts)
        now = time.perf_counter()
        self.seconds[campaign] += now - self.last
        self.last = now


@pytest.fixture(scope="session")
def all_tallies(request: pytest.FixtureRequest) -> Iterator[Tally]:
    tally = Tally()
    yield tally
    target = os.environ.get("OPTIM_CHECKPOINT_CAMPAIGNS")
    if target and not request.session.testsfailed:
        versions = {
            name: importlib.metadata.version(name) for name in ("numpy", "safetensors", "xxhash")
        }
        document = {
            "python": platform.python_version(),
            "kernel": platform.release(),
            "versions": versions,
            "campaigns": {
                name: {**row, "seconds": round(tally.seconds[name])}
                for name, row in sorted(tally.rows.items())
            },
        }
        Path(target).write_text(json.dumps(document, indent=2) + "\n")


@pytest.fixture
def tally(all_tallies: Tally) -> Tally:
    """Count trials; with OPTIM_CHECKPOINT_CAMPAIGNS=FILE a run without failures writes them."""
    all_tallies.last = time.perf_counter()
    return all_tallies


class Worker:
    """The process of `killable_worker.py`, which forks a writer for each request."""

    def __init__(self):
        script = Path(__file__).with_name("killable_worker.py")
        self.process = subprocess.Popen(
            [sys.executable, str(script)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )

    def ask(self, delay=None, **request):
        """Run one save; with `delay`, kill it after that many seconds. Return its exit code."""
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        pid = int(self.process.stdout.readline())
        if delay is not None:
            time.sleep(delay)
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        return int(self.process.stdout.readline())

    def close(self):
        self.process.stdin.close()
        self.process.stdout.close()
        self.process.wait()


@pytest.fixture(scope="module")
def worker() -> Iterator[Worker]:
    made = Worker()
    yield made
    made.close()


@pytest.fixture
def measure_refusals(tmp_path: Path) -> Callable[..., dict[str, tuple[float, int]]]:
    """Return what measures the refusal of each of some files: seconds and peak bytes."""
    if sys.platform != "linux":
        pytest.skip("peak memory is read from /proc")

    def measure(kind: str, corpus: dict[str, bytes]) -> dict[str, tuple[float, int]]:
        paths = [tmp_path / str(number) for number in range(len(corpus))]
        for path, raw in zip(paths, corpus.values(), strict=True):
            path.write_bytes(raw)
        script = Path(__file__).with_name("refusing_worker.py")
        out = subprocess.run(
            [sys.executable, str(script), kind, *map(str, paths)],
            stdout=subprocess.PIPE,
            text=True,
            check=True,
        )
        pairs = [line.split() for line in out.stdout.splitlines()]
        rows = [(float(seconds), int(peak)) for seconds, peak in pairs]
        return dict(zip(corpus, rows, strict=True))

    return measure


@pytest.fixture
def memory_path(tmp_path: Path) -> Iterator[Path]:
    """A folder in memory where there is one: kills leave the same there, and syncs are free."""
    if not os.access("/dev/shm", os.W_OK):
        yield tmp_path
        return
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        yield Path(folder)


@pytest.fixture
def make_document() -> Callable[..., Document]:
    return document_of


@pytest.fixture
def load() -> Callable[..., Chosen[Arrays]]:
    return load_arrays


@pytest.fixture
def check() -> Callable[..., None]:
    return assert_is


@pytest.fixture
def run_folder(memory_path: Path) -> Path:
    """A folder with the steps 1 and 2."""
    for step in (1, 2):
        commit(memory_path / "run", document_of(step))
    return memory_path / "run"
