"""STAC as a ``torch.optim.Optimizer``."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from typing import Any, cast

import torch
from stam_core import STACRole
from torch import Tensor, nn
from torch.optim import Optimizer

from stac_torch._adamw import AdamWTensors, adamw_step_
from stac_torch._groups import find_partition, groups_of
from stac_torch._local import local, local_grad
from stac_torch._nonfinite import POLICIES, Policy, SkipCounter, found_nonfinite
from stac_torch._options import GROUP_DEFAULTS, check_hyperparameters, checked_group, complete
from stac_torch._partition import (
    LayerGroup,
    ModuleSelector,
    SharedOwner,
    STACPartition,
    clean_name,
    layer_name,
)
from stac_torch._rounding import Noise, noise_key
from stac_torch._sign import SignOptions, SignTensors, can_foreach, sign_foreach_, sign_step_
from stac_torch._state import new_state, rounds_stochastically
from stac_torch._state_dict import check_names, normalized, placed, saved_names

_FOREACH_DEVICES = frozenset({"cuda", "xpu"})


class STAC(Optimizer):
    r"""Sign updates on the early layers, AdamW on the last ones.

    Per entry, with gradient g, first moment m and parameter p, the sign section computes

        m <- sm*m + (1-sm)*g;     p <- p*(1 - lr_s*wd_s) - lr_s*sign(m),     lr_s = sign_lr_scale*lr

    and keeps m alone; the AdamW section is ``torch.optim.AdamW``. m is computed in float32 at least
    and rounded to its storage after its sign was taken.

    Args:
        params: A model; or its ``named_parameters()``, whose names then tell the layers; or groups
            with a ``role`` each (see :func:`param_groups`); or bare parameters, with ``role=``.
        lr: Learning rate, >= 0, a number or a 1-element tensor. ``group["lr"]`` is this one in every
            group.
        role: ``"sign"`` or ``"adamw"`` for all parameters that do not say it themselves.
        last_n_layers: See :func:`partition_trainable_layers`, as for the next five; for models and
            named parameters only.
        last_n_ratio: As there.
        adamw_modules: As there.
        sign_modules: As there.
        norms_on_adamw: As there.
        shared_owner: As there.
        sign_momentum: sm, in [0, 1); 0 is the textbook signSGD, without state.
        sign_lr_scale: lr_s over lr, >= 0; None is 0.75 for a model with both sections, else 1.0.
        sign_state_dtype: Storage of m: None for the parameter's dtype, a floating dtype, or
            ``"int8"``: 1.02 bytes per entry, for tensors of two dimensions, 4,096 entries and rows
            of 16 entries or more; float32 for the others. float16 is unsafe: small gradients never
            move it, and large ones stop at 65,504.
        betas: Decays of the AdamW section, each in [0, 1).
        eps: Added to the root of its second moment, >= 0.
        adamw_state_dtype: Storage of its moments, None or a floating dtype.
        weight_decay: Decoupled weight decay of both sections, >= 0.
        sign_weight_decay: That of the sign section; None for ``weight_decay``.
        adamw_weight_decay: That of the AdamW section; None for ``weight_decay``.
        exclude_bias_and_norm_from_weight_decay: No decay for tensors of fewer than two dimensions.
        amsgrad: Divide by the running maximum of the second moment.
        maximize: Ascend.
        nonfinite: What a gradient with nan or infinity does: ``"skip"`` leaves out the whole step,
            ``"raise"`` raises, ``"propagate"`` looks at nothing.
        error_if_nonfinite: The published name of ``nonfinite="raise"``.
        max_consecutive_nonfinite: Raise after so many skipped steps in a row; None for never.
        nonfinite_group: A process group to look for bad gradients in, for sharded wrappers without
            DTensor. It is not pickled: set it again by building the optimizer anew.
        stochastic_rounding: Round bfloat16 parameters stochastically, so that steps below half a
            unit in the last place are not lost. Equal on replicas, and repeatable.
        rounding_seed: Its seed.
        foreach: Multi-tensor form; None chooses it for plain CUDA and XPU tensors.
        capturable: Keep every decision on the device, for CUDA graphs.
        differentiable: Refused: the sign has no gradient.

    Raises:
        ValueError: A value is out of range, two exclude each other, or a role is missing.
        TypeError: A value has the wrong type.

    Example:
        >>> model = nn.Sequential(nn.Linear(4, 3, bias=False), nn.Linear(3, 1, bias=False))
        >>> optimizer = STAC(model, lr=0.1)
        >>> before = model[0].weight.detach().clone()
        >>> for _ in range(3):
        ...     optimizer.zero_grad()
        ...     (model(torch.ones(2, 4)) - 9.0).square().mean().backward()
        ...     optimizer.step()
        ...     print(f"{(model[0].weight - before).abs().max().item():.3f}")
        0.075
        0.150
        0.225
    """

    def __init__(
        self,
        params: Any,
        lr: float | Tensor = 1e-3,
        *,
        role: STACRole | None = None,
        last_n_layers: int | None = None,
        last_n_ratio: float | None = None,
        adamw_modules: Sequence[ModuleSelector] = (),
        sign_modules: Sequence[ModuleSelector] = (),
        norms_on_adamw: bool = False,
        shared_owner: SharedOwner = "first",
        sign_momentum: float = 0.9,
        sign_lr_scale: float | None = None,
        sign_state_dtype: torch.dtype | str | None = None,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        adamw_state_dtype: torch.dtype | str | None = None,
        weight_decay: float = 0.0,
        sign_weight_decay: float | None = None,
        adamw_weight_decay: float | None = None,
        exclude_bias_and_norm_from_weight_decay: bool = False,
        amsgrad: bool = False,
        maximize: bool = False,
        nonfinite: Policy = "skip",
        error_if_nonfinite: bool = False,
        max_consecutive_nonfinite: int | None = 100,
        nonfinite_group: Any = None,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        foreach: bool | None = None,
        capturable: bool = False,
        differentiable: bool = False,
    ) -> None:
        if differentiable:
            msg = "differentiable=True is refused: the sign has no gradient, use torch.optim.AdamW"
            raise ValueError(msg)
        if isinstance(lr, Tensor) and lr.numel() != 1:
            msg = "Tensor lr must be 1-element"
            raise ValueError(msg)
        self._nonfinite = _policy(nonfinite, error_if_nonfinite, capturable)
        self._nonfinite_group = nonfinite_group
        self._skips = SkipCounter(_limit(max_consecutive_nonfinite))
        for name, value in (
            ("weight_decay", weight_decay),
            ("sign_weight_decay", sign_weight_decay),
            ("adamw_weight_decay", adamw_weight_decay),
        ):
            if value is not None:
                check_hyperparameters(**{name: value})
        self._decay: dict[STACRole, float] = {
            "sign": weight_decay if sign_weight_decay is None else sign_weight_decay,
            "adamw": weight_decay if adamw_weight_decay is None else adamw_weight_decay,
        }
        self._names: list[tuple[str, ...] | None] = []
        self._layers: tuple[str, ...] = ()

        partition_options = {
            "last_n_layers": last_n_layers,
            "last_n_ratio": last_n_ratio,
            "adamw_modules": adamw_modules,
            "sign_modules": sign_modules,
            "norms_on_adamw": norms_on_adamw,
        }
        params, partitionable = _materialized(params, role)
        if partitionable:
            partition, self._layers = find_partition(
                params, shared_owner=shared_owner, **partition_options
            )
            params = groups_of(
                partition,
                decay=self._decay,
                sign_lr_scale=sign_lr_scale,
                exclude_bias_and_norm_from_weight_decay=exclude_bias_and_norm_from_weight_decay,
            )
            sign_lr_scale = params[0]["sign_lr_scale"]
        else:
            _refuse_partition_options(
                {
                    **partition_options,
                    "shared_owner": None if shared_owner == "first" else shared_owner,
                    "exclude_bias_and_norm_from_weight_decay": exclude_bias_and_norm_from_weight_decay,
                }
            )
        defaults = {
            **GROUP_DEFAULTS,
            "role": role,
            "lr": lr,
            "weight_decay": weight_decay,
            "sign_momentum": sign_momentum,
            "sign_lr_scale": 1.0 if sign_lr_scale is None else sign_lr_scale,
            "sign_state_dtype": sign_state_dtype,
            "betas": betas,
            "eps": eps,
            "amsgrad": amsgrad,
            "adamw_state_dtype": adamw_state_dtype,
            "maximize": maximize,
            "stochastic_rounding": stochastic_rounding,
            "rounding_seed": rounding_seed,
            "foreach": foreach,
            "capturable": capturable,
        }
        super().__init__(params, defaults)

    # -- Groups ------------------------------------------------------------------------------------

    @torch.compiler.disable
    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; it must have a ``role`` unless the optimizer was given one.

        Args:
            param_group: ``params`` and whatever differs from the optimizer's options. Parameters may
                be ``(name, parameter)`` if all groups' are.

        Raises:
            ValueError: The role is missing, a value is out of range, or a parameter is already there.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # Raises, in torch's words.
            return
        group = dict(param_group)
        names = None
        params = group["params"]
        if not isinstance(params, (Tensor, set)):
            params, names = _split_names(list(params))
        group["params"] = params
        if self._names and (names is None) != (self._names[0] is None):
            msg = (
                "all optimizer param groups should be with/without names. cannot add param group "
                f"{'without' if names is None else 'with'} names to the optimizer"
            )
            raise ValueError(msg)
        role = group.get("role", self.defaults["role"])
        if role in self._decay:
            group.setdefault("weight_decay", self._decay[role])
        group = checked_group({**self.defaults, **group})
        super().add_param_group(group)
        self._names.append(names)

    @property
    def partition(self) -> STACPartition:
        """The layers of each section, over the parameters that the groups hold now.

        Parameters without names form one layer per group, ``"<group 0>"`` and so on.
        """
        sections: dict[str, dict[str, list[tuple[str, Tensor]]]] = {"sign": {}, "adamw": {}}
        for index, group in enumerate(self.param_groups):
            names = self._names[index]
            for position, parameter in enumerate(group["params"]):
                if names is None:
                    layer, name = f"<group {index}>", f"<group {index}>.{position}"
                else:
                    layer, name = layer_name(names[position]), names[position]
                sections[group["role"]].setdefault(layer, []).append((name, parameter))
        order = {layer: position for position, layer in enumerate(self._layers)}

        def layers(section: dict[str, list[tuple[str, Tensor]]]) -> tuple[LayerGroup, ...]:
            ordered = sorted(section.items(), key=lambda item: order.get(item[0], len(order)))
            return tuple(
                LayerGroup(layer, *zip(*entries, strict=True)) for layer, entries in ordered
            )

        return STACPartition(layers(sections["sign"]), layers(sections["adamw"]))

    @property
    def nonfinite_skipped_steps(self) -> int:
        """Steps left out so far because of their gradients; reading it waits for the device."""
        return self._skips.total

    # -- The step ----------------------------------------------------------------------------------

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Take one step.

        Args:
            closure: Evaluates the model again and returns the loss.

        Returns:
            The closure's loss, None without one.

        Raises:
            RuntimeError: A gradient is sparse, or not finite under ``nonfinite="raise"``, or too many
                steps in a row were left out.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        self._check_capture()
        skip = self._skip_flag()
        if skip is True:
            return loss
        for index, group in enumerate(self.param_groups):
            lists: tuple[list[Any], ...] = ([], [], [], [], [], [], [], [])
            self._init_group(group, *lists)
            if lists[0]:
                take = self._sign_group if group["role"] == "sign" else self._adamw_group
                take(index, group, *lists, skip=skip)
        return loss

    def _init_group(
        self,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        scales: list[Tensor | None],
        steps: list[Tensor],
        positions: list[int],
    ) -> None:
        """Fill the lists with what has a gradient, and create the states that are missing.

        ``torch.compile`` knows this method by name: it runs it instead of tracing it.
        """
        for position, parameter in enumerate(group["params"]):
            if parameter.grad is None:
                continue
            state = self.state[parameter] if parameter in self.state else {}
            if not state:
                state = new_state(group, parameter)
                # An empty entry would tell checkpointers that this parameter has a state.
                if state:
                    self.state[parameter] = state
            params.append(parameter)
            grads.append(parameter.grad)
            positions.append(position)
            if "step" in state:
                steps.append(state["step"])
            if "exp_avg" in state:
                exp_avgs.append(state["exp_avg"])
            scales.append(state.get("exp_avg_scale"))
            if group["role"] == "adamw":
                exp_avg_sqs.append(state["exp_avg_sq"])
                if group["amsgrad"]:
                    max_exp_avg_sqs.append(state["max_exp_avg_sq"])

    def _sign_group(
        self,
        index: int,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        scales: list[Tensor | None],
        steps: list[Tensor],
        positions: list[int],
        *,
        skip: Tensor | None,
    ) -> None:
        for step in steps:
            step.add_(1 if skip is None else skip.logical_not())
        noises = self._noises(index, group, params, positions)
        tensors = SignTensors(
            [_real(local(p)) for p in params],
            [_real(local_grad(p, g)) for p, g in zip(params, grads, strict=True)],
            [_real(local(m)) for m in exp_avgs],
            [None if s is None else local(s) for s in scales],
            noises,
        )
        lr, scale = _scalar(group["lr"]), group["sign_lr_scale"]
        options = SignOptions(
            lr=lr if scale == 1 else lr * scale,
            weight_decay=group["weight_decay"],
            momentum=group["sign_momentum"],
            maximize=group["maximize"],
            propagate_nan=self._nonfinite == "propagate",
            skip=skip,
            grad_scale=getattr(self, "grad_scale", None),
        )
        foreach = group["foreach"]
        if foreach is None:
            foreach = all(p.device.type in _FOREACH_DEVICES for p in tensors.params)
        if foreach and can_foreach(tensors):
            sign_foreach_(tensors, options)
        else:
            sign_step_(tensors, options)

    def _adamw_group(
        self,
        index: int,
        group: dict[str, Any],
        params: list[Tensor],
        grads: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        max_exp_avg_sqs: list[Tensor],
        scales: list[Tensor | None],
        steps: list[Tensor],
        positions: list[int],
        *,
        skip: Tensor | None,
    ) -> None:
        tensors = AdamWTensors(
            [local(p) for p in params],
            [local_grad(p, g) for p, g in zip(params, grads, strict=True)],
            [local(m) for m in exp_avgs],
            [local(v) for v in exp_avg_sqs],
            [local(v) for v in max_exp_avg_sqs],
            steps,
            self._noises(index, group, params, positions),
        )
        beta1, beta2 = group["betas"]
        adamw_step_(
            tensors,
            skip=skip,
            grad_scale=getattr(self, "grad_scale", None),
            foreach=group["foreach"],
            fused=group["fused"],
            capturable=group["capturable"],
            differentiable=False,
            amsgrad=group["amsgrad"],
            beta1=beta1,
            beta2=beta2,
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=group["maximize"],
        )

    def _noises(
        self, index: int, group: dict[str, Any], params: list[Tensor], positions: list[int]
    ) -> list[Noise | None]:
        noises: list[Noise | None] = []
        names = self._names[index]
        for parameter, position in zip(params, positions, strict=True):
            if not rounds_stochastically(group, parameter):
                noises.append(None)
                continue
            name = f"<group {index}>.{position}" if names is None else names[position]
            key = noise_key(group["rounding_seed"], name)
            noises.append(Noise(key, self.state[parameter]["step"]))
        return noises

    def _check_capture(self) -> None:
        # Torch 2.15 renamed its check.
        name = "_accelerator_graph_capture_health_check"
        check = getattr(self, name, None) or getattr(self, "_cuda_graph_capture_health_check", None)
        if check is not None:
            check()

    def _skip_flag(self) -> Any:
        """Return True to leave this step out, None to take it, a tensor where only the device knows."""
        grads: list[Tensor] = []
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is None:
                    continue
                if parameter.grad.layout != torch.strided:
                    msg = (
                        "STAC does not support sparse gradients, got one of shape "
                        f"{tuple(parameter.shape)}: use sparse=False in its embedding, or give this "
                        "parameter to torch.optim.SparseAdam"
                    )
                    raise RuntimeError(msg)
                grads.append(parameter.grad)
        supplied = getattr(self, "found_inf", None)
        if supplied is not None:
            flag = supplied.reshape(()) > 0
        elif self._nonfinite == "propagate":
            return None
        else:
            parameters = [p for group in self.param_groups for p in group["params"]]
            local_grads = [_real(local(g)) for g in grads]
            flag = found_nonfinite(local_grads, parameters, self._nonfinite_group)
        if flag is None:
            return None
        if self._nonfinite != "raise" and self._stays_on_device():
            if supplied is None:
                self._skips.count_on_device(flag)
            return flag
        bad = bool(flag.item())
        if bad and self._nonfinite == "raise" and supplied is None:
            msg = (
                "a gradient is not finite; nothing was changed. Look at the loss of this batch, or use "
                "nonfinite='skip' to leave such steps out"
            )
            raise RuntimeError(msg)
        if supplied is None:
            self._skips.count(skipped=bad)
        return True if bad else None

    def _stays_on_device(self) -> bool:
        return torch.compiler.is_compiling() or any(
            group["capturable"] or group["fused"] for group in self.param_groups
        )

    # -- State dicts, copies -------------------------------------------------------------------------

    @torch.compiler.disable
    def state_dict(self) -> dict[str, Any]:
        """Return ``state`` and ``param_groups`` as torch does, and ``param_names`` if there are any.

        The names are a list beside the groups: within one, a flattened distributed checkpoint would
        write the whole list once per parameter.
        """
        state_dict = super().state_dict()
        if any(names is not None for names in self._names):
            state_dict["param_names"] = [list(names or ()) for names in self._names]
        return state_dict

    @torch.compiler.disable
    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Load a state dict of this optimizer, or of the published package.

        Every state keeps the dtype it was saved in. As in torch, tensors that are already on the
        right device are taken over, not copied.

        Args:
            state_dict: What :meth:`state_dict` returned; names may be missing.

        Raises:
            ValueError: It does not fit this optimizer. Nothing was changed.
        """
        state_dict = dict(state_dict)
        for hook in self._optimizer_load_state_dict_pre_hooks.values():
            replaced = hook(self, cast("dict[str, Any]", state_dict))
            state_dict = state_dict if replaced is None else replaced
        loaded = normalized(state_dict, self.param_groups)
        check_names(saved_names(loaded), self._names)
        groups: list[dict[str, Any]] = []
        state: dict[Any, Any] = {
            key: value
            for key, value in loaded["state"].items()
            if not any(key in group["params"] for group in loaded["param_groups"])
        }
        for saved, group in zip(loaded["param_groups"], self.param_groups, strict=True):
            options = deepcopy({k: v for k, v in saved.items() if k not in ("params", "param_names")})
            options.setdefault("role", group["role"])
            complete(options)
            for key, parameter in zip(saved["params"], group["params"], strict=True):
                if key in loaded["state"]:
                    state[parameter] = {
                        name: placed(name, value, parameter, options)
                        for name, value in loaded["state"][key].items()
                    }
            groups.append({"params": group["params"], **options})
        self.__setstate__({"state": defaultdict(dict, state), "param_groups": groups})
        for hook in self._optimizer_load_state_dict_post_hooks.values():
            hook(self)

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_names": self._names,
            "_layers": self._layers,
            "_decay": self._decay,
            "_nonfinite": self._nonfinite,
            "_skips": self._skips,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.__dict__.setdefault("_nonfinite_group", None)
        for group in self.param_groups:
            complete(group)


