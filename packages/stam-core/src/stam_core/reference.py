"""A readable NumPy driver of the rules over flat trees, for readers, tests and small experiments.

A tree is a mapping from leaf names to arrays. State is a plain dictionary in canonical slot names
("mu/w", "s2/w", "count"); nothing is updated in place.
"""

from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from typing import Any, TypeAlias, TypeVar

import numpy as np

from stam_core import _stam, _stam_lite
from stam_core._means import local_mean
from stam_core._stam import STAMHyperparams
from stam_core._stam_lite import STAMLiteHyperparams

Tree: TypeAlias = Mapping[str, Any]
"""Leaf name to NumPy array."""

_H = TypeVar("_H", STAMHyperparams, STAMLiteHyperparams)
_Slots: TypeAlias = dict[str, Any]
_LeafStep: TypeAlias = Callable[[str, Any, Any, Tree, int], tuple[Any, _Slots]]


def _mean(x: Any) -> Any:
    return local_mean(x, xp=np)


def _at_rate(hyperparams: _H, rate: float, p: Any) -> _H:
    # As an array, because a constant rate must be positive and a scheduled one may be 0.
    return replace(hyperparams, learning_rate=np.asarray(rate, dtype=np.abs(p).dtype))


def _step_all(
    leaf_step: _LeafStep, params: Tree, grads: Tree, state: Tree
) -> tuple[_Slots, _Slots]:
    if set(params) != set(grads):
        odd = sorted(set(params) ^ set(grads))
        msg = (
            f"params and grads must have the same leaves, got {odd} in only one of them: "
            "pass both trees whole"
        )
        raise ValueError(msg)
    t = int(state["count"]) + 1
    new_params: _Slots = {}
    new_state: _Slots = {"count": np.asarray(t, dtype=np.int32)}
    # An overflowing square is an event that the rules handle, not one to warn about.
    with np.errstate(over="ignore", invalid="ignore"):
        for name, p in params.items():
            new_params[name], slots = leaf_step(
                name, np.asarray(p), np.asarray(grads[name]), state, t
            )
            new_state.update({f"{slot}/{name}": np.asarray(value) for slot, value in slots.items()})
    return new_params, new_state


class STAM:
    """The NumPy driver of STAM.

    Args:
        **hyperparams: The fields of :class:`stam_core.STAMHyperparams`, all of them numbers.

    Example:
        >>> import numpy as np
        >>> optimizer = STAM(learning_rate=0.1)
        >>> params = {"w": np.asarray([1.0, 2.0])}
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.step(params, {"w": np.asarray([0.5, -0.25])}, state)
        >>> params["w"].round(4).tolist(), round(float(state["beta1/w"]), 4)
        ([0.899, 2.098], 0.7349)
    """

    def __init__(self, **hyperparams: Any) -> None:
        self.hyperparams = STAMHyperparams(**hyperparams)

    def init(self, params: Tree) -> _Slots:
        """Return the state before the first step."""
        state: _Slots = {"count": np.asarray(0, dtype=np.int32)}
        for name, p in params.items():
            leaf = _stam.init_state(np.asarray(p), self.hyperparams, xp=np)
            state.update({f"{slot}/{name}": value for slot, value in self._slots(leaf).items()})
        return state

    def step(
        self, params: Tree, grads: Tree, state: Tree, *, learning_rate: float | None = None
    ) -> tuple[_Slots, _Slots]:
        """Return the parameters and the state after one step.

        Args:
            params: Leaf name to parameter.
            grads: Leaf name to gradient, the same leaves.
            state: What :meth:`init` or this method returned.
            learning_rate: The rate of this step alone, 0 allowed; None for the constant one.

        Raises:
            ValueError: ``params`` and ``grads`` have different leaves.
        """
        leaf_step = partial(self._leaf_step, learning_rate)
        return _step_all(leaf_step, params, grads, state)

    def _leaf_step(
        self, rate: float | None, name: str, p: Any, g: Any, state: Tree, t: int
    ) -> tuple[Any, _Slots]:
        hp = self.hyperparams if rate is None else _at_rate(self.hyperparams, rate, p)
        statistics = _stam.STAMStatistics(
            *(state[f"{slot}/{name}"] for slot in _stam.STAMStatistics._fields)
        )
        leaf = _stam.STAMState(
            state[f"mu/{name}"],
            state[f"nu/{name}"],
            statistics,
            state[f"beta1/{name}"],
            state[f"s/{name}"],
        )
        step_number = np.asarray(t, dtype=leaf.s.dtype)
        p, leaf = _stam.step(p, g, leaf, step_number, hp, xp=np, mean=_mean)
        return p, self._slots(leaf)

    @staticmethod
    def _slots(leaf: _stam.STAMState) -> _Slots:
        return {
            "mu": leaf.mu,
            "nu": leaf.nu,
            **leaf.statistics._asdict(),
            "beta1": leaf.beta1,
            "s": leaf.s,
        }


