"""A task in PyTorch, and one in JAX."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from optim_bench.tasks._task import Task, TaskError


@dataclass(frozen=True, eq=False)
class TorchTask(Task):
    """What is trained in PyTorch, and how it is judged, from your own functions.

    The generators of torch, NumPy and `random` are seeded with the run's seed before `model` is
    called, and restored after the run. A run is on one thread.

    Args:
        model: `model(seed)` returns a new `nn.Module`.
        batches: `batches(seed)` yields training batches, at least as many as a run takes. Tensors
            and NumPy arrays in tuples, lists and dictionaries are moved to the device.
        loss: `loss(model, batch)` returns a 0-d tensor.
        evaluate: `evaluate(model, split)` returns numbers by name for `"val"` and `"test"`, the one
            that `judged` names among them. It is called with the model in evaluation mode and
            without gradients. For a problem that changes with time it may also name the keywords
            `seed` and `step`.
        autocast: dtype of `torch.autocast` around `loss` and `evaluate`, or None.
        compile: whether the model is compiled by `torch.compile`.
        move: `move(batch, device)`, for batches that the above does not cover.
        on_step: `on_step(model, step)` is called after every step, counted from 1.

    Raises:
        TaskError: a setting is out of range.

    Example:
        >>> task = TorchTask(
        ...     model=lambda seed: ..., batches=lambda seed: iter(()),
        ...     loss=lambda model, batch: ...,
        ...     evaluate=lambda model, split: {"accuracy": 0.5},
        ...     steps=2000, judged="accuracy", larger_is_better=True,
        ... )
        >>> task.evaluation_steps(60)[:3], task.splits
        ([3, 6, 9], ('val', 'test'))
    """

    framework: ClassVar[str] = "torch"
    initializer: ClassVar[str] = "model"

    model: Callable[[int], Any]
    batches: Callable[[int], Iterable[Any]]
    loss: Callable[[Any, Any], Any]
    evaluate: Callable[..., Mapping[str, Any]]
    _: KW_ONLY
    autocast: Any = None
    compile: bool = False
    move: Callable[[Any, Any], Any] | None = None
    on_step: Callable[[Any, int], None] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        if str(self.autocast).endswith("float16") and not str(self.autocast).endswith("bfloat16"):
            raise TaskError(
                f"autocast is {self.autocast}; without loss scaling its gradients underflow: use "
                "torch.bfloat16"
            )

    def functions(self) -> dict[str, Any]:
        """Return the user's functions by the names of their fields."""
        names = ("model", "batches", "loss", "evaluate", "move", "on_step")
        return {name: found for name in names if (found := getattr(self, name)) is not None}


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
