"""Which layer is trained by sign and which by AdamW.

The last layers in the order of ``model.named_modules()`` take AdamW, the others the sign update;
or a preset looks at each parameter.
"""

import math
from collections.abc import Sequence, Set
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, Literal, NoReturn, TypeAlias

from torch import Tensor, nn

from stac_torch._layers import Layer, LayerGroup, SharedOwner, is_trained, module_layers
from stac_torch._transformer import adaptive_parameters

ModuleSelector: TypeAlias = "str | type[nn.Module]"
"""A module name, which may be a shell pattern, or a module class."""

Preset = Literal["last_layers", "transformer"]


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


def partition_trainable_layers(
    model: nn.Module,
    *,
    last_n_layers: int | None = None,
    last_n_ratio: float | None = None,
    adamw_modules: Sequence[ModuleSelector] = (),
    sign_modules: Sequence[ModuleSelector] = (),
    norms_on_adamw: bool = False,
    shared_owner: SharedOwner = "first",
    partition: Preset = "last_layers",
) -> STACPartition:
    """Split a model's layers into a sign section and an AdamW section.

    A layer is a module that directly owns parameters, frozen ones among them: whether a parameter
    is frozen when the optimizer is built changes no layer's section.

    Args:
        model: The model; wrappers (DDP, ``torch.compile``, FSDP) are looked through.
        last_n_layers: How many of the last layers take AdamW, >= 0. None is 1, unless
            ``last_n_ratio`` is given. More than there are is all of them: STAC is AdamW.
        last_n_ratio: The share of the layers that takes AdamW instead, in (0, 1], rounded down, at
            least one layer.
        adamw_modules: Modules to be trained by AdamW wherever they stand, with all that they
            contain: names, shell patterns of names, or module classes.
        sign_modules: Likewise for the sign update.
        norms_on_adamw: Train every normalisation layer (``Norm`` in its class name) by AdamW.
        shared_owner: The owner of a shared parameter: the ``"first"`` module that has it, or the
            ``"last"``, which trains the head of a model with tied embeddings by AdamW.
        partition: ``"last_layers"``, or ``"transformer"``: by AdamW embeddings, output heads,
            normalisation layers, routers, and parameters of one dimension or that are scales; by
            sign the other matrices. Layers are divided within then, and the two numbers and
            ``norms_on_adamw`` have nothing to say.

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
        partition=partition,
        model=model,
    )


def split_layers(
    layers: Sequence[Layer],
    *,
    last_n_layers: int | None,
    last_n_ratio: float | None,
    adamw_modules: Sequence[ModuleSelector],
    sign_modules: Sequence[ModuleSelector],
    norms_on_adamw: bool,
    partition: Preset,
    model: nn.Module | None,
) -> STACPartition:
    """Put each layer into its section; the arguments are those of the public function.

    Named parameters come without a model.
    """
    adaptive = None
    if partition != "last_layers":
        _check_preset(
            partition,
            last_n_layers=last_n_layers,
            last_n_ratio=last_n_ratio,
            norms_on_adamw=norms_on_adamw or None,
        )
        if model is None:
            _need_modules(f"partition={partition!r}")
        adaptive = adaptive_parameters(model)
    if not any(is_trained(p) for layer in layers for p in layer.group.parameters):
        msg = "STAC needs at least one trainable parameter, the model has none: check requires_grad"
        raise ValueError(msg)
    first_adamw = len(layers)
    if adaptive is None:
        first_adamw -= _adamw_count(len(layers), last_n_layers, last_n_ratio)
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
        if adaptive is None or adamw or index in on_sign:
            sections[adamw].append(layer.group)
            continue
        for section, part in enumerate(_divided(layer.group, adaptive)):
            sections[section].extend(part)
    return STACPartition(tuple(sections[0]), tuple(sections[1]))


def _check_preset(partition: str, **others: Any) -> None:
    if partition != "transformer":
        msg = f"partition must be 'last_layers' or 'transformer', got {partition!r}"
        raise ValueError(msg)
    for name, value in others.items():
        if value is not None:
            msg = (
                f"{name}={value!r} has nothing to say under partition='transformer', which looks "
                "at each parameter: give one, or move modules by adamw_modules and sign_modules"
            )
            raise ValueError(msg)


def _divided(layer: LayerGroup, adaptive: Set[int]) -> tuple[list[LayerGroup], list[LayerGroup]]:
    sections: tuple[list[LayerGroup], list[LayerGroup]] = ([], [])
    entries = list(zip(layer.parameter_names, layer.parameters, strict=True))
    for section, on_adamw in zip(sections, (False, True), strict=True):
        mine = [entry for entry in entries if (id(entry[1]) in adaptive) is on_adamw]
        if mine:
            section.append(LayerGroup(layer.name, *zip(*mine, strict=True)))
    return sections


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
        _need_modules(option)


def _need_modules(option: str) -> NoReturn:
    msg = f"{option} needs the modules, got named parameters: pass the model itself"
    raise ValueError(msg)
