"""Hyperparameters that optimizers of both frameworks declare, under the same names and defaults."""

from collections.abc import Mapping

from optim_bench.optimizers._info import (
    Parameter,
    decay,
    learning_rate,
    non_negative,
    open_unit,
    positive,
)

ADAM = {"b1": decay(0.9), "b2": decay(0.999), "eps": positive(1e-8)}
# One decay for every optimizer with decoupled decay: STAM's published default, which is also
# torch's for AdamW.
DECAY = {"weight_decay": non_negative(0.01)}
STAM = {
    "b1_base": open_unit(0.9),
    "b2": open_unit(0.999),
    "eps": positive(1e-8),
    **DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "tau_decay": open_unit(0.99),
    "fallback_threshold": positive(100.0),
    "statistics": Parameter("published", choices=("published", "corrected")),
    # Entries of a tensor that its statistics look at; all of them unless given.
    "stat_sample": Parameter(4096, 1, optional=True),
}
STAM_LITE = {
    "b1_base": open_unit(0.9),
    "eps": positive(1e-8),
    **DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "moment_decay": open_unit(0.99),
    "beta1_update_interval": Parameter(5, 1),
    "stat_sample": Parameter(4096, 1, optional=True),
}
SIGN_STATE_DTYPE = Parameter(None, choices=(None, "float32", "bfloat16", "int8", "int4"))
# Those of STAC that both have; where the AdamW section begins is said in each framework's own way.
STAC = {
    "sign_momentum": decay(0.9),
    **ADAM,
    **DECAY,
    "sign_state_dtype": SIGN_STATE_DTYPE,
    "adamw_state_dtype": Parameter(
        None, choices=(None, "float32", "bfloat16", "int8"), optional=True
    ),
}


def rated(rate: float, *groups: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Join hyperparameters, the learning rate first; later groups override earlier ones."""
    joined = {"learning_rate": learning_rate(rate)}
    for group in groups:
        joined |= group
    return joined
