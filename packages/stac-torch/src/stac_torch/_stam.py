"""STAM: AdamW whose first-moment decay follows the variance of the residual."""

from typing import Any, Literal

import stam_core
import torch
from torch import Tensor

from stac_torch._nonfinite import Policy
from stac_torch._rule import RuleOptimizer


class STAM(RuleOptimizer, rule=stam_core.STAM, betas=("b1_base", "b2")):
    r"""AdamW whose first-moment decay follows the variance of the residual.

    Per tensor, with gradient g, first moment m, second moment v, parameter p, step t = 1, 2, ...:

        r     = g - m
        s2    = b2*s2  + (1-b2)*mean(|r|^2)
        tau   = td*tau + (1-td)*mean(|r|)
        z     = min(s2, threshold*(tau^2+veps)) / (tau^2+veps)
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)
        m     = beta1*m + (1-beta1)*g
        v     = b2*v + (1-b2)*|g|^2
        P     = P*beta1
        p    <- p*(1 - lr*wd) - lr*(m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps)

    ``adapt_strength=0`` is AdamW. For dense noise z is at least 1 and beta1 settles near 0.79
    whatever the data, so the control to compare with is AdamW with betas[0] tuned.

    The state of a parameter has ``step``, ``exp_avg`` (m) and ``exp_avg_sq`` (v), and as 0-d
    tensors ``s2``, ``tau``, ``b1_prod`` (P), ``beta1`` and ``s`` (z/(1+z)).

    Args:
        params: A model; or its ``parameters()`` or ``named_parameters()``; or groups of them.
        lr: Learning rate, >= 0, a number or a 1-element tensor.
        betas: b1, the largest decay of the first moment, and b2, that of the second one and of s2;
            each in (0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled weight decay wd, >= 0.
        adapt_strength: a, how far beta1 may fall below b1, in [0, 0.5].
        tau_decay: td, in (0, 1).
        fallback_threshold: Cap on z, > 0.
        variance_eps: veps, >= 1e-30.
        statistics: ``"published"`` as above, or ``"corrected"``: bias-corrected and scale-free.
        stat_sample: Take the means over a fixed strided sample of at most this many entries of a
            tensor; None for all. Refused for parameters of which each rank holds a part.
        eps_root: er, added under the root, >= 0.
        parity: None, or ``"stam-optimizer-0.1.0"`` to reproduce the published package.
        exclude_bias_and_norm_from_weight_decay: No decay for tensors of fewer than two dimensions,
            in groups of their own.
        maximize: Ascend.
        exp_avg_dtype: Storage of the first moment: None for the parameter's dtype, or a floating
            dtype or its name; of a complex parameter that of its parts.
        exp_avg_sq_dtype: Storage of the second one; None for at least float32.
        nonfinite: What a gradient with nan or infinity does: ``"skip"`` leaves out the whole step,
            ``"raise"`` raises, ``"propagate"`` looks at nothing.
        error_if_nonfinite: The same as ``nonfinite="raise"``.
        max_consecutive_nonfinite: Raise after so many skipped steps in a row; None for never.
        nonfinite_group: A process group whose ranks decide together about bad gradients, for
            wrappers that give each rank parameters of its own without DTensor.
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
        >>> optimizer = STAM([w], lr=0.1)
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     w.square().sum().backward()
        ...     optimizer.step()
        ...     print(f"{w.detach().square().sum().item():.4f}")
        4.4106
        3.8655
        3.3657

    References:
        The project page of stam-optimizer 0.1.0, "Core Update Rules"; the equations' numbers and
        the differences from that package stand in ``stam_core._stam``.
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.01,
        *,
        adapt_strength: float = 0.2,
        tau_decay: float = 0.99,
        fallback_threshold: float = 100.0,
        variance_eps: float = 1e-8,
        statistics: Literal["published", "corrected"] = "published",
        stat_sample: int | None = None,
        eps_root: float = 0.0,
        parity: str | None = None,
        exclude_bias_and_norm_from_weight_decay: bool = False,
        maximize: bool = False,
        exp_avg_dtype: torch.dtype | str | None = None,
        exp_avg_sq_dtype: torch.dtype | str | None = None,
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
