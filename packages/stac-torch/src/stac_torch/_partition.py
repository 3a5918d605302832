"""Which layer is trained by sign and which by AdamW.

A layer is a module that directly owns trainable parameters which no layer before it owns. Layers
come in the order of ``model.named_modules()``; the last ones take AdamW, the others the sign
update.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NamedTuple, TypeAlias

from torch import Tensor, nn
from torch.nn.parallel import DataParallel, DistributedDataParallel

ROOT = "<root>"

SharedOwner = Literal["first", "last"]

ModuleSelector: TypeAlias = "str | type[nn.Module]"
"""A module name, which may be a shell pattern, or a module class."""

_WRAPPERS = ("_orig_mod", "_fsdp_wrapped_module", "_checkpoint_wrapped_module")


@dataclass(frozen=True)
class LayerGroup:
    """One layer: a module and the trainable parameters that it owns itself.

    Attributes:
        name: The module's name; ``"<root>"`` for the model itself.
        parameter_names: Full names of its parameters.
        parameters: The parameters, in the same order.
    """

    name: str
    parameter_names: tuple[str, ...]
    parameters: tuple[Tensor, ...]


@dataclass(frozen=True)
class STACPartition:
    """A model's layers in two sections, each in registration order.

    Attributes:
        sign_layers: The layers trained by sign.
        adamw_layers: The layers trained by AdamW.
    """

    sign_layers: tuple[LayerGroup, ...]
    adamw_layers: tuple[LayerGroup, ...]

    @property
    def sign_layer_names(self) -> tuple[str, ...]:
        """Names of the layers trained by sign."""
        return tuple(layer.name for layer in self.sign_layers)

    @property
    def adamw_layer_names(self) -> tuple[str, ...]:
        """Names of the layers trained by AdamW."""
        return tuple(layer.name for layer in self.adamw_layers)

    @property
    def sign_parameter_names(self) -> tuple[str, ...]:
        """Full names of the parameters trained by sign."""
        return tuple(name for layer in self.sign_layers for name in layer.parameter_names)

    @property
    def adamw_parameter_names(self) -> tuple[str, ...]:
        """Full names of the parameters trained by AdamW."""
        return tuple(name for layer in self.adamw_layers for name in layer.parameter_names)

    @property
    def sign_parameters(self) -> tuple[Tensor, ...]:
        """The parameters trained by sign."""
        return tuple(p for layer in self.sign_layers for p in layer.parameters)

    @property
    def adamw_parameters(self) -> tuple[Tensor, ...]:
        """The parameters trained by AdamW."""
        return tuple(p for layer in self.adamw_layers for p in layer.parameters)


class Layer(NamedTuple):
    """A layer, and the chain of modules from the model to it (empty where only names are known)."""

    group: LayerGroup
    modules: tuple[nn.Module, ...]


def partition_trainable_layers(
    model: nn.Module,
    *,
    last_n_layers: int | None = None,
    last_n_ratio: float | None = None,
    adamw_modules: Sequence[ModuleSelector] = (),
    sign_modules: Sequence[ModuleSelector] = (),
    norms_on_adamw: bool = False,
    shared_owner: SharedOwner = "first",
) -> STACPartition:
    """Split a model's trainable layers into a sign section and an AdamW section.

    Args:
        model: The model; wrappers (DDP, ``torch.compile``, FSDP) are looked through.
        last_n_layers: How many of the last layers take AdamW, >= 0. None is 1, unless
            ``last_n_ratio`` is given.
        last_n_ratio: The share of the layers that takes AdamW instead, in (0, 1], rounded down, at
            least one layer.
        adamw_modules: Modules to be trained by AdamW wherever they stand, with all that they
            contain: names, shell patterns of names, or module classes.
        sign_modules: Likewise for the sign update.
        norms_on_adamw: Train every normalisation layer (``Norm`` in its class name) by AdamW.
        shared_owner: The owner of a shared parameter: the ``"first"`` module that has it, or the
            ``"last"``, which trains the head of a model with tied embeddings by AdamW.

    Returns:
        The two sections. Forced layers count among the last ones.

    Raises:
        ValueError: A number is out of range, nothing is trainable, a selector matches no layer, or
            a layer is forced into both sections.
        TypeError: A selector is neither a string nor a module class.

    Example:
        >>> body = nn.Embedding(9, 4), nn.LayerNorm(4), nn.Linear(4, 4)
        >>> model = nn.Sequential(*body, nn.Linear(4, 9))
        >>> partition_trainable_layers(model).sign_layer_names
        ('0', '1', '2')
        >>> partition_trainable_layers(model, norms_on_adamw=True).sign_layer_names
        ('0', '2')
    """
    if not isinstance(model, nn.Module):
        msg = f"model must be a torch.nn.Module, got {type(model).__name__}"
        raise TypeError(msg)
    layers = module_layers(model, shared_owner)
    return split_layers(
        layers,
        last_n_layers=last_n_layers,
        last_n_ratio=last_n_ratio,
        adamw_modules=adamw_modules,
        sign_modules=sign_modules,
        norms_on_adamw=norms_on_adamw,
    )


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
    """
    return parameter_name.rpartition(".")[0] or ROOT


