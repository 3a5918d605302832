"""The layers of a model: what a partition divides.

A layer is a module that directly owns parameters which no layer before it owns, in the order of
``model.named_modules()``. What ``torch.nn.utils.parametrize`` made of a module's parameters belongs
to that module.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, NamedTuple

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

ROOT = "<root>"

SharedOwner = Literal["first", "last"]

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")
_PARAMETRIZED = "parametrizations"


@dataclass(frozen=True)
class LayerGroup:
    """One layer: a module and the parameters that it owns itself.

    Attributes:
        name: The module's name; ``"<root>"`` for the model itself.
        parameter_names: Full names of its parameters.
        parameters: The parameters, in the same order; frozen ones too.
    """

    name: str
    parameter_names: tuple[str, ...]
    parameters: tuple[Tensor, ...]


class Layer(NamedTuple):
    """A layer, and the chain of modules from the model to it (empty where only names are known)."""

    group: LayerGroup
    modules: tuple[nn.Module, ...]


def clean_name(name: str) -> str:
    """Return a module or parameter name without the names that wrappers put into it.

    Example:
        >>> clean_name("_orig_mod.blocks._checkpoint_wrapped_module.0.weight")
        'blocks.0.weight'
    """
    return ".".join(part for part in name.split(".") if part not in _WRAPPERS)


def layer_name(parameter_name: str) -> str:
    """Return the name of the layer that owns a parameter.

    Example:
        >>> layer_name("blocks.0.weight"), layer_name("scale")
        ('blocks.0', '<root>')
        >>> layer_name("head.parametrizations.weight.original0")
        'head'
    """
    return _owner_path(parameter_name.rpartition(".")[0]) or ROOT


def _owner_path(path: str) -> str:
    parts = path.split(".")
    return ".".join(parts[: parts.index(_PARAMETRIZED)]) if _PARAMETRIZED in parts else path


def can_train(parameter: Tensor) -> bool:
    """Tell whether a parameter can ever have a gradient; packed integers cannot."""
    return parameter.is_floating_point() or parameter.is_complex()


def is_trained(parameter: Tensor) -> bool:
    """Tell whether a parameter is not frozen; a plain tensor gets its gradient by hand."""
    return parameter.requires_grad or not isinstance(parameter, nn.Parameter)


def unwrapped(model: nn.Module) -> nn.Module:
    """Return the model inside replicas and compiled modules."""
    replicated = (DistributedDataParallel, DataParallel)
    # In either order; the class of compiled modules is not worth importing Dynamo for.
    while isinstance(model, replicated) or hasattr(model, "_orig_mod"):
        model = model.get_submodule("module" if isinstance(model, replicated) else "_orig_mod")
    return model


def module_layers(model: nn.Module, shared_owner: SharedOwner) -> list[Layer]:
    """Return the layers of a model in registration order."""
    if shared_owner not in ("first", "last"):
        msg = f"shared_owner must be 'first' or 'last', got {shared_owner!r}"
        raise ValueError(msg)
    # Without duplicates a shared module is seen under its first name alone.
    modules = dict(unwrapped(model).named_modules(remove_duplicate=shared_owner == "first"))
    owned = [
        (_owner_path(path), f"{path}.{name}" if path else name, parameter)
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if can_train(parameter)
    ]
    ordered = owned if shared_owner == "first" else reversed(owned)
    owner: dict[int, str] = {}
    for path, _, parameter in ordered:
        owner.setdefault(id(parameter), path)
    members: dict[str, dict[int, tuple[str, Tensor]]] = {}
    for path, name, parameter in owned:
        if owner[id(parameter)] == path:
            mine = members.setdefault(path, {})
            mine.setdefault(id(parameter), (clean_name(name), parameter))
    layers: list[Layer] = []
    for path, mine in members.items():
        names, parameters = zip(*mine.values(), strict=True)
        group = LayerGroup(clean_name(path) or ROOT, names, parameters)
        layers.append(Layer(group, _chain(modules, path)))
    return layers


def _chain(modules: dict[str, nn.Module], path: str) -> tuple[nn.Module, ...]:
    parts = path.split(".") if path else []
    return tuple(modules[".".join(parts[:depth])] for depth in range(len(parts) + 1))


def named_layers(named_parameters: Iterable[tuple[str, Tensor]]) -> list[Layer]:
    """Return the layers that the names of parameters speak of, in the order of the parameters.

    Raises:
        ValueError: Two parameters have one name, as those of two models do.
    """
    cleaned = [(clean_name(name), p) for name, p in named_parameters if can_train(p)]
    if cleaned and all(name.startswith("module.") for name, _ in cleaned):
        cleaned = [(name.removeprefix("module."), p) for name, p in cleaned]
    seen: dict[str, Tensor] = {}
    members: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in cleaned:
        if seen.setdefault(name, parameter) is not parameter:
            msg = (
                f"two parameters are called {name!r}, so their layers cannot be told apart: give "
                "each model a prefix of its own, model.named_parameters(prefix='generator')"
            )
            raise ValueError(msg)
        members.setdefault(layer_name(name), []).append((name, parameter))
    return [
        Layer(LayerGroup(layer, *zip(*entries, strict=True)), ())
        for layer, entries in members.items()
    ]
