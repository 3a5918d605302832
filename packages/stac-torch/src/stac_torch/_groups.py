"""Parameter groups: the form in which a partition reaches an optimizer.

A group holds its role, so that wrappers which rebuild the optimizer from its groups (ZeRO, gradient
release) or replace its parameters (FSDP) need to know nothing about layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any

from stam_core import HYBRID_SIGN_LR_SCALE, STACRole
from torch import Tensor, nn

from stac_torch._arguments import materialized, refuse_partition_options
from stac_torch._partition import (
    Layer,
    LayerGroup,
    ModuleSelector,
    SharedOwner,
    STACPartition,
    module_layers,
    named_layers,
    split_layers,
)


def param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    *,
    last_n_layers: int | None = None,
    last_n_ratio: float | None = None,
    adamw_modules: Sequence[ModuleSelector] = (),
    sign_modules: Sequence[ModuleSelector] = (),
    norms_on_adamw: bool = False,
    shared_owner: SharedOwner = "first",
    weight_decay: float = 0.0,
    sign_weight_decay: float | None = None,
    adamw_weight_decay: float | None = None,
    sign_lr_scale: float | None = None,
    exclude_bias_and_norm_from_weight_decay: bool = False,
    named: bool = False,
) -> list[dict[str, Any]]:
    """Return the parameter groups of a model, each with its role.

    For whatever builds the optimizer itself: ``ZeroRedundancyOptimizer(param_groups(model),
    optimizer_class=STAC, lr=1e-3)``. ``STAC(model)`` does the same and also keeps the names.

    Args:
        model: A model, or its ``named_parameters()``, whose names then tell the layers.
        last_n_layers: See :func:`partition_trainable_layers`, as for the next five.
        last_n_ratio: As there.
        adamw_modules: As there.
        sign_modules: As there.
        norms_on_adamw: As there.
        shared_owner: As there.
        weight_decay: Decoupled weight decay of both sections, >= 0.
        sign_weight_decay: That of the sign section; None for ``weight_decay``.
        adamw_weight_decay: That of the AdamW section; None for ``weight_decay``.
        sign_lr_scale: Step size of the sign section over the learning rate; None is 0.75 where both
            sections have layers and 1.0 otherwise.
        exclude_bias_and_norm_from_weight_decay: Give tensors with fewer than two dimensions
            (biases, scales of normalisation layers) groups of their own without weight decay.
        named: Write the parameters as ``(name, parameter)``, as ``torch.optim`` takes them.

    Returns:
        At most four groups, none of them empty, the sign section first.

    Raises:
        ValueError: As :func:`partition_trainable_layers`, or an option needs the modules.
        TypeError: As :func:`partition_trainable_layers`.

    Example:
        >>> model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        >>> [(g["role"], g["sign_lr_scale"], len(g["params"])) for g in param_groups(model)]
        [('sign', 0.75, 2), ('adamw', 0.75, 2)]
        >>> [g["role"] for g in param_groups(model, last_n_layers=2)]
        ['adamw']
    """
    partition, _ = find_partition(
        model,
        shared_owner=shared_owner,
        last_n_layers=last_n_layers,
        last_n_ratio=last_n_ratio,
        adamw_modules=adamw_modules,
        sign_modules=sign_modules,
        norms_on_adamw=norms_on_adamw,
    )
    groups = groups_of(
        partition,
        decay={
            "sign": weight_decay if sign_weight_decay is None else sign_weight_decay,
            "adamw": weight_decay if adamw_weight_decay is None else adamw_weight_decay,
        },
        sign_lr_scale=sign_lr_scale,
        exclude_bias_and_norm_from_weight_decay=exclude_bias_and_norm_from_weight_decay,
    )
    if not named:
        for group in groups:
            group["params"] = [parameter for _, parameter in group["params"]]
    return groups


def sections_of(
    params: Any,
    role: STACRole | None,
    *,
    decay: dict[STACRole, float],
    sign_lr_scale: float | None,
    exclude_bias_and_norm_from_weight_decay: bool,
    shared_owner: SharedOwner,
    **options: Any,
) -> tuple[Any, tuple[str, ...], float]:
    """Return what ``torch.optim.Optimizer`` takes for the first argument of the constructor.

    Returns:
        The parameters or groups, the names of all layers in order, and the resolved
        ``sign_lr_scale``.

    Raises:
        ValueError: An option that chooses sections came with parameters that have a role already.
    """
    params, partitionable = materialized(params, role)
    if partitionable:
        partition, layers = find_partition(params, shared_owner=shared_owner, **options)
        groups = groups_of(
            partition,
            decay=decay,
            sign_lr_scale=sign_lr_scale,
            exclude_bias_and_norm_from_weight_decay=exclude_bias_and_norm_from_weight_decay,
        )
        return groups, layers, groups[0]["sign_lr_scale"]
    refuse_partition_options(
        {
            **options,
            "shared_owner": None if shared_owner == "first" else shared_owner,
            "exclude_bias_and_norm_from_weight_decay": exclude_bias_and_norm_from_weight_decay,
        }
    )
    return params, (), 1.0 if sign_lr_scale is None else sign_lr_scale


def find_partition(
    model: nn.Module | Iterable[tuple[str, Tensor]], *, shared_owner: SharedOwner, **options: Any
) -> tuple[STACPartition, tuple[str, ...]]:
    """Return the partition of a model or of named parameters, and all layer names in order."""
    if isinstance(model, nn.Module):
        layers: list[Layer] = module_layers(model, shared_owner)
    else:
        if shared_owner != "first":
            msg = (
                f"shared_owner={shared_owner!r} needs the modules, got named parameters, which "
                "name a shared parameter once, after its first owner: pass the model itself"
            )
            raise ValueError(msg)
        layers = named_layers(model)
    return split_layers(layers, **options), tuple(layer.group.name for layer in layers)


def groups_of(
    partition: STACPartition,
    *,
    decay: dict[STACRole, float],
    sign_lr_scale: float | None,
    exclude_bias_and_norm_from_weight_decay: bool,
) -> list[dict[str, Any]]:
    """Return the groups of a partition, their parameters with names."""
    if sign_lr_scale is None:
        hybrid = partition.sign_layers and partition.adamw_layers
        sign_lr_scale = HYBRID_SIGN_LR_SCALE if hybrid else 1.0
    groups: list[dict[str, Any]] = []
    sections: tuple[tuple[STACRole, tuple[LayerGroup, ...]], ...] = (
        ("sign", partition.sign_layers),
        ("adamw", partition.adamw_layers),
    )
    for role, layers in sections:
        members = [
            entry
            for layer in layers
            for entry in zip(layer.parameter_names, layer.parameters, strict=True)
        ]
        split = exclude_bias_and_norm_from_weight_decay
        decayed = [(name, p) for name, p in members if not split or p.ndim >= 2]
        spared = [(name, p) for name, p in members if split and p.ndim < 2]
        for params, weight_decay in ((decayed, decay[role]), (spared, 0.0)):
            if params:
                groups.append(
                    {
                        "params": params,
                        "role": role,
                        "weight_decay": weight_decay,
                        "sign_lr_scale": sign_lr_scale,
                    }
                )
    return groups
