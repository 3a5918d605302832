"""A readable NumPy driver of any rule over flat trees, for readers, tests and small experiments.

A tree is a mapping from leaf names to arrays. State is a plain dictionary in canonical slot names
("mu/w", "s2/w", "count"); nothing is updated in place.
"""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, TypeAlias

import numpy as np

from stam_core._adamw import ADAMW
from stam_core._means import local_mean
from stam_core._rule import Rule
from stam_core._sign import SIGN
from stam_core._stac import ROLES, STACHyperparams, STACRole

Tree: TypeAlias = Mapping[str, Any]
"""Leaf name to NumPy array."""

State: TypeAlias = dict[str, Any]
"""Slot and leaf to NumPy array."""


class Driver:
    """The NumPy driver of a rule.

    Args:
        rule: The rule of every leaf.
        **hyperparams: The fields of ``rule.hyperparams``, all of them numbers.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import numpy as np
        >>> from stam_core import STAM
        >>> optimizer = Driver(STAM, learning_rate=0.1)
        >>> params = {"w": np.asarray([1.0, 2.0])}
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.step(params, {"w": np.asarray([0.5, -0.25])}, state)
        >>> params["w"].round(4).tolist(), round(float(state["beta1/w"]), 4)
        ([0.899, 2.098], 0.7349)
    """

    def __init__(self, rule: Rule[Any], **hyperparams: Any) -> None:
        self.rule = rule
        self.hyperparams: Any = rule.hyperparams(**hyperparams)

    def of_leaf(self, name: str, hp: Any) -> tuple[Rule[Any], Any]:
        """Return the rule of a leaf, and its hyperparameters out of all of them."""
        del name
        return self.rule, hp

    def init(self, params: Tree) -> State:
        """Return the state before the first step."""
        state: State = {"count": np.asarray(0, dtype=np.int32)}
        for name, p in params.items():
            rule, hp = self.of_leaf(name, self.hyperparams)
            slots = rule.init(np.asarray(p), hp, xp=np)
            state.update({f"{slot}/{name}": x for slot, x in slots.items()})
        return state

    def step(
        self, params: Tree, grads: Tree, state: Tree, *, learning_rate: float | None = None
    ) -> tuple[State, State]:
        """Return the parameters and the state after one step.

        Args:
            params: Leaf name to parameter.
            grads: Leaf name to gradient, the same leaves.
            state: What :meth:`init` or this method returned.
            learning_rate: The rate of this step alone, 0 allowed; None for the constant one.

        Raises:
            ValueError: ``params`` and ``grads`` have different leaves.
        """
        if set(params) != set(grads):
            odd = sorted(set(params) ^ set(grads))
            msg = (
                f"params and grads must have the same leaves, got {odd} in only one of them: "
                "pass both trees whole"
            )
            raise ValueError(msg)
        count = np.asarray(state["count"] + 1, dtype=np.int32)
        new_params: State = {}
        new_state: State = {"count": count}
        # An overflowing square is an event that the rules handle, not one to warn about.
        with np.errstate(over="ignore", invalid="ignore"):
            for name, p in params.items():
                rule, hp = self.of_leaf(name, self._at(learning_rate, p))
                kept = (*rule.moments_of(hp), *rule.statistics)
                slots = {slot.name: state[f"{slot.name}/{name}"] for slot in kept}
                p, g = np.asarray(p), np.asarray(grads[name])
                new_params[name], slots = rule.step(p, g, slots, count, hp, xp=np, mean=_mean)
                new_state.update({f"{slot}/{name}": np.asarray(x) for slot, x in slots.items()})
        return new_params, new_state

    def _at(self, rate: float | None, p: Any) -> Any:
        if rate is None:
            return self.hyperparams
        # As an array, because a constant rate must be positive and a scheduled one may be 0.
        return replace(self.hyperparams, learning_rate=np.asarray(rate, dtype=np.abs(p).dtype))


class STAC(Driver):
    """The NumPy driver of STAC.

    Args:
        roles: Leaf name to "sign" or "adamw".
        **hyperparams: The fields of :class:`stam_core.STACHyperparams`, all of them numbers.

    Raises:
        ValueError: A role is unknown, or a hyperparameter is out of range. :meth:`init`: a leaf has
            no role.
        TypeError: A hyperparameter is not a number.

    Example:
        >>> import numpy as np
        >>> optimizer = STAC({"a": "sign", "b": "adamw"}, learning_rate=0.1, sign_lr_scale=0.75)
        >>> params = {"a": np.asarray([1.0]), "b": np.asarray([1.0])}
        >>> grads = {"a": np.asarray([0.5]), "b": np.asarray([0.5])}
        >>> params, state = optimizer.step(params, grads, optimizer.init(params))
        >>> params["a"].round(4).tolist(), params["b"].round(4).tolist()
        ([0.925], [0.9])
    """

    def __init__(self, roles: Mapping[str, STACRole], **hyperparams: Any) -> None:
        self.roles = dict(roles)
        self.hyperparams = STACHyperparams(**hyperparams)
        for name, role in self.roles.items():
            if role not in ROLES:
                msg = f"roles[{name!r}] must be 'sign' or 'adamw', got {role!r}"
                raise ValueError(msg)

    def of_leaf(self, name: str, hp: STACHyperparams) -> tuple[Rule[Any], Any]:
        """Return the rule of a leaf, and the hyperparameters of its section."""
        if name not in self.roles:
            msg = f"roles must name every leaf, got {sorted(self.roles)} without {name!r}"
            raise ValueError(msg)
        role = self.roles[name]
        return (SIGN if role == "sign" else ADAMW), hp.section(role)


def _mean(x: Any) -> Any:
    return local_mean(x, xp=np)
