"""Parts of a model that load themselves, by their own `load_state_dict`: read back, or taken back.

A module may keep more than its parameters and buffers (extra state, metrics), save something that
is made from them (a clone, a cast), or have hooks that act on what is loaded. Only its own code can
put that back.
"""

import copy
import warnings
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from optim_checkpoint._errors import CheckpointWarning, IncompatibleCheckpointError
from optim_checkpoint.torch._dtensor import is_dtensor, local_of
from optim_checkpoint.torch._names import clean
from optim_checkpoint.torch._tensors import identity, is_lazy, to_bytes

_METHODS = (
    "_load_from_state_dict",
    "_save_to_state_dict",
    "get_extra_state",
    "load_state_dict",
    "set_extra_state",
    "state_dict",
)
_HOOKS = ("_state_dict_hooks", "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks")
# What torch's own modules and wrappers add moves old entries to new names, takes their wrappers'
# names out or shards again: nothing is left to do where the names agree. Its lazy modules are
# known by their parameters.
_OF_TORCH = ("torch.nn.", "torch.distributed.")
_EXTRA = "_extra_state"


@dataclass(frozen=True)
class Part:
    """A module that loads itself with everything below it.

    Attributes:
        prefix: What the names of its entries start with, in the whole model's state dict.
        module: The module.
    """

    prefix: str
    module: torch.nn.Module

    def holds(self, name: str) -> bool:
        """Say whether an entry of the model is one of its own, by its clean name."""
        return name.startswith(clean_prefix(self.prefix))

    def load(
        self, values: Mapping[str, Any], undo: Callable[[Callable[[], None]], object]
    ) -> list[str]:
        """Load entries and return why what is there now is something else.

        Args:
            values: The entries by their names within the module.
            undo: Receives what takes it back.

        Raises:
            IncompatibleCheckpointError: If the module refuses them.
        """
        before = self.module.state_dict()
        undo(_snapshot(self.module, before))
        kind = type(self.module).__name__
        try:
            _load(self.module, values, before)
        except Exception as error:
            text = " ".join(str(error).split())
            raise IncompatibleCheckpointError(
                [f"load_state_dict() of the {kind} raised {type(error).__name__}: {text}"]
            ) from error
        return list(self._differences(values, before))

    def _differences(self, values: Mapping[str, Any], before: Mapping[str, Any]) -> Iterator[str]:
        now = self.module.state_dict()
        for name in sorted(values.keys() | now.keys()):
            where = f"model entry {clean(self.prefix + name)}"
            if name not in now or name not in values:
                which = "only in the checkpoint" if name in values else "not in the checkpoint"
                yield f"{where} is {which}, after load_state_dict() as well"
            elif not same(values[name], now[name]):
                if name.rpartition(".")[2] != _EXTRA:
                    yield f"{where} is not what its module's load_state_dict() was given"
                elif same(before.get(name), now[name]):
                    yield f"{where} was given to set_extra_state(), which changed nothing"
                else:
                    # It may hold a clock, or a pickle whose bytes are not the same twice.
                    warnings.warn(
                        f"{where} is another one than was given to set_extra_state()",
                        CheckpointWarning,
                        stacklevel=7,
                    )


def clean_prefix(prefix: str) -> str:
    """Return a prefix with the names of wrappers taken out."""
    name = clean(prefix.removesuffix("."))
    return f"{name}." if name else ""


def own_memory(model: torch.nn.Module) -> dict[str, torch.Tensor]:
    """Return the parameters and buffers that a walk through the modules finds, by clean name."""
    found = [
        *model.named_parameters(remove_duplicate=False),
        *model.named_buffers(remove_duplicate=False),
    ]
    return {clean(name): tensor for name, tensor in found}


def parts_of(model: torch.nn.Module, live: Mapping[str, object]) -> list[Part]:
    """Return the greatest parts of a model that load themselves: all of it, if an entry is strange.

    Args:
        model: The model, without its outer wrappers.
        live: Its state dict under clean names.
    """
    parts: list[Part] = []
    for name, module in model.named_modules(remove_duplicate=False):
        prefix = f"{name}." if name else ""
        if not any(prefix.startswith(part.prefix) for part in parts) and _loads_itself(module):
            parts.append(Part(prefix, module))
    memory = {identity(tensor) for tensor in own_memory(model).values() if not is_lazy(tensor)}
    memory.add(None)
    for name, value in live.items():
        known = isinstance(value, torch.Tensor) and (
            not is_lazy(value) and identity(value) in memory
        )
        if not known and not any(part.holds(name) for part in parts):
            return [Part("", model)]
    return parts