def module_layers(model: nn.Module, shared_owner: SharedOwner) -> list[Layer]:
    """Return the trainable layers of a model in registration order."""
    if shared_owner not in ("first", "last"):
        msg = f"shared_owner must be 'first' or 'last', got {shared_owner!r}"
        raise ValueError(msg)
    replicated = (DistributedDataParallel, DataParallel)
    # In either order; the class of compiled modules is not worth importing Dynamo for.
    while isinstance(model, replicated) or hasattr(model, "_orig_mod"):
        model = model.get_submodule("module" if isinstance(model, replicated) else "_orig_mod")
    # Without duplicates a shared module is seen under its first name alone.
    modules = dict(model.named_modules(remove_duplicate=shared_owner == "first"))
    owned = [
        (path, name, parameter)
        for path, module in modules.items()
        for name, parameter in module.named_parameters(recurse=False)
        if parameter.requires_grad
    ]
    ordered = owned if shared_owner == "first" else reversed(owned)
    owner: dict[int, str] = {}
    for path, _, parameter in ordered:
        owner.setdefault(id(parameter), path)
    members: dict[str, dict[int, tuple[str, Tensor]]] = {}
    for path, name, parameter in owned:
        if owner[id(parameter)] == path:
            full = clean_name(f"{path}.{name}" if path else name)
            members.setdefault(path, {}).setdefault(id(parameter), (full, parameter))
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
    """Return the layers that the names of parameters speak of, in the order of the parameters."""
    cleaned = [(clean_name(name), p) for name, p in named_parameters if p.requires_grad]
    if cleaned and all(name.startswith("module.") for name, _ in cleaned):
        cleaned = [(name.removeprefix("module."), p) for name, p in cleaned]
    members: dict[str, list[tuple[str, Tensor]]] = {}
    for name, parameter in cleaned:
        members.setdefault(layer_name(name), []).append((name, parameter))
    return [
        Layer(LayerGroup(layer, *zip(*entries, strict=True)), ())
        for layer, entries in members.items()
    ]


def names_of(
    index: int, group: Mapping[str, Any], names: Sequence[tuple[str, ...] | None]
) -> tuple[str, ...]:
    """Return a name for each parameter of a group, made up where none is known.

    Names are kept by position: whoever replaces the parameters of a group keeps their order, and
    whoever replaces the groups themselves gets made-up names.
    """
    count = len(group["params"])
    known = names[index] if index < len(names) else None
    if known is not None and len(known) == count:
        return known
    return tuple(f"<group {index}>.{position}" for position in range(count))


def live_partition(
    groups: Sequence[Mapping[str, Any]],
    names: Sequence[tuple[str, ...] | None],
    order: Sequence[str],
) -> STACPartition:
    """Return the partition that an optimizer's groups hold, its layers in ``order``."""
    sections: dict[str, dict[str, list[tuple[str, Tensor]]]] = {"sign": {}, "adamw": {}}
    for index, group in enumerate(groups):
        for name, parameter in zip(names_of(index, group, names), group["params"], strict=True):
            made_up = name.startswith("<group ")
            layer = f"<group {index}>" if made_up else layer_name(name)
            sections[group["role"]].setdefault(layer, []).append((name, parameter))
    rank = {layer: position for position, layer in enumerate(order)}

    def layers(role: str) -> tuple[LayerGroup, ...]:
        ordered = sorted(sections[role].items(), key=lambda item: rank.get(item[0], len(rank)))
        return tuple(LayerGroup(layer, *zip(*mine, strict=True)) for layer, mine in ordered)

    return STACPartition(layers("sign"), layers("adamw"))