def _materialized(params: Any, role: STACRole | None) -> tuple[Any, bool]:
    """Return the first argument with iterators made lists, and whether it is to be partitioned."""
    if isinstance(params, nn.Module):
        if role is not None:
            msg = f"role={role!r} is for parameters, got a model: use last_n_layers to choose sections"
            raise ValueError(msg)
        return params, True
    if isinstance(params, (Tensor, set)):
        return params, False
    entries = list(params)
    named = bool(entries) and isinstance(entries[0], tuple) and role is None
    if named:
        _split_names(entries)
    return entries, named


def _split_names(params: list[Any]) -> tuple[list[Tensor], tuple[str, ...] | None]:
    """Take the names off parameters that are given as (name, parameter)."""
    named = [entry for entry in params if isinstance(entry, tuple)]
    if not named:
        return params, None
    if len(named) != len(params):
        msg = "all optimizer params should be with/without names. Some param names are missing"
        raise ValueError(msg)
    for _, parameter in named:
        if not isinstance(parameter, Tensor):
            msg = f"optimizer can only optimize Tensors, but one of the params is {type(parameter)}"
            raise TypeError(msg)
    return [parameter for _, parameter in named], tuple(clean_name(name) for name, _ in named)


def _refuse_partition_options(options: dict[str, Any]) -> None:
    for name, value in options.items():
        if value is not None and value is not False and value != ():
            msg = (
                f"{name}={value!r} partitions a model, got parameters that have a role: pass the model, "
                "or param_groups(model, ...)"
            )
            raise ValueError(msg)


