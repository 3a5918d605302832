"""Which device a run is on, and how workers share the devices of a machine.

A worker sees its own device alone, through the variable that the CUDA driver reads before any
framework does: what a task's functions call "cuda" is then the right one.

On a CPU it has one core and one thread. Thread pools of several workers on the same cores cost more
than they give: a training step of a small network measured 0.67 ms pinned and 39 ms unpinned beside
other load. The variables have to be set before a framework is imported, hence in the environment a
worker is born with.
"""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from optim_bench.errors import BenchError, UsageError

KINDS = ("cpu", "cuda", "tpu")
VISIBLE = "CUDA_VISIBLE_DEVICES"
_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True)
class Placement:
    """Where the runs of a comparison go.

    Args:
        device: `"cpu"`, `"cuda"` (every GPU of the machine), `"cuda:1"` (that one) or `"tpu"`.
        jobs_per_device: runs that share one device.

    Raises:
        UsageError: the device has another form, or the number does not go with it.

    Example:
        >>> Placement("cuda:1").kind, Placement("cuda:1").index, Placement().accelerated
        ('cuda', 1, False)
    """

    device: str = "cpu"
    jobs_per_device: int = 1

    def __post_init__(self) -> None:
        if re.fullmatch(r"cpu|tpu|cuda(:\d+)?", self.device) is None:
            raise UsageError(
                f"device is {self.device!r}; it has to be cpu, cuda, cuda:0 (or another number), "
                "or tpu"
            )
        if self.jobs_per_device < 1:
            raise UsageError(f"jobs per device is {self.jobs_per_device}; use 1 or more")
        if self.jobs_per_device > 1 and self.kind != "cuda":
            raise UsageError(
                f"--jobs-per-device {self.jobs_per_device} is for GPUs, not for {self.kind}; on "
                "the CPU --jobs says how many runs go on at a time"
            )

    @property
    def kind(self) -> str:
        """The device without its number, which is what a worker calls it."""
        return self.device.partition(":")[0]

    @property
    def index(self) -> int | None:
        """Its number, or None for every device of the kind."""
        number = self.device.partition(":")[2]
        return int(number) if number else None

    @property
    def accelerated(self) -> bool:
        """Whether it is no CPU."""
        return self.kind != "cpu"

    def environments(self, names: Sequence[str]) -> list[dict[str, str]]:
        """Return what the workers of one machine find in their environments, one for each.

        Args:
            names: the machine's GPUs as `visible_gpus` returns them.

        Raises:
            BenchError: there is none, or not that one.

        Example:
            >>> Placement("cuda", 2).environments(["0", "3"])[1:3]
            [{'CUDA_VISIBLE_DEVICES': '3'}, {'CUDA_VISIBLE_DEVICES': '0'}]
        """
        if self.kind != "cuda":
            return [{}]
        if not names:
            raise BenchError(
                "this machine has no CUDA device, or its driver shows none; leave --device away to "
                "run on the CPU"
            )
        if self.index is not None and self.index >= len(names):
            raise BenchError(
                f"device is {self.device!r}, and this machine shows {len(names)}: "
                f"cuda:0 to cuda:{len(names) - 1}"
            )
        mine = names if self.index is None else [names[self.index]]
        return [{VISIBLE: name} for _ in range(self.jobs_per_device) for name in mine]


def visible_gpus(environment: Mapping[str, str] = os.environ) -> list[str]:
    """Return the GPUs that this process may use, by the names that the driver takes."""
    allowed = environment.get(VISIBLE)
    if allowed is not None:
        return [name.strip() for name in allowed.split(",") if name.strip() not in ("", "-1")]
    return [str(i) for i, _ in enumerate(_GPUS.iterdir())] if _GPUS.is_dir() else []


_THREADS = (
    "OMP_NUM_THREADS",
    "OPENBLAS_NUM_THREADS",
    "MKL_NUM_THREADS",
    "VECLIB_MAXIMUM_THREADS",
    "NUMEXPR_NUM_THREADS",
)
_XLA_FLAG = "--xla_cpu_multi_thread_eigen=false"


def available_cores() -> list[int]:
    """Return the cores this process may use; their count alone where the system does not say."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(core: int) -> None:
    """Bind this process to a core, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {core})


def worker_environment(base: Mapping[str, str]) -> dict[str, str]:
    """Return the environment of a worker: `base` with one thread per library.

    Example:
        >>> environment = worker_environment({"XLA_FLAGS": "--xla_dump_to=here"})
        >>> environment["XLA_FLAGS"], environment["OMP_NUM_THREADS"]
        ('--xla_dump_to=here --xla_cpu_multi_thread_eigen=false', '1')
    """
    flags = base.get("XLA_FLAGS", "")
    if _XLA_FLAG not in flags:
        flags = f"{flags} {_XLA_FLAG}".strip()
    return {
        **base,
        **dict.fromkeys(_THREADS, "1"),
        "XLA_FLAGS": flags,
        # Several workers share a GPU: none may take all of its memory at once.
        "XLA_PYTHON_CLIENT_PREALLOCATE": base.get("XLA_PYTHON_CLIENT_PREALLOCATE", "false"),
        # Line by line, so that the log of a dead worker is complete.
        "PYTHONUNBUFFERED": "1",
    }
