"""One minus a power, which every bias correction divides by."""

import math

from stam_core._typing import Array, Namespace, Scalar


def one_minus_power(decay: Scalar, t: Array, *, xp: Namespace) -> Array:
    """Return 1 - decay^t without cancellation.

    ``1 - decay**t`` loses 10 of float32's 24 bits for 0.999 at t = 1. An average is divided by
    this and began with an exact ``1 - decay``, so the error would be that of the update.

    Args:
        decay: A decay: a number in [0, 1), or an array in (0, 1).
        t: Step being taken, from 1: a floating array, or a number.
        xp: The array namespace.

    Returns:
        An array like ``t``; a number, computed in float64, where both are numbers.

    Example:
        >>> import numpy as np
        >>> float(one_minus_power(0.999, np.asarray(2.0), xp=np)), one_minus_power(0.999, 2, xp=np)
        (0.001999, 0.001999)
        >>> one_minus_power(0.0, 1, xp=np)
        1.0
    """
    number = isinstance(decay, int | float)
    if number and decay == 0:
        return 1.0
    log = math.log(decay) if number else xp.log(decay)
    if number and isinstance(t, int | float):
        return -math.expm1(t * log)
    return -xp.expm1(t * log)