def _policy(nonfinite: Policy, error_if_nonfinite: bool, capturable: bool) -> Policy:
    if nonfinite not in POLICIES:
        msg = f"nonfinite must be 'skip', 'raise' or 'propagate', got {nonfinite!r}"
        raise ValueError(msg)
    if error_if_nonfinite:
        if nonfinite == "propagate":
            msg = "error_if_nonfinite=True is nonfinite='raise', got nonfinite='propagate': give one"
            raise ValueError(msg)
        nonfinite = "raise"
    if nonfinite == "raise" and capturable:
        msg = (
            "nonfinite='raise' has to read the gradients, which a captured graph cannot: use "
            "nonfinite='skip', or capturable=False"
        )
        raise ValueError(msg)
    return nonfinite


def _limit(value: int | None) -> int | None:
    if value is not None and (isinstance(value, bool) or not isinstance(value, int) or value < 1):
        msg = f"max_consecutive_nonfinite must be an integer >= 1 or None, got {value!r}"
        raise ValueError(msg)
    return value


def _scalar(lr: float | Tensor) -> float | Tensor:
    """Return a learning rate that broadcasts: a 1-element tensor without its dimension."""
    return lr.reshape(()) if isinstance(lr, Tensor) else lr


def _real(tensor: Tensor) -> Tensor:
    return torch.view_as_real(tensor) if tensor.is_complex() else tensor
