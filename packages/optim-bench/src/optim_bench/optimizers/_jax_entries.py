"""The JAX optimizers: declarations only; the factories are imported when first used."""

from optim_bench.optimizers._info import (
    OptimizerInfo,
    Parameter,
    decay,
    learning_rate,
    non_negative,
    open_unit,
    positive,
)

_FACTORIES = "optim_bench.optimizers._jax_factories"


def _entry(
    name: str,
    title: str,
    family: str,
    parameters: dict[str, Parameter],
    *,
    factory: str | None = None,
    schedule: str | None = None,
    requires: str | None = None,
) -> OptimizerInfo:
    return OptimizerInfo(
        name=name,
        framework="jax",
        title=title,
        family=family,
        factory=factory or f"{_FACTORIES}:{name}",
        parameters=parameters,
        schedule=schedule,
        requires=requires,
    )


_ADAM = {"b1": decay(0.9), "b2": decay(0.999), "eps": positive(1e-8)}
# One decay for every optimizer with decoupled decay: STAM's published default, which is also
# torch's for AdamW.
_DECAY = {"weight_decay": non_negative(0.01)}
_STAM = {
    "learning_rate": learning_rate(1e-3),
    "b1_base": open_unit(0.9),
    "b2": open_unit(0.999),
    "eps": positive(1e-8),
    **_DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "tau_decay": open_unit(0.99),
    "statistics": Parameter("published", choices=("published", "corrected")),
}
_STAM_LITE = {
    "learning_rate": learning_rate(1e-3),
    "b1_base": open_unit(0.9),
    "eps": positive(1e-8),
    **_DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "moment_decay": open_unit(0.99),
    "beta1_update_interval": Parameter(5, 1),
}

ENTRIES = (
    _entry("stam", "STAM, published statistics", "ours", _STAM, factory="stam_jax:stam"),
    _entry("stam_lite", "STAMLite", "ours", _STAM_LITE, factory="stam_jax:stam_lite"),
    _entry("adamw", "AdamW", "baseline", {"learning_rate": learning_rate(1e-3), **_ADAM, **_DECAY}),
    _entry(
        "sgd",
        "SGD with momentum",
        "baseline",
        {"learning_rate": learning_rate(0.1), "momentum": decay(0.9)},
    ),
)
