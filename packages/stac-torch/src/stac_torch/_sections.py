"""One step of one parameter group: its tensors made local and real, its options resolved."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from typing import Any, NamedTuple

from stam_core.noise import noise_key
from torch import Tensor

from stac_torch._adamw import AdamWTensors, adamw_step_
from stac_torch._fused import sign_fused_
from stac_torch._hosts import distributed, refuse_flat
from stac_torch._local import is_dtensor, local, local_grad, local_reals
from stac_torch._report import Tally
from stac_torch._rounding import Noise
from stac_torch._sign import SignOptions, SignTensors, can_foreach, sign_foreach_, sign_step_
from stac_torch._state import complete_state, new_state, rounds_stochastically

Names = Callable[[], Sequence[str]]

_FOREACH_DEVICES = frozenset({"cuda", "xpu"})


class GroupLists(NamedTuple):
    """What of a group has a gradient, one entry per parameter; lists that do not apply stay empty.

    Attributes:
        params: Parameters.
        grads: Gradients.
        exp_avgs: First moments, None for a parameter of the sign section that has none.
        exp_avg_sqs: Second moments of the AdamW section.
        max_exp_avg_sqs: Their running maxima, with amsgrad.
        scales: Scales of int8 moments, None for floating ones.
        steps: Counters; one for every parameter of the AdamW section, and in the sign section one
            for every parameter that is rounded stochastically.
        positions: Positions in the group.
    """

    params: list[Tensor]
    grads: list[Tensor]
    exp_avgs: list[Tensor | None]
    exp_avg_sqs: list[Tensor]
    max_exp_avg_sqs: list[Tensor]
    scales: list[Tensor | None]
    steps: list[Tensor]
    positions: list[int]


class Flags(NamedTuple):
    """What holds for the whole step.

    Attributes:
        skip: None, or a 0-d boolean tensor: where true the step leaves everything as it is.
        grad_scale: None, or the 0-d factor that a gradient scaler left in the gradients.
        propagate_nan: Whether gradients that are not finite may arrive.
        tally: None, or where to count what the sign section does.
    """

    skip: Tensor | None
    grad_scale: Tensor | None
    propagate_nan: bool
    tally: Tally | None


def fill_lists(
    group: Mapping[str, Any], states: MutableMapping[Tensor, Any], lists: GroupLists
) -> None:
    """Fill the lists with what has a gradient, and create the states that are missing."""
    if distributed():
        # They may have been wrapped since.
        refuse_flat(group["params"])
    for position, parameter in enumerate(group["params"]):
        if parameter.grad is None:
            continue
        state = states.get(parameter, {})
        if not state:
            state = new_state(group, parameter)
            # An empty entry would tell checkpointers that this parameter has a state.
            if state:
                states[parameter] = state
        else:
            complete_state(group, parameter, state)
        lists.params.append(parameter)
        lists.grads.append(parameter.grad)
        lists.positions.append(position)
        lists.scales.append(state.get("exp_avg_scale"))
        lists.exp_avgs.append(state.get("exp_avg"))
        if rounds_stochastically(group, parameter) or group["role"] == "adamw":
            lists.steps.append(state["step"])
        if group["role"] == "adamw":
            lists.exp_avg_sqs.append(state["exp_avg_sq"])
            if group["amsgrad"]:
                lists.max_exp_avg_sqs.append(state["max_exp_avg_sq"])


def sign_section_(group: Mapping[str, Any], lists: GroupLists, names: Names, flags: Flags) -> None:
    """Take one step of a sign group.

    Args:
        group: The group.
        lists: Its tensors.
        names: Returns the names of all its parameters, which key the noise of stochastic rounding.
        flags: What holds for the whole step.
    """
    for step in lists.steps:
        step.add_(1 if flags.skip is None else flags.skip.logical_not())
    grads = lists.grads
    if any(is_dtensor(g) or g.is_complex() for g in grads):
        grads = [local_grad(p, g) for p, g in zip(lists.params, grads, strict=True)]
    params, grads = local_reals(lists.params), local_reals(grads)
    scales = [None if s is None else local(s) for s in lists.scales]
    noises = _noises(group, lists, names)
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
        tally=flags.tally,
    )
    held = [m for m in lists.exp_avgs if m is not None]
    moments = local_reals(held)
    if len(held) in (0, len(params)):
        _sign_update_(group, SignTensors(params, grads, moments, scales, noises), options)
        return
    # After momentum was lowered to 0, the states made before and since: the former still follow.
    entries = zip(params, grads, scales, noises, lists.exp_avgs, strict=True)
    with_moment, without = SignTensors(exp_avgs=moments), SignTensors()
    for p, g, scale, noise, moment in entries:
        part = without if moment is None else with_moment
        part.extend(SignTensors([p], [g], [], [scale], [noise]))
    for part in (with_moment, without):
        _sign_update_(group, part, options)


def _sign_update_(group: Mapping[str, Any], tensors: SignTensors, options: SignOptions) -> None:
    """Take the step in the form that the group asks for."""
    if group["fused"]:
        sign_fused_(tensors, options)
        return
    foreach = group["foreach"]
    if foreach is None:
        foreach = all(p.device.type in _FOREACH_DEVICES for p in tensors.params)
    if foreach and options.tally is None and can_foreach(tensors):
        sign_foreach_(tensors, options)
    else:
        sign_step_(tensors, options)


def adamw_section_(group: Mapping[str, Any], lists: GroupLists, names: Names, flags: Flags) -> None:
    """Take one step of an AdamW group; the arguments are those of :func:`sign_section_`."""
    tensors = AdamWTensors(
        [local(p) for p in lists.params],
        [local_grad(p, g) for p, g in zip(lists.params, lists.grads, strict=True)],
        [local(m) for m in lists.exp_avgs],
        [local(v) for v in lists.exp_avg_sqs],
        [local(v) for v in lists.max_exp_avg_sqs],
        lists.steps,
        _noises(group, lists, names),
    )
    beta1, beta2 = group["betas"]
    adamw_step_(
        tensors,
        skip=flags.skip,
        grad_scale=flags.grad_scale,
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


def _noises(group: Mapping[str, Any], lists: GroupLists, names: Names) -> list[Noise | None]:
    if not group["stochastic_rounding"]:
        return [None] * len(lists.params)
    keys = names()
    steps = iter(lists.steps)
    noises: list[Noise | None] = []
    for parameter, position in zip(lists.params, lists.positions, strict=True):
        rounded = rounds_stochastically(group, parameter)
        step = next(steps) if rounded or group["role"] == "adamw" else None
        if rounded and step is not None:
            noises.append(Noise(noise_key(group["rounding_seed"], keys[position]), step))
        else:
            noises.append(None)
    return noises
