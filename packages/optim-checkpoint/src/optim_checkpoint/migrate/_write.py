"""Writing what was found in another tool's checkpoint as one of this package."""

from collections.abc import Mapping
from typing import Any

import torch

from optim_checkpoint._collect import Collector
from optim_checkpoint._errors import UnsupportedStateError
from optim_checkpoint._folder import StrPath
from optim_checkpoint._options import Options
from optim_checkpoint._place import Place, commit
from optim_checkpoint._typed import encode
from optim_checkpoint.migrate._found import Found, named, storable
from optim_checkpoint.migrate._naming import Names, add_ties, name_optimizer
from optim_checkpoint.torch._optimizer import kind
from optim_checkpoint.torch._save import build_document
from optim_checkpoint.torch._tensors import tensor_leaf

OptimizerOrClass = torch.optim.Optimizer | type[torch.optim.Optimizer] | str


class _State:
    """Something whose state dict is known."""

    def __init__(self, state: Any) -> None:
        self._state = state

    def state_dict(self) -> Any:
        """Return the state."""
        return self._state

    def load_state_dict(self, state_dict: Any) -> None:
        """Take another state."""
        self._state = state_dict


class _Model(torch.nn.Module):
    """A module of which only the state dict is known."""

    def __init__(self, entries: Mapping[str, Any]) -> None:
        super().__init__()
        self._entries = dict(entries)

    def state_dict(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        """Return the entries."""
        return self._entries


def _optimizer(found: Found, name: str, path: str, names: list[list[str]]) -> Any:
    """Return what stands for an optimizer: its class by name, its state dict, its parameters."""
    module, _, class_name = path.rpartition(".")
    stand_in: Any = type(class_name, (_State,), {"__module__": module})(found.optimizers[name])
    stand_in.state = found.optimizers[name]["state"]
    stand_in.param_groups = [
        {"params": [found.model[each] for each in group], "param_names": group} for group in names
    ]
    return stand_in


def _class_path(value: OptimizerOrClass | None, found: Found, name: str) -> str:
    where = named("optimizer", name)
    if isinstance(value, torch.optim.Optimizer):
        return kind(value)
    if isinstance(value, type):
        return f"{value.__module__}.{value.__qualname__}"
    path = found.kinds.get(name) if value is None else value
    if path is None:
        raise UnsupportedStateError(
            where,
            'has no class in the source: give optimizer="torch.optim.AdamW" or what it was '
            "(--optimizer)",
        )
    if not all(part.isidentifier() for part in path.split(".")) or "." not in path:
        raise ValueError(f"optimizer is {path!r}; it must be the dotted name of a class")
    return path


def _of(value: Any, found: Found, name: str) -> Any:
    """Return what was given for one of several optimizers."""
    if not isinstance(value, Mapping):
        return value
    unknown = [key for key in value if key not in found.optimizers]
    if unknown:
        there = ", ".join(found.optimizers) or "none"
        raise ValueError(f"there is no optimizer {unknown[0]!r}; there is {there}")
    return value.get(name)


def write(
    found: Found,
    path: StrPath,
    step: int,
    *,
    optimizer: OptimizerOrClass | Mapping[str, OptimizerOrClass] | None,
    names: Names | Mapping[str, Names] | None,
    model: torch.nn.Module | None,
    ties: Mapping[str, str],
    replace: bool,
) -> Place:
    """Commit what was found; `found` receives what stays behind.

    Raises:
        UnsupportedStateError: If names or classes are not certain, or a part cannot be stored.
        CheckpointExistsError: If the step exists.
    """
    add_ties(found, model, ties)
    optimizers: dict[str, Any] = {}
    for name in found.optimizers:
        given = _of(optimizer, found, name)
        class_path = _class_path(given, found, name)
        live = given if isinstance(given, torch.optim.Optimizer) else None
        listed = name_optimizer(found, name, _of(names, found, name), model, live)
        optimizers[name] = _optimizer(found, name, class_path, listed)
    extra = storable(found.extra, tensor_leaf(Collector(), "", exact=True), found.left_out)
    if found.rng is None and not any("generators" in line for line in found.left_out):
        found.left_out.append("generators: the source has none")
    document = build_document(
        step,
        model=_Model(found.model) if found.model else None,
        optimizer=_named(optimizers),
        scheduler=_named({name: _State(state) for name, state in found.schedulers.items()}),
        scaler=_named({name: _State(state) for name, state in found.scalers.items()}),
        extra=extra or None,
        rng=False,
    )
    if found.rng is not None:
        collector = Collector()
        train: Any = document.sections["train"]
        train["rng"] = encode(found.rng, "rng", tensor_leaf(collector, ""))
        entries: Any = document.parts["train"]
        entries += collector.entries
    return commit(path, document, Options(replace=replace))


def _named(states: dict[str, Any]) -> Any:
    if not states:
        return None
    return states.get("", states)
