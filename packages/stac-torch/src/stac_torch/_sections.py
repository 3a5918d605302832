"""The two sections of STAC: the sign update, and torch's AdamW.

Keys of state, as in ``torch.optim``: the sign section has ``exp_avg`` (with ``exp_avg_scale`` if it
is a code, nothing without momentum), the AdamW section ``step``, ``exp_avg``, ``exp_avg_sq`` and,
with amsgrad, ``max_exp_avg_sq``, each with its ``_scale`` if it is a code. Stochastic rounding, of
the parameter or of 4-bit codes, adds ``step`` to the sign section.
"""

from collections.abc import Mapping, MutableMapping
from typing import Any

import torch
from torch import Tensor

from stac_torch._adamw import adamw_step_
from stac_torch._codes import SQUARES, new_moment
from stac_torch._dtypes import INT4, INT8, check_state_dtype
from stac_torch._forms import FOREACH, FUSED, adamw_form, sign_form
from stac_torch._fused import sign_fused_
from stac_torch._records import Flags, Slot
from stac_torch._report import Form
from stac_torch._sign import SignOptions, sign_foreach_, sign_step_
from stac_torch._state import draws_noise, new_step, rounds_stochastically


class SignSection:
    """The sign update."""

    title = "the sign section"
    keys = frozenset({"exp_avg", "exp_avg_scale", "step"})
    numbers = frozenset({"step"})
    reals = frozenset({"exp_avg_scale"})

    def check(self, group: Mapping[str, Any], parameter: Tensor) -> None:
        """Raise ValueError if a parameter cannot have the moment that its group asks for."""
        check_state_dtype(group, "sign_state_dtype", parameter, unfused=INT4)

    def new_state(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step; empty if it needs none."""
        # Once more: when the group was checked, this parameter may have been frozen.
        self.check(group, parameter)
        state: dict[str, Tensor] = {}
        self.complete_state(group, parameter, state)
        return state

    def complete_state(
        self, group: Mapping[str, Any], parameter: Tensor, state: MutableMapping[str, Tensor]
    ) -> None:
        """Give a state the counter and the moment that the group's options ask for."""
        if group["sign_momentum"] != 0 and "exp_avg" not in state:
            state.update(new_moment("exp_avg", group["sign_state_dtype"], parameter))
        noisy = rounds_stochastically(group, parameter) or draws_noise(state)
        if noisy and "step" not in state:
            # First, as in the other section, also where rounding was switched on late.
            moments = dict(state)
            state.clear()
            state.update({"step": new_step(group, parameter), **moments})

    def required(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> set[str]:
        """Return the keys that a saved state must have."""
        # Stochastic rounding without momentum leaves a counter alone, and momentum may have been
        # raised from 0 between the last step and the save.
        counter_alone = group["stochastic_rounding"] and set(state) == {"step"}
        moment = group["sign_momentum"] != 0 and not counter_alone
        exp_avg = state.get("exp_avg")
        packed = isinstance(exp_avg, Tensor) and exp_avg.dtype is torch.uint8
        return ({"exp_avg"} if moment else set[str]()) | ({"step"} if packed else set[str]())

    def form(self, group: Mapping[str, Any], slots: list[Slot], *, tallied: bool) -> Form:
        """Return the form of the steps to come."""
        own = [slot.here().as_reals() for slot in slots]
        return sign_form(group, own, tallied=tallied, planned=True)

    def step_(self, group: Mapping[str, Any], slots: list[Slot], flags: Flags) -> None:
        """Take one step in the form that the group asks for, or the fastest."""
        for slot in slots:
            if slot.noise is not None:
                slot.noise.step.add_(1 if flags.skip is None else flags.skip.logical_not())
        slots = [slot.here().as_reals() for slot in slots]
        # A 1-element tensor would broadcast against 0-d parameters and change their shape.
        lr = group["lr"].reshape(()) if isinstance(group["lr"], Tensor) else group["lr"]
        scale = group["sign_lr_scale"]
        options = SignOptions(
            lr=lr if scale == 1 else lr * scale,
            weight_decay=group["weight_decay"],
            momentum=group["sign_momentum"],
            maximize=group["maximize"],
            propagate_nan=flags.propagate_nan,
            skip=flags.skip,
            grad_scale=flags.grad_scale,
            clip=flags.clip,
            tally=flags.tally,
        )
        form = sign_form(group, slots, tallied=flags.tally is not None).name
        if form == FUSED:
            sign_fused_(slots, options)
        elif form == FOREACH:
            sign_foreach_(slots, options)
        else:
            sign_step_(slots, options)


class AdamWSection:
    """Torch's AdamW."""

    title = "the adamw section"
    keys = frozenset(
        {key + end for key in ("exp_avg", *SQUARES) for end in ("", "_scale")} | {"step"}
    )
    numbers = frozenset({"step"})
    reals = frozenset(key for key in keys if key.endswith("_scale"))

    def check(self, group: Mapping[str, Any], parameter: Tensor) -> None:
        """Raise ValueError if a parameter cannot have the moments that its group asks for."""
        check_state_dtype(group, "adamw_state_dtype", parameter, unfused=INT8)

    def new_state(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step."""
        self.check(group, parameter)
        state = {"step": new_step(group, parameter)}
        for key in sorted(self.required(group, state) - {"step"}):
            state.update(new_moment(key, group["adamw_state_dtype"], parameter))
        return state

    def complete_state(
        self, group: Mapping[str, Any], parameter: Tensor, state: MutableMapping[str, Tensor]
    ) -> None:
        """Give a state its maximum where amsgrad was switched on."""
        if group["amsgrad"] and "max_exp_avg_sq" not in state:
            for key in ("exp_avg_sq", "exp_avg_sq_scale"):
                if key in state:
                    state[f"max_{key}"] = torch.zeros_like(state[key])

    def required(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> set[str]:
        """Return the keys that a saved state must have."""
        maximum = {"max_exp_avg_sq"} if group["amsgrad"] else set[str]()
        return {"step", "exp_avg", "exp_avg_sq"} | maximum

    def form(self, group: Mapping[str, Any], slots: list[Slot], *, tallied: bool) -> Form:
        """Return the form of the steps to come."""
        del tallied
        return adamw_form(group, [slot.here() for slot in slots])

    def step_(self, group: Mapping[str, Any], slots: list[Slot], flags: Flags) -> None:
        """Take one step."""
        beta1, beta2 = group["betas"]
        adamw_step_(
            [slot.here() for slot in slots],
            skip=flags.skip,
            grad_scale=flags.grad_scale,
            clip=flags.clip,
            foreach=group["foreach"],
            fused=group["fused"],
            capturable=group["capturable"],
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )
