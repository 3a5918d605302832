"""Properties that hold for any gradient, searched by hypothesis with few, small shapes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from optim_conformance import profiles
from optim_conformance._base import Checks, where
from optim_conformance._compare import close, identical, slot_of
from optim_conformance.adapter import Array, Run, Tree
from optim_conformance.rules import RULES, SLOTS, plain_case
from optim_conformance.tolerances import free_running

profiles.activate()

SHAPES = {"w": (2, 3), "b": (4,)}
STEPS = 4

finite = st.floats(-4, 4, width=32).filter(lambda x: abs(x) > 2**-10 or x == 0)
extreme = st.sampled_from([0.0, 1e-30, -1e-12, 1e-6, 1.0, -3.0, 1e4, -1e12, 1e18])


def gradients(entries: st.SearchStrategy[float]) -> st.SearchStrategy[list[dict[str, Array]]]:
    """Return a strategy for a few steps of gradients over `SHAPES`."""

    def tree(values: list[float]) -> dict[str, Array]:
        flat = np.asarray(values, np.float32)
        return {"w": flat[:6].reshape(2, 3), "b": flat[6:]}

    step = st.lists(entries, min_size=10, max_size=10).map(tree)
    return st.lists(step, min_size=STEPS, max_size=STEPS)


class PropertyChecks(Checks):
    """Symmetries of the rules."""

    @profiles.few
    @given(data=st.data())
    def test_mirror(self, opt: str, data: st.DataObject) -> None:
        """Negated parameters and gradients give negated parameters, bit for bit."""
        grads = data.draw(gradients(finite))
        plain = self._run(opt, grads, _start())
        mirrored = self._run(
            opt, [_map(np.negative, g) for g in grads], _map(np.negative, _start())
        )
        # Adding 0 makes the two zeros one: -0.0 is no other value.
        identical(
            _map(lambda x: -x + 0, mirrored.params()),
            _map(lambda x: x + 0, plain.params()),
            f"{opt}, mirrored",
        )

    @profiles.few
    @given(data=st.data())
    def test_entries_are_exchangeable(self, opt: str, data: st.DataObject) -> None:
        """Reversing the entries of every tensor reverses the result and nothing else."""
        grads = data.draw(gradients(finite))
        plain = self._run(opt, grads, _start())
        turned = self._run(opt, [_map(_turned, g) for g in grads], _map(_turned, _start()))
        close(
            _map(_turned, turned.params()),
            plain.params(),
            lambda _: free_running("float32", "reordered"),
            f"{opt}, reversed entries",
        )

    @where(lambda rule: rule.scale_free is not None, "freedom of scale")
    @profiles.few
    @given(grads=gradients(finite), power=st.integers(-6, 6))
    def test_scale(self, opt: str, grads: list[dict[str, Array]], power: int) -> None:
        """A power of two on all gradients changes no step of an optimizer that is free of scale."""
        hparams = RULES[opt].scale_free or {}
        self.need(*RULES[opt].needs(hparams))
        plain = self._run(opt, grads, _start(), hparams)
        scaled = self._run(
            opt, [_map(lambda x: x * np.float32(2.0**power), g) for g in grads], _start(), hparams
        )
        close(
            scaled.params(),
            plain.params(),
            lambda _: free_running("float32", "reordered"),
            f"{opt}, gradients times 2^{power}",
        )
        for key in plain.state():
            if slot_of(key) == "beta1":
                np.testing.assert_allclose(
                    scaled.state()[key], plain.state()[key], rtol=1e-6, err_msg=key
                )

    @where(lambda rule: rule.slot("beta1"), "momentum decay that adapts")
    @profiles.few
    @given(grads=gradients(extreme), strength=st.sampled_from([0.0, 0.2, 0.5]))
    def test_beta1_is_bounded(
        self, opt: str, grads: list[dict[str, Array]], strength: float
    ) -> None:
        """beta1 lies in [b1_min, b1], P is the product of all beta1, and nothing is poisoned."""
        case = plain_case(opt)
        hparams = {**case.hparams, "adapt_strength": strength, "b1_base": 0.9}
        run = self.start(case, params=_start(), hparams=hparams)
        low, product = max(0.5, 0.9 * (1 - strength)), dict.fromkeys(SHAPES, 1.0)
        for g in grads:
            run.step(g)
            state = run.state()
            for leaf in SHAPES:
                beta1 = float(state[f"beta1/{leaf}"])
                product[leaf] *= beta1
                assert low - 1e-6 <= beta1 <= 0.9 + 1e-6, f"{opt}: beta1 of {leaf} is {beta1}"
                np.testing.assert_allclose(state[f"b1_prod/{leaf}"], product[leaf], rtol=1e-5)
            for key, value in state.items():
                scalar = "/" in key and SLOTS[slot_of(key)].scalar
                assert not scalar or np.isfinite(value), f"{opt}: {key} is {value}"

    def _run(
        self,
        opt: str,
        grads: list[dict[str, Array]],
        params: Tree,
        hparams: Mapping[str, Any] | None = None,
    ) -> Run:
        case = plain_case(opt)
        needed = RULES[opt].for_leaves(SHAPES)
        run = self.start(case, params=params, hparams={**case.hparams, **needed, **(hparams or {})})
        return self.drive(run, grads)


def _start() -> dict[str, Array]:
    rng = np.random.default_rng(31)
    return {k: rng.uniform(-1, 1, s).astype(np.float32) for k, s in SHAPES.items()}


def _map(f: Callable[[Array], Array], tree: Tree) -> dict[str, Array]:
    return {k: f(v) for k, v in tree.items()}


def _turned(x: Array) -> Array:
    return np.flip(x).copy()
