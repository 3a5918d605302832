"""STAC: sign updates on the early layers, AdamW on the last ones."""

from collections.abc import Sequence
from typing import Any

import torch
from stam_core import STACRole
from torch import Tensor

from stac_torch._base import BaseOptimizer, with_names
from stac_torch._frozen import FrozenParameters, common_role, take_away, with_frozen
from stac_torch._groups import sections_of
from stac_torch._layers import SharedOwner
from stac_torch._legacy import from_published, is_published, refuse_adamw
from stac_torch._names import live_partition
from stac_torch._nonfinite import Policy
from stac_torch._partition import ModuleSelector, Preset, STACPartition
from stac_torch._report import Tally, int8_saturation, table
from stac_torch._stac_options import FAMILY, section_decay
from stac_torch._state import state_bytes


class STAC(BaseOptimizer):
    r"""Sign updates on the early layers, AdamW on the last ones.

    Per entry, with gradient g, first moment m and parameter p, the sign section computes

        m <- sm*m + (1-sm)*g;     p <- p*(1 - lr_s*wd_s) - lr_s*sign(m),     lr_s = sign_lr_scale*lr

    and keeps m alone; the AdamW section is ``torch.optim.AdamW``. m is computed in float32 at least
    and rounded to its storage after its sign was taken.

    Args:
        params: A model; or its ``named_parameters()``, whose names then tell the layers; or groups
            with a ``role`` each (see :func:`param_groups`); or bare parameters, with ``role=``.
        lr: Learning rate, >= 0, a number or a 1-element tensor. ``group["lr"]`` is this one in
            every group; a tensor is copied for each group that a model is divided into, so that a
            scheduler that writes into one does not write into all. Groups of yours share it, as in
            torch, unless they bring their own.
        role: ``"sign"`` or ``"adamw"`` for all parameters that do not say it themselves.
        last_n_layers: How many of the last layers take AdamW, >= 0; None is 1, and more than
            there are is all: STAC is AdamW then. For models and named parameters only, as the next
            seven; :func:`partition_trainable_layers` says more.
        last_n_ratio: The share of the layers that takes AdamW instead, in (0, 1].
        adamw_modules: Modules to be trained by AdamW wherever they stand: names, shell patterns of
            names, or module classes.
        sign_modules: Likewise for the sign update.
        norms_on_adamw: Train every normalisation layer by AdamW.
        shared_owner: The owner of a shared parameter: the ``"first"`` module that has it, or the
            ``"last"``, which trains a tied head by AdamW.
        partition: ``"last_layers"``, the published one, or ``"transformer"``: head, embeddings,
            norms, routers and scales by AdamW, the other matrices by sign.
        hold_frozen: Hold frozen parameters in their layer's section, without state until they have
            a gradient. Without them, :meth:`add_param_group` still knows their names and sections.
        sign_momentum: sm, in [0, 1); 0 is the textbook signSGD, without state.
        sign_lr_scale: lr_s over lr, >= 0; None is 0.75 for a model with both sections, else 1.0.
        sign_state_dtype: Storage of m: None for the parameter's dtype, a floating dtype, or
            ``"int8"``: 1.02 bytes per entry, for tensors of two dimensions, 4,096 entries and rows
            of 16 entries or more; float32 for the others. ``"int4"``: 0.53 bytes per entry of the
            same tensors, rounded stochastically. float16 is unsafe: small gradients never move it,
            and large ones stop at 65,504.
        betas: Decays of the AdamW section, each in [0, 1).
        eps: Added to the root of its second moment, >= 0.
        adamw_state_dtype: Storage of its moments: None for the parameter's dtype, a floating dtype,
            or ``"int8"``: 2.03 bytes per entry for both, of tensors as above, the second one
            rounded stochastically.
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
        nonfinite_group: A process group whose ranks decide together about bad gradients, for
            wrappers that give each rank parameters of its own without DTensor. That of a
            ``ZeroRedundancyOptimizer`` is found by itself. It is not pickled: set it again by
            building the optimizer anew.
        max_grad_norm: Clip the gradients to this total norm as ``clip_grad_norm_`` does, > 0; by a
            factor inside the update, so that no gradient is rewritten. ``grad_norm`` is the norm
            before. It is the check of ``nonfinite`` as well. None for no clipping, infinity to
            measure alone.
        write_clipped: Rewrite the gradients, for those who read them after the step.
        stochastic_rounding: Round bfloat16 parameters stochastically, so that steps below half a
            unit in the last place are not lost. Equal on replicas, and repeatable.
        rounding_seed: Its seed, and that of the noise by which moments in codes are rounded.
        foreach: Multi-tensor form; None chooses it for plain CUDA and XPU tensors.
        fused: One pass over memory in one kernel: on the CPU a C kernel, which the wheels for Linux
            and macOS have; on CUDA a Triton kernel. None, with ``foreach`` at None too, takes the C
            kernel for the sign section wherever it can, which :meth:`describe` tells: it has the
            bits of the loop. True is an error where no kernel can run, and takes torch's fused
            kernel for the AdamW section, which has other bits than torch's loop. False, or any
            ``foreach``, takes none.
        capturable: Keep every decision on the device, for CUDA graphs.
        track_diagnostics: Count in each step what :meth:`diagnostics` reports; costs memory and
            time, the kernel and the multi-tensor form.
        differentiable: Refused: the sign has no gradient.

    Raises:
        ValueError: A value is out of range, two exclude each other, or a role is missing.
        TypeError: A value has the wrong type.

    Warns:
        UserWarning: The AdamW section has no matrix, or the output embedding is trained by sign.

    Example:
        >>> from torch import nn
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

    _family = FAMILY

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
        partition: Preset = "last_layers",
        hold_frozen: bool = True,
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
        max_grad_norm: float | None = None,
        write_clipped: bool = False,
        stochastic_rounding: bool = False,
        rounding_seed: int = 0,
        foreach: bool | None = None,
        fused: bool | None = None,
        capturable: bool = False,
        track_diagnostics: bool = False,
        differentiable: bool = False,
    ) -> None:
        if differentiable:
            msg = "differentiable=True is refused: the sign has no gradient, use torch.optim.AdamW"
            raise ValueError(msg)
        self._decay = section_decay(weight_decay, sign_weight_decay, adamw_weight_decay)
        self._track_diagnostics = track_diagnostics
        self._tally: Tally | None = None
        params, self._layers, self._frozen, sign_lr_scale = sections_of(
            params,
            role,
            decay=self._decay,
            sign_lr_scale=sign_lr_scale,
            exclude_bias_and_norm_from_weight_decay=exclude_bias_and_norm_from_weight_decay,
            shared_owner=shared_owner,
            last_n_layers=last_n_layers,
            last_n_ratio=last_n_ratio,
            adamw_modules=adamw_modules,
            sign_modules=sign_modules,
            norms_on_adamw=norms_on_adamw,
            partition=partition,
            hold_frozen=hold_frozen,
        )
        super().__init__(
            params,
            {
                "role": role,
                "lr": lr,
                "weight_decay": weight_decay,
                "sign_momentum": sign_momentum,
                "sign_lr_scale": sign_lr_scale,
                "sign_state_dtype": sign_state_dtype,
                "betas": betas,
                "eps": eps,
                "amsgrad": amsgrad,
                "adamw_state_dtype": adamw_state_dtype,
                "maximize": maximize,
                "stochastic_rounding": stochastic_rounding,
                "rounding_seed": rounding_seed,
                "foreach": foreach,
                "fused": fused,
                "capturable": capturable,
            },
            nonfinite=nonfinite,
            error_if_nonfinite=error_if_nonfinite,
            max_consecutive_nonfinite=max_consecutive_nonfinite,
            nonfinite_group=nonfinite_group,
            max_grad_norm=max_grad_norm,
            write_clipped=write_clipped,
        )

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group of parameters; it must have a ``role`` unless the optimizer was given one.

        What a model had frozen when the optimizer was built is known: it needs neither names nor
        role, and where it is held already it moves here, if it has no state yet.

        Args:
            param_group: ``params`` and whatever differs from the optimizer's options. Parameters
                may be ``(name, parameter)`` if all groups' are.

        Raises:
            ValueError: The role is missing, a value is out of range, or a parameter is not new.
        """
        if not isinstance(param_group, dict):
            super().add_param_group(param_group)  # Raises, in torch's words.
            return
        group = with_names(param_group)
        params = group["params"]
        known = None if isinstance(params, set) else self._frozen.find(params)
        named = any("param_names" in g for g in self.param_groups)
        if known and named and "param_names" not in group:
            group["param_names"] = [name for name, _ in known]
        if group.get("role", self.defaults["role"]) is None and known:
            group["role"] = common_role(known)
        role = group.get("role", self.defaults["role"])
        if self._layers:
            # The user asked for sections, not for groups that a scheduler writes into as one.
            for key, value in self.defaults.items():
                if isinstance(value, Tensor) and key not in group:
                    group[key] = value.detach().clone()
        if role in self._decay:
            group.setdefault("weight_decay", self._decay[role])
        if self._track_diagnostics and {**self.defaults, **group}["fused"]:
            msg = "track_diagnostics=True counts in the loop, which fused=True replaces: give one"
            raise ValueError(msg)
        held = [p for p in params if not self.state.get(p)] if known else []
        before = [dict(g) for g in self.param_groups]
        take_away(self.param_groups, held)
        try:
            super().add_param_group(group)
        except BaseException:
            for own, old in zip(self.param_groups, before, strict=True):
                own.update(old)
            raise

    @property
    def partition(self) -> STACPartition:
        """The layers of each section, over the parameters that the groups hold now.

        Parameters without names form one layer per group, ``"<group 0>"`` for the first.
        """
        return live_partition(self.param_groups, self._layers)

    @property
    def _step_supports_amp_scaling(self) -> bool:
        """Tells a ``GradScaler`` to leave unscaling and skipping to a fused step, as torch's do."""
        return any(group["fused"] for group in self.param_groups)

    def describe(self) -> str:
        """Return the partition as a table: layer, role, form, parameters, bytes of state.

        ``form`` says how the next step is taken, as far as parameters, states and the gradients
        that are there tell: ``fused``, in one kernel; ``foreach``; ``loop``. Below stands why it is
        not the kernel. The bytes are those of the states that exist, and before the first step
        those that it will create.

        Example:
            >>> from torch import nn
            >>> model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 4))
            >>> print(STAC(model, sign_state_dtype="int8").describe())
            layer  role   form   parameters  state bytes
            0      sign   fused       4,160        4,608
            1      adamw  loop          260        2,088
            total                     4,420        6,696
            adamw, loop: torch's fused AdamW rounds otherwise than its loop
        """
        sizes: dict[Tensor, int] = {}
        for group in self.param_groups:
            for parameter in group["params"]:
                state = self.state.get(parameter, {})
                section = FAMILY.section(group)
                sizes[parameter] = state_bytes(section, group, parameter, state)
        return table(
            self.partition, sizes, self._forms(tallied=self._track_diagnostics), self._layers
        )

    def diagnostics(self) -> dict[str, float | int | None]:
        """Return counts of the last step and of the run; reading them waits for the device.

        Returns:
            ``skipped_steps``; ``frozen_share``, the share of the sign section's entries that the
            last step should have moved and rounding did not; ``sign_agreement``, the share of them
            whose momentum has the sign of the gradient; ``int8_saturation``, the share of 8-bit
            momentum entries at the end of the code, one in 256 at least. None where there is
            nothing to count, and for the two middle ones without ``track_diagnostics``.
        """
        frozen, agreeing = (None, None) if self._tally is None else self._tally.shares()
        return {
            "skipped_steps": self.nonfinite_skipped_steps,
            "frozen_share": frozen,
            "sign_agreement": agreeing,
            "int8_saturation": int8_saturation(list(self.state.values())),
        }

    def _new_tally(self) -> Tally | None:
        if self._track_diagnostics:
            self._tally = Tally()
        return self._tally

    def _translated(self, state_dict: dict[str, Any]) -> dict[str, Any]:
        state_dict = with_frozen(state_dict, self.param_groups)
        refuse_adamw(state_dict, self.param_groups)
        return from_published(state_dict) if is_published(state_dict) else state_dict

    def __getstate__(self) -> dict[str, Any]:
        return {
            **super().__getstate__(),
            "_frozen": self._frozen,
            "_layers": self._layers,
            "_decay": self._decay,
            "_track_diagnostics": self._track_diagnostics,
            "_tally": None,
        }

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Pickled by a release that kept the names apart, and knew no frozen parameters.
        old = state.pop("_names", None) or ()
        super().__setstate__(state)
        self.__dict__.setdefault("_frozen", FrozenParameters())
        for names, group in zip(old, self.param_groups, strict=False):
            if names is not None:
                group["param_names"] = list(names)
