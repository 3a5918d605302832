# pyright: strict
"""Which state of a torch optimizer is which state of an optax transformation.

One row per pair. Both frameworks count a step after taking it and start their moments at zero, so
the numbers are equal as they are; only the names differ. An optimizer that exists in both is added
by one row.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# torch keeps its step as float32, which counts exactly up to here.
MAX_STEP = 1 << 24


@dataclass(frozen=True, slots=True)
class Row:
    """A pair of states.

    Attributes:
        node: Class name of the optax state.
        torch: Class names of the torch optimizers that keep the same state.
        slots: Torch slot by optax field, for the fields that are trees of the parameters.
        count: The optax field that counts steps, if it has one.
        step: Whether the torch side needs a ``step`` of its own.
    """

    node: str
    torch: frozenset[str]
    slots: Mapping[str, str]
    count: str | None
    step: bool


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
    Row("TraceState", frozenset({"SGD"}), {"trace": "momentum_buffer"}, None, False),
)
BY_NODE = {row.node: row for row in ROWS}
# Holds nothing but a count of steps, which torch keeps in its scheduler.
SCHEDULE = "ScaleByScheduleState"


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
