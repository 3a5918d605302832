"""A task in JAX."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from optim_bench.tasks._task import Task, TaskError


@dataclass(frozen=True, eq=False)
class JaxTask(Task):
    """What is trained in JAX, and how it is judged, from your own functions.

    Parameters are any pytree, Equinox modules and `flax.nnx` modules included. Its arrays of
    floating point are trained (in an NNX module: every `nnx.Param`); whatever else it holds stays
    as `init` made it, an NNX module's batch statistics too. The step is jitted, and its parameters
    and optimizer state are donated.

    Args:
        init: `init(key)` returns the parameters; it may also name the keyword `seed`.
        batches: `batches(seed)` yields training batches, pytrees of arrays of one shape, at least
            as many as a run takes.
        loss: `loss(params, batch, key)` returns a scalar, or `(scalar, aux)`, of which `aux` is
            dropped. It is traced; `key` is another one in every step.
        evaluate: `evaluate(params, split)` returns numbers by name for `"val"` and `"test"`, the
            one that `judged` names among them. It is not traced: jit what is inside. For a problem
            that changes with time it may also name the keywords `seed` and `step`.
        steps_per_call: steps in one compiled loop: faster for small dense models, and slower for
            convolutions on the CPU.

    Raises:
        TaskError: a setting is out of range.

    Example:
        >>> task = JaxTask(
        ...     init=lambda key: {"w": 0.0}, batches=lambda seed: iter(()),
        ...     loss=lambda params, batch, key: params["w"] ** 2,
        ...     evaluate=lambda params, split: {"loss": 1.0}, steps=100, splits=("val",),
        ... )
        >>> task.facts()["verdict_on"]
        'val'
    """

    framework: ClassVar[str] = "jax"
    initializer: ClassVar[str] = "init"

    init: Callable[..., Any]
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, Any, Any], Any]
    evaluate: Callable[..., Mapping[str, Any]]
    _: KW_ONLY
    steps_per_call: int = 1

    def __post_init__(self) -> None:
        super().__post_init__()
        if isinstance(self.steps_per_call, bool) or not 1 <= self.steps_per_call <= MOST_PER_CALL:
            raise TaskError(
                f"steps_per_call is {self.steps_per_call!r}; it has to be 1 to {MOST_PER_CALL}"
            )

    def functions(self) -> dict[str, Any]:
        """Return the user's functions by the names of their fields."""
        return {name: getattr(self, name) for name in ("init", "batches", "loss", "evaluate")}


# The trainer looks at the losses after so many steps at the latest.
MOST_PER_CALL = 32
