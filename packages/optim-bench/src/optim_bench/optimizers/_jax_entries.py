"""The JAX optimizers: declarations only; the factories are imported when first used."""

from collections.abc import Mapping

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
    factory: str | None = None,
    *,
    schedule: str | None = None,
    evaluation: str | None = None,
) -> OptimizerInfo:
    return OptimizerInfo(
        name=name,
        framework="jax",
        title=title,
        family=family,
        factory=factory or f"{_FACTORIES}:{name}",
        parameters=parameters,
        schedule=schedule,
        evaluation=evaluation,
    )


_ADAM = {"b1": decay(0.9), "b2": decay(0.999), "eps": positive(1e-8)}
# One decay for every optimizer with decoupled decay: STAM's published default, which is also
# torch's for AdamW.
_DECAY = {"weight_decay": non_negative(0.01)}
_STAM = {
    "b1_base": open_unit(0.9),
    "b2": open_unit(0.999),
    "eps": positive(1e-8),
    **_DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "tau_decay": open_unit(0.99),
    "fallback_threshold": positive(100.0),
    "statistics": Parameter("published", choices=("published", "corrected")),
    # Entries of a tensor that its statistics look at; all of them unless given.
    "stat_sample": Parameter(4096, 1, optional=True),
}
_STAM_LITE = {
    "b1_base": open_unit(0.9),
    "eps": positive(1e-8),
    **_DECAY,
    "adapt_strength": Parameter(0.2, 0.0, 0.5),
    "moment_decay": open_unit(0.99),
    "beta1_update_interval": Parameter(5, 1),
    "stat_sample": Parameter(4096, 1, optional=True),
}
_NO_ADAPTATION = {"adapt_strength": Parameter(0.0, 0.0, 0.0)}


def _rated(rate: float, *groups: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Join hyperparameters, the learning rate first; later groups override earlier ones."""
    joined = {"learning_rate": learning_rate(rate)}
    for group in groups:
        joined |= group
    return joined


ENTRIES = (
    _entry("stam", "STAM, published statistics", "ours", _rated(1e-3, _STAM), "stam_jax:stam"),
    _entry(
        "stam_corrected",
        "STAM, corrected statistics",
        "ours",
        _rated(
            1e-3,
            _STAM,
            {"statistics": Parameter("corrected", choices=("published", "corrected"))},
        ),
        "stam_jax:stam",
    ),
    _entry("stam_lite", "STAMLite", "ours", _rated(1e-3, _STAM_LITE), "stam_jax:stam_lite"),
    _entry(
        "stam_fixed",
        "STAM without adaptation, beta1 0.9",
        "ablation",
        _rated(1e-3, _STAM, _NO_ADAPTATION),
        "stam_jax:stam",
    ),
    _entry(
        "stam_const_beta",
        "STAM with constant beta1 0.81",
        "ablation",
        _rated(1e-3, _STAM, _NO_ADAPTATION, {"b1_base": open_unit(0.81)}),
        "stam_jax:stam",
    ),
    _entry(
        "adamw_b1_079",
        "AdamW with b1 0.79, where STAM settles",
        "ablation",
        _rated(1e-3, _ADAM, _DECAY, {"b1": decay(0.79)}),
        f"{_FACTORIES}:adamw",
    ),
    _entry("adamw", "AdamW", "baseline", _rated(1e-3, _ADAM, _DECAY)),
    _entry("adam", "Adam", "baseline", _rated(1e-3, _ADAM)),
    _entry("nadam", "NAdam", "baseline", _rated(1e-3, _ADAM)),
    _entry("sgd", "SGD with momentum", "baseline", _rated(0.1, {"momentum": decay(0.9)})),
    _entry(
        "rmsprop",
        "RMSProp",
        "baseline",
        _rated(1e-3, {"decay": decay(0.99), "eps": positive(1e-8)}),
    ),
    _entry("adagrad", "Adagrad", "baseline", _rated(1e-2, {"eps": positive(1e-7)})),
    _entry(
        "novograd",
        "NovoGrad",
        "baseline",
        _rated(1e-2, {"b1": decay(0.95), "b2": decay(0.98), "eps": positive(1e-8)}, _DECAY),
    ),
    _entry("lamb", "LAMB", "baseline", _rated(1e-2, _ADAM, {"eps": positive(1e-6)}, _DECAY)),
    _entry("lion", "Lion", "baseline", _rated(3e-4, {"b1": decay(0.9), "b2": decay(0.99)}, _DECAY)),
    _entry(
        "muon",
        "Muon on hidden matrices, AdamW elsewhere",
        "baseline",
        _rated(3e-3, {"momentum": decay(0.95)}, _ADAM, _DECAY),
        "optim_bench.optimizers._jax_muon:muon",
    ),
    _entry(
        "schedule_free_adamw",
        "Schedule-Free AdamW",
        "baseline",
        _rated(2.5e-3, _ADAM, _DECAY, {"warmup_steps": Parameter(50, 1)}),
        schedule="constant",
        evaluation=f"{_FACTORIES}:schedule_free_parameters",
    ),
)