def split_layers(
    layers: Sequence[Layer],
    *,
    last_n_layers: int | None,
    last_n_ratio: float | None,
    adamw_modules: Sequence[ModuleSelector],
    sign_modules: Sequence[ModuleSelector],
    norms_on_adamw: bool,
) -> STACPartition:
    """Put each layer into its section; the arguments are those of the public function."""
    if not layers:
        msg = "STAC needs at least one trainable parameter, the model has none: check requires_grad"
        raise ValueError(msg)
    first_adamw = len(layers) - _adamw_count(len(layers), last_n_layers, last_n_ratio)
    on_adamw = _matches(layers, adamw_modules, "adamw_modules")
    on_sign = _matches(layers, sign_modules, "sign_modules")
    both = sorted(on_adamw & on_sign)
    if both:
        msg = (
            f"adamw_modules and sign_modules both claim {[layers[i].group.name for i in both]}: "
            "take each layer out of one of them"
        )
        raise ValueError(msg)
    if norms_on_adamw:
        on_adamw |= _norms(layers) - on_sign
    sections: tuple[list[LayerGroup], list[LayerGroup]] = ([], [])
    for index, layer in enumerate(layers):
        adamw = index in on_adamw or (index >= first_adamw and index not in on_sign)
        sections[adamw].append(layer.group)
    return STACPartition(tuple(sections[0]), tuple(sections[1]))


def _adamw_count(layers: int, last_n_layers: int | None, last_n_ratio: float | None) -> int:
    if last_n_ratio is not None:
        if last_n_layers is not None:
            msg = f"give last_n_layers={last_n_layers!r} or last_n_ratio={last_n_ratio!r}, not both"
            raise ValueError(msg)
        if not 0 < last_n_ratio <= 1:
            msg = (
                f"last_n_ratio must be in (0, 1], got {last_n_ratio!r}: last_n_layers=0 is all sign"
            )
            raise ValueError(msg)
        return max(1, math.floor(last_n_ratio * layers))
    count = 1 if last_n_layers is None else last_n_layers
    if isinstance(count, bool) or not isinstance(count, int):
        msg = f"last_n_layers must be an integer, got {count!r} ({type(count).__name__})"
        raise TypeError(msg)
    if count < 0:
        msg = f"last_n_layers must be >= 0, got {count}: 0 trains every layer by sign"
        raise ValueError(msg)
    return min(count, layers)


def _matches(layers: Sequence[Layer], selectors: Sequence[ModuleSelector], option: str) -> set[int]:
    if isinstance(selectors, str):
        msg = f"{option} must be a sequence, got the string {selectors!r}: write [{selectors!r}]"
        raise TypeError(msg)
    found: set[int] = set()
    for selector in selectors:
        hits = {i for i, layer in enumerate(layers) if _selects(selector, layer, option)}
        if not hits:
            msg = (
                f"{option}: {selector!r} matches no trainable layer; "
                f"the layers are {[layer.group.name for layer in layers]}"
            )
            raise ValueError(msg)
        found |= hits
    return found


def _selects(selector: ModuleSelector, layer: Layer, option: str) -> bool:
    if isinstance(selector, str):
        parts = layer.group.name.split(".")
        return any(
            fnmatchcase(".".join(parts[: depth + 1]), selector) for depth in range(len(parts))
        )
    if isinstance(selector, type) and issubclass(selector, nn.Module):
        _require_modules(layer, f"{option}={selector.__name__}")
        return any(isinstance(module, selector) for module in layer.modules)
    msg = f"{option}: {selector!r} is neither a name nor a torch.nn.Module class"
    raise TypeError(msg)


def _norms(layers: Sequence[Layer]) -> set[int]:
    for layer in layers:
        _require_modules(layer, "norms_on_adamw=True")
    return {i for i, layer in enumerate(layers) if "Norm" in type(layer.modules[-1]).__name__}


def _require_modules(layer: Layer, option: str) -> None:
    if not layer.modules:
        msg = f"{option} needs the modules, got named parameters: pass the model itself"
        raise ValueError(msg)
