"""The PyTorch optimizers: declarations only; the factories are imported when first used."""

from optim_bench.optimizers._info import (
    OptimizerInfo,
    Parameter,
    decay,
    learning_rate,
    non_negative,
    positive,
)

_FACTORIES = "optim_bench.optimizers._torch_factories"
_STAC_FACTORIES = "optim_bench.optimizers._torch_stac"


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
        framework="torch",
        title=title,
        family=family,
        factory=factory or f"{_FACTORIES}:{name}",
        parameters=parameters,
        schedule=schedule,
        requires=requires,
    )


_ADAM = {"b1": decay(0.9), "b2": decay(0.999), "eps": positive(1e-8)}
_DECAY = {"weight_decay": non_negative(0.01)}
_STAC = {
    "learning_rate": learning_rate(1e-3),
    "last_n_layers": Parameter(1, 1),
    "sign_momentum": decay(0.9),
    **_ADAM,
    **_DECAY,
}

ENTRIES = (
    _entry("stac", "STAC, last layer on AdamW", "ours", _STAC, factory=f"{_STAC_FACTORIES}:stac"),
    _entry("adamw", "AdamW", "baseline", {"learning_rate": learning_rate(1e-3), **_ADAM, **_DECAY}),
    _entry(
        "sgd",
        "SGD with momentum",
        "baseline",
        {"learning_rate": learning_rate(0.1), "momentum": decay(0.9)},
    ),
)
