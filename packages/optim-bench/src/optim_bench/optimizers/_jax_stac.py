"""STAC in JAX, with the sections that it has in PyTorch: the output layer on AdamW."""

from typing import Any

import optax
import stam_jax
from stam_core import HYBRID_SIGN_LR_SCALE

from optim_bench.optimizers._matrices import output_layer


def stac(*, learning_rate: Any, **rest: Any) -> optax.GradientTransformation:
    """STAC over a flat tree of parameters, whose dotted names JAX does not take apart."""
    return stam_jax.stac(
        learning_rate, partition=_sections, sign_lr_scale=HYBRID_SIGN_LR_SCALE, **rest
    )


def _sections(tree: dict[str, Any]) -> dict[str, str]:
    output = output_layer(tree)
    return {name: "adamw" if name.rpartition(".")[0] == output else "sign" for name in tree}
