"""STAMLite: adaptive momentum from two scalar moments of the gradient, without a second moment."""

from typing import Any

import stam_core
import torch
from torch import Tensor

from stac_torch._nonfinite import Policy
from stac_torch._rule import RuleOptimizer


class STAMLite(RuleOptimizer, rule=stam_core.STAM_LITE, betas=("b1_base", "moment_decay")):
    r"""Adaptive momentum from two scalar moments of the gradient, without a second moment.

    Per tensor, with gradient g, first moment m, parameter p and step t = 1, 2, ...:

        e1    = md*e1 + (1-md)*mean(g),   e2 = md*e2 + (1-md)*mean(|g|^2),   c = 1 - md^t
        var   = max(e2/c - |e1/c|^2, 0),  z = var/(e2/c + eps)
        every k steps (t = 1, k+1, ...):
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)
        m     = beta1*m + (1-beta1)*g,    P = P*beta1
        p    <- p*(1 - lr*wd) - lr*(m/(1-P)) / (sqrt(e2/c + er) + eps)

    The denominator is one number per tensor, as in NovoGrad and Adam-mini, which are its peers; it
    is not a cheaper AdamW. The state is one buffer per parameter.

    The state of a parameter has ``step`` and ``exp_avg`` (m), and as 0-d tensors ``e1``, ``e2``,
    ``beta1``, ``b1_prod`` (P) and ``s`` (z/(1+z)).

    Args:
        params: A model; or its ``parameters()`` or ``named_parameters()``; or groups of them.
        lr: Learning rate, >= 0, a number or a 1-element tensor.
        betas: b1, the largest decay of the first moment, and md, that of e1 and e2; each in (0, 1).
        eps: Added to the denominators, >= 1e-30.
        weight_decay: Decoupled weight decay wd, >= 0.
        adapt_strength: a, how far beta1 may fall below b1, in [0, 0.5].
        beta1_update_interval: k, steps between two updates of beta1, >= 1.
        stat_sample: As :class:`STAM`'s, like the following ones.
        eps_root: er, added under the root, >= 0.
        parity: None, or ``"stam-optimizer-0.1.0"`` to reproduce the published package.
        exclude_bias_and_norm_from_weight_decay: No decay for tensors of fewer than two dimensions,
            in groups of their own.
        maximize: Ascend.
        exp_avg_dtype: Storage of m: a floating dtype or its name, or None for the parameter's
            dtype; of a complex parameter that of its parts.
        nonfinite: ``"skip"``, ``"raise"`` or ``"propagate"``.
        error_if_nonfinite: The same as ``nonfinite="raise"``.
        max_consecutive_nonfinite: Raise after so many skipped steps in a row; None for never.
        nonfinite_group: A process group whose ranks decide together about bad gradients.
        max_grad_norm: Clip the gradients to this total norm as ``clip_grad_norm_`` does, > 0; by a
            factor inside the update, so that no gradient is rewritten. ``grad_norm`` is the norm
            before. It is the check of ``nonfinite`` as well. None for no clipping, infinity to
            measure alone.
        write_clipped: Rewrite the gradients, for those who read them after the step.
        stochastic_rounding: Round bfloat16 parameters stochastically.
        rounding_seed: Its seed.
        foreach: False for one operation after the other on each tensor; None and True take many
            small tensors as one, and write in place. The values are the same.
        capturable: Keep every decision on the device, for CUDA graphs.

    Raises:
        ValueError: A value is out of range, or two exclude each other.
        TypeError: A value has the wrong type.

    Example:
        >>> w = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
        >>> optimizer = STAMLite([w], lr=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        ...     print(f"{w.detach().square().sum().item():.4f}")
        4.4
        3.8
        3.3

    References:
        The project page of stam-optimizer 0.1.0, "STAMLite Approximation"; the equations' numbers
        and the differences from that package stand in ``stam_core._stam_lite``.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        adapt_strength: float = 0.2,
        beta1_update_interval: int = 5,
        stat_sample: int | None = None,
        eps_root: float = 0.0,
        parity: str | None = None,
        exclude_bias_and_norm_from_weight_decay: bool = False,
        maximize: bool = False,
        exp_avg_dtype: torch.dtype | str | None = "float32",
        nonfinite: Policy = "skip",
        error_if_nonfinite: bool = False,
        max_consecutive_nonfinite: int | None = 100,
        nonfinite_group: Any = None,
        max_grad_norm: float | None = None,
        write_clipped: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        foreach: bool | None = None,
        capturable: bool = False,
    ) -> None:
        super().__init__(params, locals())
