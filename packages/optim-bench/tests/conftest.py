"""A trainer without a framework, and plans for it, for the tests of everything around."""

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path

import pytest
from optim_bench.protocol import Budget, Cell, Plan
from optim_bench.records import RunRecord, RunSpec

FAKE_TRAINER = '''
"""Loss with a known best learning rate and a known ratio to adamw, noise shared within a seed."""
import math
import os
import signal
import sys
import time

import numpy as np

from optim_bench.records import RunRecord

RATIO = {"stam": 0.8, "stam_lite": 1.0, "stac": 1.25, "adamw": 1.0}
STATE = {"stam": 8, "stam_lite": 4, "stac": 1, "adamw": 8}


def train(spec, *, data_dir=None):
    trouble = spec.hyperparameters.get("trouble")
    if trouble == "raise":
        raise RuntimeError("the trainer broke\\nand said more")
    if trouble == "die":
        print("last words", file=sys.stderr, flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if trouble == "hang":
        time.sleep(60)
    if trouble == "chat":
        print("a framework chats on the standard output", flush=True)
    rate = spec.hyperparameters["learning_rate"]
    shared = np.random.default_rng([spec.seed, 1]).normal() * 0.1
    own = np.random.default_rng([spec.seed, *spec.optimizer.encode()]).normal() * 0.01
    off = math.log10(rate / 1e-3)
    diverged = rate > 0.5
    loss = RATIO[spec.optimizer] * math.exp(shared + own + off * off)
    losses = dict.fromkeys(("train_loss", "val_loss", "test_loss"), None if diverged else loss)
    steps = [spec.steps * (i + 1) // 4 for i in range(4)]
    return RunRecord(
        spec=spec,
        status="diverged" if diverged else "ok",
        metrics=losses,
        curve={
            "step": steps,
            "train_loss": [loss] * 4,
            "val_loss": [loss * (4 - i) for i in range(4)],
        },
        parameters=100,
        parameter_bytes=400,
        state_bytes=100 * STATE[spec.optimizer],
        seconds={"total": 0.0},
        environment={
            "threads": os.environ.get("OMP_NUM_THREADS", ""),
            "xla": os.environ.get("XLA_FLAGS", ""),
            "cores": str(len(os.sched_getaffinity(0))),
        },
        error=None,
    )
'''


@pytest.fixture(scope="session")
def trainer_source() -> str:
    return textwrap.dedent(FAKE_TRAINER)


@pytest.fixture
def trainer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trainer_source: str) -> str:
    """Reference of a trainer that is importable here and, through the folder, in workers."""
    folder = tmp_path / "modules"
    folder.mkdir()
    (folder / "fake_trainer.py").write_text(trainer_source)
    monkeypatch.syspath_prepend(folder)
    monkeypatch.chdir(folder)
    return "fake_trainer:train"


@pytest.fixture
def make_spec() -> Callable[..., RunSpec]:
    def make(seed: int = 0, rate: float = 1e-3, optimizer: str = "adamw", **extra: str) -> RunSpec:
        hyperparameters = {"learning_rate": rate, **extra}
        return RunSpec("toy", 1, "jax", optimizer, hyperparameters, seed, 40, "cosine")

    return make


@pytest.fixture
def make_record() -> Callable[..., RunRecord]:
    def make(spec: RunSpec, loss: float | None, **changes: object) -> RunRecord:
        metrics = dict.fromkeys(("train_loss", "val_loss", "test_loss"), loss)
        fields: dict[str, object] = {
            "spec": spec,
            "status": "diverged" if loss is None else "ok",
            "metrics": metrics,
            "curve": {"step": [10, 20], "train_loss": [loss, loss], "val_loss": [loss, loss]},
            "parameters": 100,
            "parameter_bytes": 400,
            "state_bytes": 800,
            "seconds": {"total": 1.0},
            "environment": {"python": "3"},
            "error": None,
        }
        return RunRecord(**{**fields, **changes})  # pyright: ignore[reportArgumentType]

    return make


@pytest.fixture(scope="session")
def make_plan() -> Callable[..., Plan]:
    def make(
        optimizers: Mapping[str, tuple[str, ...]],
        budget: Budget,
        *,
        workloads: tuple[str, ...] = ("toy",),
        kind: str = "real",
        target: float | None = None,
    ) -> Plan:
        cells = tuple(
            Cell(w, 1, f, name, name, {"learning_rate": 1e-3}, 1e-3, 0.0, 1e3, 40, "cosine")
            for w in workloads
            for f, names in optimizers.items()
            for name in names
        )
        facts = {
            "version": 1,
            "title": "a toy",
            "kind": kind,
            "loss": "squared_error",
            "batch": 1,
            "metrics": [],
            "licence": "",
            "target": target and {"metric": "val_loss", "value": target, "origin": "made up"},
        }
        keys = {f"{c.framework}/{c.label}": c.label for c in cells}
        return Plan(
            tier="quick",
            budget=budget,
            cells=cells,
            family=tuple(c.name for c in cells if c.label != "adamw" and kind == "real"),
            titles={key: label.upper() for key, label in keys.items()},
            families={k: "baseline" if v == "adamw" else "ours" for k, v in keys.items()},
            workloads=dict.fromkeys(workloads, facts),
        )

    return make
