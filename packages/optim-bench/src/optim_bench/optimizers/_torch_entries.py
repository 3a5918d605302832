"""The PyTorch optimizers: declarations only; the factories are imported when first used."""

from collections.abc import Mapping

from optim_bench.optimizers._info import (
    OptimizerInfo,
    Parameter,
    decay,
    learning_rate,
    non_negative,
    positive,
)

_FACTORIES = "optim_bench.optimizers._torch_factories"
_SIGN_FACTORIES = "optim_bench.optimizers._torch_sign"
_STAC_FACTORIES = "optim_bench.optimizers._torch_stac"
_THIRD_PARTY = "optim_bench.optimizers._torch_third_party"


def _entry(
    name: str,
    title: str,
    family: str,
    parameters: dict[str, Parameter],
    factory: str | None = None,
    *,
    requires: str | None = None,
) -> OptimizerInfo:
    return OptimizerInfo(
        name=name,
        framework="torch",
        title=title,
        family=family,
        factory=factory or f"{_FACTORIES}:{name}",
        parameters=parameters,
        requires=requires,
    )


_ADAM = {"b1": decay(0.9), "b2": decay(0.999), "eps": positive(1e-8)}
_DECAY = {"weight_decay": non_negative(0.01)}
_STATE_DTYPES = (None, "float32", "bfloat16", "int8")
_STAC = {
    "last_n_layers": Parameter(1, 1),
    "sign_momentum": decay(0.9),
    **_ADAM,
    **_DECAY,
    "norms_on_adamw": Parameter(False, choices=(False, True)),
    "sign_state_dtype": Parameter(None, choices=_STATE_DTYPES),
    "fused": Parameter(None, choices=(None, False, True), optional=True),
    "nonfinite": Parameter("skip", choices=("skip", "raise", "propagate"), optional=True),
}
_WIDE = {name: value for name, value in _STAC.items() if name != "last_n_layers"}


def _rated(rate: float, *groups: Mapping[str, Parameter]) -> dict[str, Parameter]:
    """Join hyperparameters, the learning rate first; later groups override earlier ones."""
    joined = {"learning_rate": learning_rate(rate)}
    for group in groups:
        joined |= group
    return joined


ENTRIES = (
    _entry(
        "stac", "STAC, last layer on AdamW", "ours", _rated(1e-3, _STAC), f"{_STAC_FACTORIES}:stac"
    ),
    _entry(
        "stac_wide",
        "STAC, last half of the layers on AdamW",
        "ours",
        _rated(1e-3, {"last_n_ratio": Parameter(0.5, 0.0, 1.0, low_open=True)}, _WIDE),
        f"{_STAC_FACTORIES}:stac",
    ),
    _entry(
        "stac_plain",
        "STAC, plain sign without momentum",
        "ours",
        _rated(1e-3, _STAC, {"sign_momentum": decay(0.0)}),
        f"{_STAC_FACTORIES}:stac",
    ),
    _entry(
        "stac_int8",
        "STAC, momentum in 8 bits",
        "ours",
        _rated(1e-3, _STAC, {"sign_state_dtype": Parameter("int8", choices=_STATE_DTYPES)}),
        f"{_STAC_FACTORIES}:stac",
    ),
    _entry(
        "stac_no_decay",
        "STAC, weight decay 0 as by its authors' default",
        "ablation",
        _rated(1e-3, _STAC, {"weight_decay": non_negative(0.0)}),
        f"{_STAC_FACTORIES}:stac",
    ),
    _entry("adamw", "AdamW", "baseline", _rated(1e-3, _ADAM, _DECAY)),
    _entry("sgd", "SGD with momentum", "baseline", _rated(0.1, {"momentum": decay(0.9)})),
    _entry(
        "lion",
        "Lion",
        "baseline",
        _rated(3e-4, {"b1": decay(0.9), "b2": decay(0.99)}, _DECAY),
        f"{_SIGN_FACTORIES}:lion",
    ),
    _entry(
        "signum",
        "Signum, the sign of a momentum",
        "baseline",
        _rated(3e-4, {"momentum": decay(0.9)}, _DECAY),
        f"{_SIGN_FACTORIES}:signum",
    ),
    _entry(
        "muon",
        "Muon on hidden matrices, AdamW elsewhere",
        "baseline",
        _rated(3e-3, {"momentum": decay(0.95)}, _ADAM, _DECAY),
    ),
    _entry(
        "adafactor",
        "Adafactor",
        "baseline",
        _rated(1e-2, {"beta2_decay": Parameter(-0.8, None, 0.0)}, _DECAY),
    ),
)

# Entered where their distributions are installed.
OPTIONAL = (
    _entry(
        "stac_published",
        "STAC as published by its authors",
        "third-party",
        _rated(1e-3, _ADAM, {"weight_decay": non_negative(0.0)}),
        f"{_THIRD_PARTY}:stac_published",
        requires="stac-optimizer",
    ),
    _entry(
        "adamw_8bit",
        "AdamW with state in 8 bits, from torchao",
        "third-party",
        _rated(1e-3, _ADAM, _DECAY),
        f"{_THIRD_PARTY}:adamw_8bit",
        requires="torchao",
    ),
)