class STAMLite:
    """The NumPy driver of STAMLite.

    Args:
        **hyperparams: The fields of :class:`stam_core.STAMLiteHyperparams`, all of them numbers.

    Example:
        >>> import numpy as np
        >>> optimizer = STAMLite(learning_rate=0.1)
        >>> params = {"w": np.asarray([1.0, 2.0])}
        >>> state = optimizer.init(params)
        >>> params, state = optimizer.step(params, {"w": np.asarray([0.5, -0.25])}, state)
        >>> params["w"].round(4).tolist(), round(float(state["beta1/w"]), 4)
        ([0.8725, 2.0612], 0.8147)
    """

    def __init__(self, **hyperparams: Any) -> None:
        self.hyperparams = STAMLiteHyperparams(**hyperparams)

    def init(self, params: Tree) -> _Slots:
        """Return the state before the first step."""
        state: _Slots = {"count": np.asarray(0, dtype=np.int32)}
        for name, p in params.items():
            leaf = _stam_lite.init_lite_state(np.asarray(p), self.hyperparams, xp=np)
            state.update({f"{slot}/{name}": value for slot, value in self._slots(leaf).items()})
        return state

    def step(
        self, params: Tree, grads: Tree, state: Tree, *, learning_rate: float | None = None
    ) -> tuple[_Slots, _Slots]:
        """Return the parameters and the state after one step.

        Args:
            params: Leaf name to parameter.
            grads: Leaf name to gradient, the same leaves.
            state: What :meth:`init` or this method returned.
            learning_rate: The rate of this step alone, 0 allowed; None for the constant one.

        Raises:
            ValueError: ``params`` and ``grads`` have different leaves.
        """
        leaf_step = partial(self._leaf_step, learning_rate)
        return _step_all(leaf_step, params, grads, state)

    def _leaf_step(
        self, rate: float | None, name: str, p: Any, g: Any, state: Tree, t: int
    ) -> tuple[Any, _Slots]:
        hp = self.hyperparams if rate is None else _at_rate(self.hyperparams, rate, p)
        statistics = _stam_lite.STAMLiteStatistics(
            *(state[f"{slot}/{name}"] for slot in _stam_lite.STAMLiteStatistics._fields)
        )
        leaf = _stam_lite.STAMLiteState(state[f"mu/{name}"], statistics, state[f"s/{name}"])
        refresh = np.asarray((t - 1) % self.hyperparams.beta1_update_interval == 0)
        step_number = np.asarray(t, dtype=leaf.s.dtype)
        p, leaf = _stam_lite.lite_step(p, g, leaf, step_number, refresh, hp, xp=np, mean=_mean)
        return p, self._slots(leaf)

    @staticmethod
    def _slots(leaf: _stam_lite.STAMLiteState) -> _Slots:
        return {"mu": leaf.mu, **leaf.statistics._asdict(), "s": leaf.s}