def _loads_itself(module: torch.nn.Module) -> bool:
    kind, own = type(module), vars(module)
    if any(method in own or _is_foreign(getattr(kind, method)) for method in _METHODS):
        return True
    if any(_is_foreign(hook) for hooks in _HOOKS for hook in own.get(hooks, {}).values()):
        return True
    return any(map(is_lazy, (*module._parameters.values(), *module._buffers.values())))


def _is_foreign(function: Any) -> bool:
    return not str(getattr(function, "__module__", "")).startswith(_OF_TORCH)


def _load(module: torch.nn.Module, values: Mapping[str, Any], before: Mapping[str, Any]) -> None:
    state = OrderedDict(values)
    # The versions of its modules, by which they know old entries.
    state._metadata = getattr(before, "_metadata", None)  # pyright: ignore[reportAttributeAccessIssue]
    module.load_state_dict(state)


def _snapshot(module: torch.nn.Module, state: Mapping[str, Any]) -> Callable[[], None]:
    """Return what puts a module back: what it loads, and every attribute, parameter and buffer."""
    tables = ("_parameters", "_buffers", "_modules")
    fields = [
        (part, dict(vars(part)), [(vars(part)[name], dict(vars(part)[name])) for name in tables])
        for part in module.modules()
    ]
    tensors = [_kept(tensor) for tensor in (*module.parameters(), *module.buffers())]
    copies = {identity(tensor): value for tensor, value, _ in tensors if value is not None}
    before = {
        name: copies.get(identity(value))
        if isinstance(value, torch.Tensor) and not is_lazy(value)
        else None
        for name, value in state.items()
    }
    before = {
        name: _copied(value) if before[name] is None else before[name]
        for name, value in state.items()
    }

    def take_back() -> None:
        try:
            _load(module, before, state)
        except Exception as error:  # noqa: BLE001 - user code, which may have raised before, too
            warnings.warn(
                f"load_state_dict() of the {type(module).__name__} refused what it had before; its "
                f"tensors and attributes were put back: {error}",
                CheckpointWarning,
                stacklevel=2,
            )
        finally:
            for part, content, inside in fields:
                vars(part).clear()
                vars(part).update(content)
                for table, entries in inside:
                    table.clear()
                    table.update(entries)
            for _, _, put_back in tensors:
                put_back()

    return take_back


def _copied(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value if is_lazy(value) else value.detach().clone()
    return copy.deepcopy(value)


def _kept(tensor: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor | None, Callable[[], None]]:
    """Return a tensor, its values and what puts them back, with its memory, shape and class."""
    kind, memory = type(tensor), tensor.data
    value = None if is_lazy(tensor) else tensor.detach().clone()

    def put_back() -> None:
        if type(tensor) is not kind:
            tensor.__class__ = kind
        with torch.no_grad():
            if value is None or (not is_dtensor(tensor) and tensor.shape != value.shape):
                tensor.data = memory
            if value is not None:
                tensor.copy_(value)

    return tensor, value, put_back


def same(one: Any, other: Any) -> bool:
    """Say whether two values are equal in type and bits; tensors wherever they are."""
    if isinstance(one, torch.Tensor) and isinstance(other, torch.Tensor):
        if is_lazy(one) or is_lazy(other):
            return False
        if is_dtensor(one) and is_dtensor(other):
            return one.shape == other.shape and same(local_of(one), local_of(other))
        if (one.dtype, one.shape) != (other.dtype, other.shape):
            return False
        return np.array_equal(np.asarray(to_bytes(one)), np.asarray(to_bytes(other)))
    if type(one) is not type(other):
        return False
    if isinstance(one, np.ndarray):
        return (one.dtype, one.shape) == (
            other.dtype,
            other.shape,
        ) and one.tobytes() == other.tobytes()
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, float | complex):
        return repr(one) == repr(other)
    return bool(one == other)
