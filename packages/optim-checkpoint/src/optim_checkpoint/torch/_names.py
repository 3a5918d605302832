"""What a parameter is called: by name, never by position."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch.utils._python_dispatch import is_traceable_wrapper_subclass

from optim_checkpoint._errors import CheckpointWarning, UnsupportedStateError
from optim_checkpoint._names import name_differences
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._memory import no_memory, traced

_PLAIN = (torch.Tensor, torch.nn.Parameter)
_WRAPPERS = {"_orig_mod", "_checkpoint_wrapped_module", "_fsdp_wrapped_module"}


def unwrap(model: torch.nn.Module) -> torch.nn.Module:
    """Return the module inside DataParallel, DistributedDataParallel and torch.compile."""
    parallel = (torch.nn.DataParallel, torch.nn.parallel.DistributedDataParallel)
    while True:
        if isinstance(model, parallel):
            model = model.module
        elif isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            # pyright reads attributes of modules as tensors or modules; the line above asked.
            model = model._orig_mod  # pyright: ignore[reportAssignmentType]
        else:
            return model


def clean(name: str) -> str:
    """Take the components that wrappers add out of a name."""
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def model_state(model: torch.nn.Module) -> dict[str, object]:
    """Return the state dict of a model under clean names.

    Raises:
        UnsupportedStateError: If it holds what only stands for a tensor, or one name twice.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if (reason := traced(tensor)) is not None:
            raise UnsupportedStateError(f"model {clean(name)}", reason)
    state: dict[str, object] = {}
    for name, value in unwrap(model).state_dict().items():
        key = clean(name)
        if key in state:
            raise UnsupportedStateError(key, "two entries of the model have this name")
        state[key] = value
    return state


@dataclass(frozen=True)
class ParameterNames:
    """The names of an optimizer's parameters, group by group.

    Attributes:
        groups: For each group the names of its parameters in their order.
        positional: Whether a name had to be made up from a position.
    """

    groups: list[list[str]]
    positional: bool


def parameter_names(
    optimizer: torch.optim.Optimizer, model: torch.nn.Module | None
) -> ParameterNames:
    """Name every parameter of an optimizer.

    The model's own names come first, then the ``param_names`` of an optimizer that was built from
    ``named_parameters()``; without both, parameters are numbered and a `CheckpointWarning` says so.

    Raises:
        UnsupportedStateError: If two parameters have one name.
    """
    known: dict[int, str] = {}
    if model is not None:
        for name, parameter in unwrap(model).named_parameters():
            known.setdefault(id(parameter), clean(name))
    positional = False
    seen: set[str] = set()
    groups: list[list[str]] = []
    for g, group in enumerate(optimizer.param_groups):
        given = group.get("param_names")
        names: list[str] = []
        for i, parameter in enumerate(group["params"]):
            name = known.get(id(parameter))
            if name is None and given is not None:
                name = clean(given[i])
            if name is None:
                name, positional = f"param.{g}.{i}", True
            if name in seen:
                raise UnsupportedStateError(name, "two parameters of the optimizer have this name")
            seen.add(name)
            names.append(name)
        groups.append(names)
    if positional:
        warnings.warn(
            "parameters without a name are stored by position; pass model=, or build the optimizer "
            "from model.named_parameters()",
            CheckpointWarning,
            stacklevel=5,
        )
    return ParameterNames(groups, positional)


def live_differences(what: str, saved: Iterable[str], live: Iterable[str]) -> list[str]:
    """List what is only saved and what is only live, with the nearest names."""
    stored, present = set(saved), set(live)
    return name_differences(
        what, sorted(stored - present), sorted(present - stored), "the live one"
    )


def tensor_differences(
    what: str, shape: tuple[int, ...], tensor: torch.Tensor, *, assigns: bool = False
) -> list[str]:
    """List why a live tensor cannot take a stored one of this shape, whatever its dtype."""
    # A copy into these would change nothing, or fail half way.
    if tensor.layout != torch.strided or tensor.is_nested:
        found = "nested" if tensor.is_nested else tensor.layout
        return [f"{what} is {found} here, only dense is restored"]
    differences: list[str] = []
    if tensor.is_meta:
        if not assigns:
            differences.append(
                f"{what} is on the meta device: give it memory first, or restore with assign=True"
            )
    elif (
        type(tensor) not in _PLAIN
        and is_traceable_wrapper_subclass(tensor)
        and not is_dtensor(tensor)
    ):
        differences.append(f"{what} is a {type(tensor).__name__}: restore before quantizing")
    elif not assigns and (reason := no_memory(tensor)) is not None:
        differences.append(f"{what} {reason}")
    if shape != tuple(tensor.shape):
        differences.append(
            f"{what} has shape {list(shape)} in the checkpoint, {list(tensor.shape)} "
            "in the live one"
        )
    return differences
