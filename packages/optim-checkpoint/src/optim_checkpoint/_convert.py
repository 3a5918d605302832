# pyright: strict
"""Which state of a torch optimizer is which state of an optax transformation.

One row per pair. Both frameworks count a step after taking it and start their moments at zero, so
the numbers are equal as they are; only the names differ. An optimizer that exists in both is added
by one row.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

# torch keeps its step as float32, which counts exactly up to here.
MAX_STEP = 1 << 24


@dataclass(frozen=True, slots=True)
class Row:
    """A pair of states.

    Attributes:
        node: Class name of the optax state.
        torch: Class names of the torch optimizers that keep the same state.
        slots: Torch slot by optax field, for the fields that are trees of the parameters.
        scales: The same for scales of codes: one row per row of the parameter in both, in torch of
            two dimensions and in optax of as many as the parameter has; empty there, and not in
            torch at all, where the parameter has no code.
        packed: Fields that are vectors with a number per parameter, which is a slot of that name.
        count: The optax field that counts steps, if it has one.
        step: Whether the torch side needs a ``step`` of its own.
    """

    node: str
    torch: frozenset[str]
    slots: Mapping[str, str]
    count: str | None
    step: bool
    scales: Mapping[str, str] = field(default_factory=dict[str, str])
    packed: frozenset[str] = frozenset()


ROWS = (
    Row(
        "ScaleByAdamState",
        frozenset({"Adam", "AdamW", "STAC"}),
        {"mu": "exp_avg", "nu": "exp_avg_sq"},
        "count",
        True,
    ),
    # Sign momentum. Its update does not use the count; the step of the checkpoint is put there.
    Row("ScaleByLionState", frozenset({"Lion", "STAC"}), {"mu": "exp_avg"}, "count", False),
    Row(
        "ScaleBySignMomentumState",
        frozenset({"Lion", "STAC"}),
        {"mu": "exp_avg"},
        "count",
        False,
        scales={"mu_scale": "exp_avg_scale"},
    ),
    # The maximum of moments that are not yet corrected, as torch keeps it and optax does not.
    Row(
        "ScaleByAmsgradState",
        frozenset({"STAC"}),
        {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
        "count",
        True,
    ),
    Row(
        "ScaleByCodedAdamState",
        frozenset({"STAC"}),
        {"mu": "exp_avg", "nu": "exp_avg_sq"},
        "count",
        True,
        scales={"mu_scale": "exp_avg_scale", "nu_scale": "exp_avg_sq_scale"},
    ),
    Row(
        "ScaleByCodedAmsgradState",
        frozenset({"STAC"}),
        {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"},
        "count",
        True,
        scales={
            "mu_scale": "exp_avg_scale",
            "nu_scale": "exp_avg_sq_scale",
            "nu_max_scale": "max_exp_avg_sq_scale",
        },
    ),
    Row(
        "ScaleByStamState",
        frozenset({"STAM"}),
        {"mu": "exp_avg", "nu": "exp_avg_sq"},
        "count",
        True,
        packed=frozenset({"s2", "tau", "b1_prod", "beta1", "s"}),
    ),
    Row(
        "ScaleByStamLiteState",
        frozenset({"STAMLite"}),
        {"mu": "exp_avg"},
        "count",
        True,
        packed=frozenset({"e1", "e2", "beta1", "b1_prod", "s"}),
    ),
    Row("TraceState", frozenset({"SGD"}), {"trace": "momentum_buffer"}, None, False),
)
BY_NODE = {row.node: row for row in ROWS}
# Hold nothing but a count of steps, which torch keeps in its scheduler, or per parameter.
COUNTERS = frozenset({"ScaleByScheduleState", "RoundingState"})


def row_of(node: str, torch_kind: str) -> Row | None:
    """Return the row for an optax state and a torch optimizer, if they are a pair.

    >>> row_of("ScaleByAdamState", "torch.optim.adamw.AdamW").slots["nu"]
    'exp_avg_sq'
    >>> row_of("ScaleByAdamState", "torch.optim.radam.RAdam")
    """
    row = BY_NODE.get(node)
    if row is None or torch_kind.rpartition(".")[2] not in row.torch:
        return None
    return row


def is_packed(dtype: str, shape: Sequence[int], whole: Sequence[int]) -> bool:
    """Tell whether a moment holds codes of four bits, of a parameter of a shape.

    There are two in a byte, row by row: in torch of two dimensions, and in optax of as many as the
    parameter has. Rounding them draws noise by the step, which torch then keeps for the parameter.

    >>> is_packed("U8", (16, 1, 150), (16, 10, 30)), is_packed("U8", (16, 300), (16, 300))
    (True, False)
    """
    pairs = -(-math.prod(whole[1:]) // 2)
    return dtype == "U8" and len(whole) >= 2 and math.prod(shape) == whole[0] * pairs


def is_stateless(group: Mapping[str, Any]) -> bool:
    """Tell whether a torch optimizer keeps nothing for a group: it has no momentum.

    >>> is_stateless({"momentum": 0}), is_stateless({"momentum": 0.9}), is_stateless({"lr": 0.1})
    (True, False, False)
    >>> is_stateless({"role": "adamw", "sign_momentum": 0})
    False
    """
    own = group.get("sign_momentum") if group.get("role") == "sign" else group.get("momentum")
    return own == 0


def counts_steps(group: Mapping[str, Any], row: Row) -> bool:
    """Tell whether a torch optimizer keeps a step for the parameters of a group.

    Stochastic rounding draws by it where the rule has none.
    """
    return row.step or bool(group.get("stochastic_rounding"))
