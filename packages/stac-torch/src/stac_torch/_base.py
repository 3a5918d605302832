"""What all optimizers here have in common: groups, names, bad gradients, state dicts, one step."""

from collections.abc import Callable, Mapping
from typing import Any, ClassVar, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from stac_torch._arguments import nonfinite_policy, skip_limit, split_names
from stac_torch._clipping import Clipping, checked_clipping, write_
from stac_torch._family import Family
from stac_torch._fused import prepare_fused, waits_for_nothing
from stac_torch._hosts import Deciders, distributed, owners, refuse_flat
from stac_torch._layers import is_trained
from stac_torch._local import local
from stac_torch._names import inherit_names, noise_keys
from stac_torch._nonfinite import NonfiniteGuard, Policy
from stac_torch._records import Flags, Slot, slots_of
from stac_torch._report import Form, Tally
from stac_torch._state import draws_noise, planned_slot, rounds_stochastically
from stac_torch._state_dict import check_keys, check_names, check_state_dict, rebuilt, saved_names


class BaseOptimizer(Optimizer):
    """An optimizer of this package, but for what it computes.

    A subclass names its :class:`Family` and has a signature.

    Args:
        params: What ``torch.optim.Optimizer`` takes.
        defaults: The options of a group.
        nonfinite: What a gradient with nan or infinity does.
        error_if_nonfinite: The same as ``nonfinite="raise"``.
        max_consecutive_nonfinite: Raise after so many skipped steps in a row; None for never.
        nonfinite_group: A process group whose ranks decide together about bad gradients.
        max_grad_norm: The largest total norm of the gradients, None for no clipping.
        write_clipped: Whether clipping rewrites the gradients.
    """

    _family: ClassVar[Family]
    # What a pickle of a release without clipping lacks.
    _clipping: Clipping | None = None

    def __init__(
        self,
        params: Any,
        defaults: dict[str, Any],
        *,
        nonfinite: Policy,
        error_if_nonfinite: bool,
        max_consecutive_nonfinite: int | None,
        nonfinite_group: Any,
        max_grad_norm: float | None,
        write_clipped: bool,
    ) -> None:
        self._clipping = checked_clipping(max_grad_norm, write_clipped)
        policy = nonfinite_policy(nonfinite, error_if_nonfinite=error_if_nonfinite)
        deciders = owners() if nonfinite_group is None else Deciders(nonfinite_group)
        self._guard = NonfiniteGuard(
            policy, skip_limit(max_consecutive_nonfinite), deciders, self._family.name
        )
        super().__init__(params, {**self._family.defaults, **defaults})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters.

        Args:
            param_group: ``params`` and whatever differs from the optimizer's options. Parameters
                may be ``(name, parameter)`` if all groups' are.

        Raises:
            ValueError: A value is out of range, or a parameter is not new.
            TypeError: A value has the wrong type.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # Raises, in torch's words.
            return
        group = with_names(param_group)
        group = self._family.check({**self.defaults, **group})
        if self._guard.policy == "raise" and group["capturable"]:
            msg = (
                "nonfinite='raise' has to read the gradients, which a captured graph cannot: use "
                "nonfinite='skip', or capturable=False"
            )
            raise ValueError(msg)
        super().add_param_group(group)

    @property
    def nonfinite_skipped_steps(self) -> int:
        """Steps left out so far because of their gradients; reading it waits for the device."""
        return self._guard.skipped

    @property
    def grad_norm(self) -> Tensor | None:
        """The total norm of the last step's gradients, before clipping; None without clipping.

        0-d, on the device of the gradients; to have it is to wait for nothing, to read it is.
        """
        return None if self._clipping is None else self._clipping.norm

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: A gradient is sparse, or not finite under ``nonfinite="raise"``, or too
                many steps in a row were left out. Nothing was changed.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_capture()
        supplied = getattr(self, "found_inf", None)
        leave_out, norm = self._guard.skip(
            self.param_groups,
            supplied,
            on_device=self._stays_on_device(),
            prepare=self._prepare,
            clips=self._clipping is not None,
        )
        skip = None if leave_out is False else leave_out
        grad_scale: Tensor | None = getattr(self, "grad_scale", None)
        factor = None
        if self._clipping is not None and norm is not None:
            factor = self._clipping.factor(norm, grad_scale)
        if skip is True:
            return loss
        if factor is not None and self._clipping is not None and self._clipping.write:
            held = [p.grad for group in self.param_groups for p in group["params"]]
            write_([local(g) for g in held if g is not None], factor, grad_scale, skip)
            factor = grad_scale = None
        flags = Flags(
            skip=skip,
            grad_scale=grad_scale,
            clip=factor,
            propagate_nan=self._guard.policy == "propagate",
            tally=self._new_tally(),
        )
        taken: list[list[Slot]] = []
        for group in self.param_groups:
            tensors: list[Tensor] = []
            layout: list[tuple[Any, ...]] = []
            self._init_group(group, tensors, layout)
            taken.append(slots_of(tensors, layout))
        for group, slots in zip(self.param_groups, taken, strict=True):
            if slots:
                self._family.section(group).step_(group, slots, flags)
        return loss

    def _init_group(
        self, group: dict[str, Any], tensors: list[Tensor], layout: list[tuple[Any, ...]]
    ) -> None:
        """Create the states that are missing, and list what has a gradient for ``slots_of``.

        ``torch.compile`` knows this name, and runs it instead of tracing it.
        """
        if distributed():
            # They may have been wrapped since.
            refuse_flat(group["params"])
        section = self._family.section(group)
        keys: list[int] | None = None
        for position, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            state = self.state.get(parameter)
            if state:
                section.complete_state(group, parameter, state)
            else:
                state = section.new_state(group, parameter)
                # An empty entry would tell checkpointers that this parameter has a state.
                if state:
                    self.state[parameter] = state
            rounded = rounds_stochastically(group, parameter)
            noisy = rounded or draws_noise(state)
            if noisy and keys is None:
                keys = noise_keys(self.param_groups, group)
            tensors += (parameter, parameter.grad, *state.values())
            layout.append((keys[position] if keys and noisy else None, rounded, *state))

    def _forms(self, *, tallied: bool = False) -> dict[Tensor, Form]:
        """Return the form of the next step of each parameter that takes part in it."""
        found: dict[Tensor, Form] = {}
        for group in self.param_groups:
            section = self._family.section(group)
            slots = [
                planned_slot(section, group, p, self.state.get(p, {}))
                for p in group["params"]
                if p.grad is not None or is_trained(p)
            ]
            form = section.form(group, slots, tallied=tallied)
            found.update({slot.param: form for slot in slots})
        return found

    def _new_tally(self) -> Tally | None:
        return None

    def _prepare(self) -> None:
        if any(group.get("fused") for group in self.param_groups):
            prepare_fused(self.param_groups, self.state)

    def _check_capture(self) -> None:
        # Torch renamed its check between 2.10 and 2.15.
        for name in ("_accelerator_graph_capture_health_check", "_cuda_graph_capture_health_check"):
            if hasattr(self, name):
                return getattr(self, name)()
        return None

    def _stays_on_device(self) -> bool:
        return (
            torch.compiler.is_compiling()
            or any(g["capturable"] for g in self.param_groups)
            or waits_for_nothing(self.param_groups)
        )

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this optimizer.

        Every state keeps the dtype it was saved in, and is copied. ``foreach``, ``fused`` and
        ``capturable`` stay what they are here: they say how this process computes, not what.

        Args:
            state_dict: What :meth:`state_dict` returned. Names in it have to be those here, and are
                taken over where there are none.

        Raises:
            ValueError: It does not fit this optimizer. Nothing was changed.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, cast("dict[str, Any]", state_dict))
            state_dict = state_dict if replaced is None else replaced
        check_keys(state_dict)
        loaded = self._translated(state_dict)
        check_state_dict(loaded, self.param_groups, self._family)
        names = saved_names(loaded)
        check_names(names, [group.get("param_names") for group in self.param_groups])
        new = rebuilt(loaded, self.param_groups, self._family)
        inherit_names(new["param_groups"], names, self.param_groups)
        self.__setstate__(new)
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def _translated(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        """Return a state dict of another format in the present one."""
        return state_dict

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "_guard": self._guard, "_clipping": self._clipping}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._family.complete(self.param_groups)


def with_names(param_group: Mapping[str, Any]) -> dict[str, Any]:
    """Return a copy of a group, its parameters in a list and their names beside them."""
    group = dict(param_group)
    params = [group["params"]] if isinstance(group["params"], Tensor) else group["params"]
    if not isinstance(params, set):
        params, names = split_names(list(params))
        if names is not None:
            group["param_names"] = list(names)
    group["params"] = params
    return group
