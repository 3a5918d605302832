"""Parameter groups: the form in which a partition reaches an optimizer.

A group holds its role, so that wrappers which rebuild the optimizer from its groups (ZeRO, gradient
release) or replace its parameters (FSDP) need to know nothing about layers.
"""

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple

from stam_core import HYBRID_SIGN_LR_SCALE, STACRole
from torch import Tensor, nn

from stac_torch._advice import warn_of_partition
from stac_torch._arguments import materialized, refuse_partition_options
from stac_torch._frozen import FrozenParameters
from stac_torch._layers import LayerGroup, SharedOwner, is_trained, module_layers, named_layers
from stac_torch._partition import ModuleSelector, Preset, STACPartition, split_layers


def param_groups(
    model: nn.Module | Iterable[tuple[str, Tensor]],
    *,
    last_n_layers: int | None = None,
    last_n_ratio: float | None = None,
    adamw_modules: Sequence[ModuleSelector] = (),
    sign_modules: Sequence[ModuleSelector] = (),
    norms_on_adamw: bool = False,
    shared_owner: SharedOwner = "first",
    partition: Preset = "last_layers",
    hold_frozen: bool = True,
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
        last_n_layers: How many of the last layers take AdamW, >= 0; None is 1, and more than
            there are is all.
        last_n_ratio: The share of the layers that takes AdamW instead, in (0, 1].
        adamw_modules: Modules to be trained by AdamW wherever they stand: names, shell patterns of
            names, or module classes.
        sign_modules: Likewise for the sign update.
        norms_on_adamw: Train every normalisation layer by AdamW.
        shared_owner: The owner of a shared parameter: the ``"first"`` module that has it, or the
            ``"last"``.
        partition: ``"last_layers"``, or ``"transformer"``: see
            :func:`partition_trainable_layers`.
        hold_frozen: Hold frozen parameters in their layer's section, without state until they have
            a gradient. Without them no group knows them.
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

    Warns:
        UserWarning: The AdamW section has no matrix, or the output embedding is trained by sign.

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
    found, _ = find_partition(
        model,
        shared_owner=shared_owner,
        partition=partition,
        last_n_layers=last_n_layers,
        last_n_ratio=last_n_ratio,
        adamw_modules=adamw_modules,
        sign_modules=sign_modules,
        norms_on_adamw=norms_on_adamw,
    )
    warn_of_partition(model, found, sign_modules, partition, stacklevel=3)
    groups = groups_of(
        found,
        hold_frozen=hold_frozen,
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


class Sections(NamedTuple):
    """What ``torch.optim.Optimizer`` takes for its first argument, and what is known beside it.

    Attributes:
        params: The parameters or groups.
        layers: The names of all layers in order.
        frozen: The frozen parameters of the model.
        sign_lr_scale: The resolved one.
    """

    params: Any
    layers: tuple[str, ...]
    frozen: FrozenParameters
    sign_lr_scale: float


def sections_of(
    params: Any,
    role: STACRole | None,
    *,
    decay: dict[STACRole, float],
    sign_lr_scale: float | None,
    exclude_bias_and_norm_from_weight_decay: bool,
    hold_frozen: bool,
    **options: Any,
) -> Sections:
    """Return the sections of what the constructor was given.

    Raises:
        ValueError: An option that chooses sections came with parameters that have a role already.
    """
    params, partitionable = materialized(params, role)
    if partitionable:
        partition, layers = find_partition(params, **options)
        chosen = options["sign_modules"], options["partition"]
        warn_of_partition(params, partition, *chosen, stacklevel=4)
        groups = groups_of(
            partition,
            decay=decay,
            sign_lr_scale=sign_lr_scale,
            exclude_bias_and_norm_from_weight_decay=exclude_bias_and_norm_from_weight_decay,
            hold_frozen=hold_frozen,
        )
        frozen = FrozenParameters(
            (parameter, name, role)
            for role, section in _by_role(partition)
            for layer in section
            for name, parameter in zip(layer.parameter_names, layer.parameters, strict=True)
            if not is_trained(parameter)
        )
        return Sections(groups, layers, frozen, groups[0]["sign_lr_scale"])
    published = {"shared_owner": "first", "partition": "last_layers"}
    refuse_partition_options(
        {
            **{k: None if v == published.get(k) else v for k, v in options.items()},
            "exclude_bias_and_norm_from_weight_decay": exclude_bias_and_norm_from_weight_decay,
            "hold_frozen": None if hold_frozen else hold_frozen,
        }
    )
    return Sections(params, (), FrozenParameters(), 1.0 if sign_lr_scale is None else sign_lr_scale)


def find_partition(
    model: nn.Module | Iterable[tuple[str, Tensor]], *, shared_owner: SharedOwner, **options: Any
) -> tuple[STACPartition, tuple[str, ...]]:
    """Return the partition of a model or of named parameters, and all layer names in order."""
    module = model if isinstance(model, nn.Module) else None
    if isinstance(model, nn.Module):
        layers = module_layers(model, shared_owner)
    else:
        if shared_owner != "first":
            msg = (
                f"shared_owner={shared_owner!r} needs the modules, got named parameters, which "
                "name a shared parameter once, after its first owner: pass the model itself"
            )
            raise ValueError(msg)
        layers = named_layers(model)
    partition = split_layers(layers, **options, model=module)
    return partition, tuple(layer.group.name for layer in layers)


def _by_role(
    partition: STACPartition,
) -> tuple[tuple[STACRole, tuple[LayerGroup, ...]], tuple[STACRole, tuple[LayerGroup, ...]]]:
    return ("sign", partition.sign_layers), ("adamw", partition.adamw_layers)


def groups_of(
    partition: STACPartition,
    *,
    decay: dict[STACRole, float],
    sign_lr_scale: float | None,
    exclude_bias_and_norm_from_weight_decay: bool,
    hold_frozen: bool,
) -> list[dict[str, Any]]:
    """Return the groups of a partition, their parameters with names."""
    if sign_lr_scale is None:
        hybrid = partition.sign_layers and partition.adamw_layers
        sign_lr_scale = HYBRID_SIGN_LR_SCALE if hybrid else 1.0
    groups: list[dict[str, Any]] = []
    for role, layers in _by_role(partition):
        members = [
            entry
            for layer in layers
            for entry in zip(layer.parameter_names, layer.parameters, strict=True)
            if hold_frozen or is_trained(entry[1])
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
