"""One table of names: the rules' own, optax's, and torch's."""

from typing import NamedTuple


class SlotName(NamedTuple):
    """How one slot of optimizer state is called.

    Attributes:
        canonical: The name in the rules and in the conformance suites (there followed by
            ``/<leaf>``).
        optax: The field of the optax state, or None where no JAX optimizer of this family has the
            slot.
        torch: The key of the torch state, or None where no torch optimizer of this family has the
            slot.
        meaning: One line.
    """

    canonical: str
    optax: str | None
    torch: str | None
    meaning: str


SLOTS: tuple[SlotName, ...] = (
    SlotName("count", "count", "step", "steps taken"),
    SlotName("mu", "mu", "exp_avg", "first moment, shape of the parameter"),
    SlotName("nu", "nu", "exp_avg_sq", "second moment, shape of the parameter"),
    SlotName("s2", "s2", None, "STAM: EMA of mean |g - mu|^2, one number per tensor"),
    SlotName("tau", "tau", None, "STAM: EMA of mean |g - mu|, one number per tensor"),
    SlotName("e1", "e1", None, "STAMLite: EMA of mean g, one number per tensor"),
    SlotName("e2", "e2", None, "STAMLite: EMA of mean |g|^2, one number per tensor"),
    SlotName("beta1", "beta1", None, "decay of the first moment in the last step"),
    SlotName("b1_prod", "b1_prod", None, "product of all beta1 so far"),
    SlotName("s", "s", None, "z/(1+z) of the last step, z the normalised variance"),
)
"""Every slot, in the order of the rules."""

SLOT_BY_NAME = {slot.canonical: slot for slot in SLOTS}
"""The same, by canonical name."""
