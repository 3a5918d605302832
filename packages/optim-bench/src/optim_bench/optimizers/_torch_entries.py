"""The PyTorch optimizers: declarations only; the factories are imported when first used."""

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
from optim_bench.optimizers._info import OptimizerInfo, Parameter, decay, non_negative

_FACTORIES = "optim_bench.optimizers._torch_factories"


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


_STAC = {
    "last_n_layers": Parameter(1, 1),
    **STAC,
    "norms_on_adamw": Parameter(False, choices=(False, True)),
    "fused": Parameter(None, choices=(None, False, True), optional=True),
    "nonfinite": Parameter("skip", choices=("skip", "raise", "propagate"), optional=True),
}
_WIDE = {name: value for name, value in _STAC.items() if name != "last_n_layers"}

ENTRIES = (
    _entry("stac", "STAC, last layer on AdamW", "ours", rated(1e-3, _STAC), f"{_FACTORIES}:stac"),
    _entry(
        "stac_wide",
        "STAC, last half of the layers on AdamW",
        "ours",
        rated(1e-3, {"last_n_ratio": Parameter(0.5, 0.0, 1.0, low_open=True)}, _WIDE),
        f"{_FACTORIES}:stac",
    ),
    _entry(
        "stac_plain",
        "STAC, plain sign without momentum",
        "ours",
        rated(1e-3, _STAC, {"sign_momentum": decay(0.0)}),
        f"{_FACTORIES}:stac",
    ),
    _entry(
        "stac_int8",
        "STAC, momentum in 8 bits",
        "ours",
        rated(1e-3, _STAC, {"sign_state_dtype": replace(SIGN_STATE_DTYPE, default="int8")}),
        f"{_FACTORIES}:stac",
    ),
    _entry("stam", "STAM, published statistics", "ours", rated(1e-3, STAM)),
    _entry("stam_lite", "STAMLite", "ours", rated(1e-3, STAM_LITE)),
    _entry(
        "stac_no_decay",
        "STAC, weight decay 0 as by its authors' default",
        "ablation",
        rated(1e-3, _STAC, {"weight_decay": non_negative(0.0)}),
        f"{_FACTORIES}:stac",
    ),
    _entry("adamw", "AdamW", "baseline", rated(1e-3, ADAM, DECAY)),
    _entry("sgd", "SGD with momentum", "baseline", rated(0.1, {"momentum": decay(0.9)})),
    _entry(
        "lion",
        "Lion",
        "baseline",
        rated(3e-4, {"b1": decay(0.9), "b2": decay(0.99)}, DECAY),
        f"{_FACTORIES}:lion",
    ),
    _entry(
        "signum",
        "Signum, the sign of a momentum",
        "baseline",
        rated(3e-4, {"momentum": decay(0.9)}, DECAY),
        f"{_FACTORIES}:signum",
    ),
    _entry(
        "muon",
        "Muon on hidden matrices, AdamW elsewhere",
        "baseline",
        rated(3e-3, {"momentum": decay(0.95)}, ADAM, DECAY),
    ),
    _entry(
        "adafactor",
        "Adafactor",
        "baseline",
        rated(1e-2, {"beta2_decay": Parameter(-0.8, None, 0.0)}, DECAY),
    ),
)

# Entered where their distributions are installed.
OPTIONAL = (
    _entry(
        "stac_published",
        "STAC as published by its authors",
        "third-party",
        rated(1e-3, ADAM, {"weight_decay": non_negative(0.0)}),
        f"{_FACTORIES}:stac_published",
        requires="stac-optimizer",
    ),
    _entry(
        "adamw_8bit",
        "AdamW with state in 8 bits, from torchao",
        "third-party",
        rated(1e-3, ADAM, DECAY),
        f"{_FACTORIES}:adamw_8bit",
        requires="torchao",
    ),
)
