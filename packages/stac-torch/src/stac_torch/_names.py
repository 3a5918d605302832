"""Names of the parameters that an optimizer holds: ``group["param_names"]``, as in torch."""

from collections.abc import Mapping, Sequence
from typing import Any

from stam_core.noise import noise_key
from torch import Tensor

from stac_torch._layers import LayerGroup, layer_name
from stac_torch._partition import STACPartition


def names_of(index: int, group: Mapping[str, Any]) -> tuple[str, ...]:
    """Return a name for each parameter of a group, made up where none is known.

    Names are kept by position: whoever replaces the parameters of a group keeps their order, and
    whoever takes some away gets made-up names.
    """
    count = len(group["params"])
    known = group.get("param_names")
    if known is not None and len(known) == count:
        return tuple(known)
    return tuple(f"<group {index}>.{position}" for position in range(count))


def noise_keys(groups: Sequence[Mapping[str, Any]], group: Mapping[str, Any]) -> list[int]:
    """Return the key of the noise of each parameter of a group, which is one of ``groups``."""
    index = next(i for i, each in enumerate(groups) if each is group)
    return [noise_key(group["rounding_seed"], name) for name in names_of(index, group)]


def inherit_names(
    loaded: Sequence[dict[str, Any]],
    saved: Sequence[Sequence[str] | None],
    own: Sequence[Mapping[str, Any]],
) -> None:
    """Give loaded groups the names that were saved, else those that the optimizer's groups have."""
    for group, theirs, mine in zip(loaded, saved, own, strict=True):
        if theirs is not None and len(theirs) == len(group["params"]):
            group["param_names"] = list(theirs)
        elif "param_names" in mine:
            group["param_names"] = mine["param_names"]


def live_partition(groups: Sequence[Mapping[str, Any]], order: Sequence[str]) -> STACPartition:
    """Return the partition that an optimizer's groups hold, its layers in ``order``."""
    sections: dict[str, dict[str, list[tuple[str, Tensor]]]] = {"sign": {}, "adamw": {}}
    for index, group in enumerate(groups):
        for name, parameter in zip(names_of(index, group), group["params"], strict=True):
            made_up = name.startswith("<group ")
            layer = f"<group {index}>" if made_up else layer_name(name)
            sections[group["role"]].setdefault(layer, []).append((name, parameter))
    rank = {layer: position for position, layer in enumerate(order)}

    def layers(role: str) -> tuple[LayerGroup, ...]:
        ordered = sorted(sections[role].items(), key=lambda item: rank.get(item[0], len(rank)))
        return tuple(LayerGroup(layer, *zip(*mine, strict=True)) for layer, mine in ordered)

    return STACPartition(layers("sign"), layers("adamw"))
