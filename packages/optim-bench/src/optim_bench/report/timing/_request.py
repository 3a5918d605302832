"""Measure in a process of its own: pinned to one core, one thread, before a framework loads."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from optim_bench.errors import BenchError
from optim_bench.executors import available_cores, worker_environment
from optim_bench.records import Hyperparameter
from optim_bench.report.timing._summary import machine


@dataclass(frozen=True)
class TimingRequest:
    """What to time against each other.

    Args:
        task: a built-in workload, or a reference to a task.
        framework: `"jax"` or `"torch"`.
        optimizers: (label, registry name, hyperparameters), the baseline first. It is measured a
            second time under the label `"A/A"`.
        rounds: interleaved rounds, at least 2.
        round_seconds: least duration of one round of one optimizer.
        data_dir: where full-size data sets lie; vendored workloads do not need it.
    """

    task: str
    framework: str
    optimizers: Sequence[tuple[str, str, Mapping[str, Hyperparameter]]]
    rounds: int = 20
    round_seconds: float = 0.05
    data_dir: Path | None = None


def measure_times(request: TimingRequest) -> dict[str, Any]:
    """Time the optimizers of a request and return the raw rounds.

    Returns:
        `"seconds"`: label -> seconds per step of each round; `"first"`: label -> seconds of the
        first call, with compilation; `"load"`: load average before and after; `"machine"`.

    Raises:
        BenchError: the measuring process failed.
    """
    core = available_cores()[-1]
    before = os.getloadavg()[0]
    done = subprocess.run(  # noqa: S603 - our own module, no shell
        [sys.executable, "-m", "optim_bench.report.timing._measure", str(core)],
        input=json.dumps(asdict(request), default=str),
        capture_output=True,
        text=True,
        check=False,
        env=worker_environment(os.environ),
    )
    if done.returncode != 0:
        lines = done.stderr.strip().splitlines() or ["no message"]
        raise BenchError(
            f"timing {request.framework} on {request.task} failed: {lines[-1]}; "
            "check that the same optimizer trains: optim-bench run --tier smoke"
        )
    measured = json.loads(done.stdout.splitlines()[-1])
    return {
        **measured,
        "load": [before, os.getloadavg()[0]],
        "machine": machine(),
    }
