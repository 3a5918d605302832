"""The JAX optimizers: declarations only; the factories are imported when first used."""

from dataclasses import replace

from optim_bench.optimizers._hyperparameters import (
    ADAM,
    DECAY,
    SIGN_STATE_DTYPE,
    STAC,
    STAM,
    STAM_LITE,
    rated,
)
from optim_bench.optimizers._info import OptimizerInfo, Parameter, decay, open_unit, positive

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


_NO_ADAPTATION = {"adapt_strength": Parameter(0.0, 0.0, 0.0)}


ENTRIES = (
    _entry("stam", "STAM, published statistics", "ours", rated(1e-3, STAM), "stam_jax:stam"),
    _entry(
        "stam_corrected",
        "STAM, corrected statistics",
        "ours",
        rated(
            1e-3,
            STAM,
            {"statistics": Parameter("corrected", choices=("published", "corrected"))},
        ),
        "stam_jax:stam",
    ),
    _entry("stam_lite", "STAMLite", "ours", rated(1e-3, STAM_LITE), "stam_jax:stam_lite"),
    _entry(
        "stac",
        "STAC, output layer on AdamW",
        "ours",
        rated(1e-3, STAC),
        f"{_FACTORIES}:stac",
    ),
    _entry(
        "stac_int8",
        "STAC, momentum in 8 bits",
        "ours",
        rated(1e-3, STAC, {"sign_state_dtype": replace(SIGN_STATE_DTYPE, default="int8")}),
        f"{_FACTORIES}:stac",
    ),
    _entry(
        "stam_fixed",
        "STAM without adaptation, beta1 0.9",
        "ablation",
        rated(1e-3, STAM, _NO_ADAPTATION),
        "stam_jax:stam",
    ),
    _entry(
        "stam_const_beta",
        "STAM with constant beta1 0.81",
        "ablation",
        rated(1e-3, STAM, _NO_ADAPTATION, {"b1_base": open_unit(0.81)}),
        "stam_jax:stam",
    ),
    _entry(
        "adamw_b1_079",
        "AdamW with b1 0.79, where STAM settles",
        "ablation",
        rated(1e-3, ADAM, DECAY, {"b1": decay(0.79)}),
        f"{_FACTORIES}:adamw",
    ),
    _entry("adamw", "AdamW", "baseline", rated(1e-3, ADAM, DECAY)),
    _entry("adam", "Adam", "baseline", rated(1e-3, ADAM)),
    _entry("nadam", "NAdam", "baseline", rated(1e-3, ADAM)),
    _entry("sgd", "SGD with momentum", "baseline", rated(0.1, {"momentum": decay(0.9)})),
    _entry(
        "rmsprop",
        "RMSProp",
        "baseline",
        rated(1e-3, {"decay": decay(0.99), "eps": positive(1e-8)}),
    ),
    _entry("adagrad", "Adagrad", "baseline", rated(1e-2, {"eps": positive(1e-7)})),
    _entry(
        "novograd",
        "NovoGrad",
        "baseline",
        rated(1e-2, {"b1": decay(0.95), "b2": decay(0.98), "eps": positive(1e-8)}, DECAY),
    ),
    _entry("lamb", "LAMB", "baseline", rated(1e-2, ADAM, {"eps": positive(1e-6)}, DECAY)),
    _entry("lion", "Lion", "baseline", rated(3e-4, {"b1": decay(0.9), "b2": decay(0.99)}, DECAY)),
    _entry(
        "muon",
        "Muon on hidden matrices, AdamW elsewhere",
        "baseline",
        rated(3e-3, {"momentum": decay(0.95)}, ADAM, DECAY),
        f"{_FACTORIES}:muon",
    ),
    _entry(
        "schedule_free_adamw",
        "Schedule-Free AdamW",
        "baseline",
        rated(2.5e-3, ADAM, DECAY, {"warmup_steps": Parameter(50, 1)}),
        schedule="constant",
        evaluation=f"{_FACTORIES}:schedule_free_parameters",
    ),
)
