"""One warning about a partition that few mean to have: a head that is trained by sign."""

import warnings
from collections.abc import Iterable, Sequence
from typing import Any

from torch import Tensor, nn

from stac_torch._layers import LayerGroup, is_trained
from stac_torch._partition import Preset, STACPartition
from stac_torch._transformer import output_embeddings

_REMEDY = (
    "partition='transformer' puts head, embeddings and norms on AdamW, shared_owner='last' a tied "
    "head, and adamw_modules=[...] what it names; last_n_layers=0 trains all by sign without this "
    "warning"
)


def warn_of_partition(
    model: Any,
    partition: STACPartition,
    sign_modules: Sequence[Any],
    preset: Preset,
    stacklevel: int,
) -> None:
    """Warn if a partition into two sections leaves AdamW no matrix, or the output to sign.

    Also if a preset that looks at parameters leaves nothing to sign, so that STAC is AdamW.

    Args:
        model: The model, or whatever names its parameters.
        partition: Its partition.
        sign_modules: What the user put on sign, which is then meant.
        preset: What made the partition.
        stacklevel: Where the user is, seen from ``warnings.warn``.
    """
    if preset != "last_layers":
        if not partition.sign_layers:
            msg = (
                f"partition={preset!r} leaves the sign section empty, AdamW trains all, "
                f"{_listed(partition.adamw_layers)}: name in sign_modules=[...] what the sign "
                "update is to train; last_n_ratio=1.0 instead is AdamW without this warning"
            )
            warnings.warn(msg, UserWarning, stacklevel=stacklevel)
        return
    if not partition.sign_layers or not partition.adamw_layers or sign_modules:
        return
    findings: list[str] = []
    if _matrices(partition.sign_parameters) and not _matrices(partition.adamw_parameters):
        findings.append(
            f"the AdamW section holds no trainable matrix, only {_listed(partition.adamw_layers)}"
        )
    outputs = output_embeddings(model) if isinstance(model, nn.Module) else None
    if isinstance(outputs, nn.Module):
        weights = set(map(id, _matrices(outputs.parameters())))
        by_sign = [
            name
            for layer in partition.sign_layers
            for name, p in zip(layer.parameter_names, layer.parameters, strict=True)
            if id(p) in weights
        ]
        if by_sign:
            findings.append(f"the output embedding {by_sign[0]!r} is trained by sign")
    if findings:
        warnings.warn(f"{', and '.join(findings)}: {_REMEDY}", UserWarning, stacklevel=stacklevel)


def _matrices(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [p for p in parameters if p.ndim >= 2 and is_trained(p)]


def _listed(layers: Sequence[LayerGroup]) -> str:
    names = [layer.name for layer in layers]
    return f"{names}" if len(names) <= 3 else f"{names[:3]} and {len(names) - 3} more"
