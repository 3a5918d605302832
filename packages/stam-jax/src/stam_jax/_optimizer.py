"""From a transformation that scales gradients to an optimizer: decay, learning rate, policy."""

from typing import Any

import optax
from stam_core import Rule

from stam_jax._decay import decayed_weights
from stam_jax._means import AxisName
from stam_jax._nonfinite import apply_policy


def descending(
    scale: optax.GradientTransformationExtraArgs,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return the steps u = -lr*(d + wd*p) along the direction d that ``scale`` returns."""
    decay = decayed_weights(weight_decay, mask)
    rate = optax.scale_by_learning_rate(learning_rate)
    return optax.chain(scale, decay, rate)  # type: ignore[return-value]


def optimizer_of(
    rule: Rule[Any],
    scale: optax.GradientTransformationExtraArgs,
    *,
    learning_rate: optax.ScalarOrSchedule,
    weight_decay: optax.ScalarOrSchedule,
    mask: Any,
    nonfinite: str,
    axis_name: AxisName | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Return the optimizer of a rule that ``scale`` is.

    Raises:
        ValueError: A number is out of the rule's range, or the policy is unknown.
        TypeError: A value is not a number.
    """
    rule.hyperparams(learning_rate=learning_rate, weight_decay=weight_decay)
    return apply_policy(nonfinite, descending(scale, learning_rate, weight_decay, mask), axis_name)
