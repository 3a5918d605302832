"""What both frameworks share: a session, its seeds and digests, and what goes wrong before it."""

import hashlib
import importlib
import importlib.util
import random
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from types import MethodType
from typing import Any, Protocol

import numpy as np

from optim_bench.optimizers import FactoryError, OptimizerInfo
from optim_bench.tasks import MOST_PER_CALL, Task
from optim_bench.tasks.built_in import Array

# At most so many steps between two looks at the losses: keeps buffers small and a diverged run
# short.
CHUNK = MOST_PER_CALL


class Session(Protocol):
    """Live parameters and optimizer state of one run.

    Attributes:
        batches: what the next steps train on.
        start: digests of the initial parameters and, after the first step, of the first batch.
    """

    batches: Iterator[Any]
    start: Mapping[str, str]

    def advance(self, rates: Sequence[float]) -> Array:
        """Take one step per entry of `rates` and return the loss of each batch before its step.

        Raises:
            TaskError: the batches end, or the loss is no scalar.
        """
        ...

    def evaluate(self, split: str, step: int) -> dict[str, float]:
        """Return what the task measures on a split after `step` steps.

        Raises:
            TaskError: the task returns something else than numbers, or lacks what is judged.
        """
        ...

    def parameter_sizes(self) -> list[tuple[int, int]]:
        """Return (entries, bytes) for each parameter."""
        ...

    def state_bytes(self) -> int:
        """Return the exact size of everything that the optimizer keeps between steps."""
        ...


def open_session(
    task: Task,
    info: OptimizerInfo,
    hyperparameters: Mapping[str, Any],
    seed: int = 0,
    device: str = "cpu",
) -> AbstractContextManager[Session]:
    """Open a run in the task's framework, which is imported now and not before.

    Args:
        task: what is trained.
        info: the optimizer.
        hyperparameters: complete, as `info.validate` returns them.
        seed: of the initial parameters and the batches; and what the global generators of NumPy,
            `random` and PyTorch start from while the session is open. The caller's are given back
            when it closes.
        device: a name that the framework understands.
    """
    backend = importlib.import_module(f"optim_bench.executors.train._{task.framework}")
    return backend.session(task, info, hyperparameters, seed, device)


def try_factory(task: Task, info: OptimizerInfo, hyperparameters: Mapping[str, Any]) -> None:
    """Make an optimizer on the CPU, to see before any run whether it is one.

    What the task or the factory itself raises is left to the first run, whose result it is.

    Args:
        task: what it would train.
        info: the optimizer.
        hyperparameters: complete, as `info.validate` returns them.

    Raises:
        FactoryError: the factory cannot be called, or returns something else.
    """
    backend = importlib.import_module(f"optim_bench.executors.train._{task.framework}")
    try:
        backend.try_factory(task, info, hyperparameters)
    except FactoryError:
        raise
    except Exception:  # noqa: BLE001 - as the docstring says
        return


class MissingExtraError(RuntimeError):
    """A framework or a package that a run needs is not installed."""


# Framework -> the modules that its extra brings.
FRAMEWORK_MODULES = {"jax": ("jax", "optax", "stam_jax"), "torch": ("torch", "stac_torch")}


def require_framework(framework: str) -> None:
    """Check that a framework's extra is installed, without importing anything.

    Raises:
        MissingExtraError: a module is missing; the message holds the command that installs it.
    """
    for module in FRAMEWORK_MODULES[framework]:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f"{framework} runs need {module}, which is not installed: "
                f"pip install 'optim-bench[{framework}]'"
            )


class SameFactory:
    """A factory as a key, equal for the same object.

    Objects that can be called need not have a hash, and equal ones need not do the same: a frozen
    dataclass with 1 equals one with 1.0. The key holds the factory, so that no other one can get
    its id meanwhile.
    """

    def __init__(self, factory: Any) -> None:
        # A bound method is made anew whenever somebody asks for it.
        bound = isinstance(factory, MethodType)
        self._parts = (factory.__self__, factory.__func__) if bound else (factory,)
        self._ids = tuple(map(id, self._parts))

    def __eq__(self, other: object) -> bool:
        return isinstance(other, SameFactory) and self._ids == other._ids

    def __hash__(self) -> int:
        return hash(self._ids)


def digest(leaves: Iterable[Any]) -> str:
    """Return 16 hex digits over arrays, tensors on the CPU, numbers and texts, in this order.

    Example:
        >>> digest([np.zeros(2)]) == digest([np.zeros(2)]), digest([1.0]) == digest([2.0])
        (True, False)
    """
    found = hashlib.sha256()
    for leaf in leaves:
        if isinstance(leaf, (str, bytes)):
            found.update(repr(leaf).encode())
            continue
        array = np.asarray(leaf)
        if array.dtype == object:  # nothing whose bytes mean anything
            continue
        found.update(f"{array.dtype}{array.shape}".encode())
        found.update(np.ascontiguousarray(array).tobytes())
    return found.hexdigest()[:16]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed the generators from a run's seed, and restore the caller's afterwards.

    Example:
        >>> with seeded(0):
        ...     inside = random.random()
        >>> with seeded(0):
        ...     print(random.random() == inside)
        True
    """
    ours, numpys = random.getstate(), np.random.get_state()  # noqa: NPY002 - users draw from it
    random.seed(seed)
    np.random.seed(seed % 2**32)  # noqa: NPY002
    try:
        yield
    finally:
        random.setstate(ours)
        np.random.set_state(numpys)  # noqa: NPY002
