"""Checks on who owns which memory, and on dtypes, shapes and what is stored."""

from __future__ import annotations

import numpy as np
import pytest

from optim_conformance._base import DTYPE_CAPABILITY, Checks, scribble, writable
from optim_conformance._compare import identical, slot_of
from optim_conformance.adapter import Tree, numpy_dtype
from optim_conformance.oracle import Oracle
from optim_conformance.rules import RULES, plain_case


class OwnershipChecks(Checks):
    """A run owns its memory, touches nobody else's, and keeps every dtype and shape."""

    def test_inputs_are_not_mutated(self, opt: str) -> None:
        """Neither the initial parameters nor the gradients change."""
        case = plain_case(opt)
        params, grads = case.params("float32"), case.grads("float32")
        given, fed = writable(params), [writable(g) for g in grads]
        run = self.start(case, params=given)
        for t, (g, original) in enumerate(zip(fed, grads, strict=True), start=1):
            run.step(g)
            identical(g, original, f"{opt}, gradients handed to step {t}")
        identical(given, params, f"{opt}, parameters handed to start")

    def test_gradients_are_not_kept(self, opt: str) -> None:
        """Overwriting a gradient or a start value after its use changes nothing."""
        case = plain_case(opt)
        expected = self.drive(self.start(case), case.grads("float32"))
        given = writable(case.params("float32"))
        run = self.start(case, params=given)
        scribble(given)
        for g in case.grads("float32"):
            mine = writable(g)
            run.step(mine)
            scribble(mine)
        identical(run.params(), expected.params(), f"{opt}, inputs overwritten after use")
        identical(run.state(), expected.state(), f"{opt}, inputs overwritten after use")

    def test_returned_trees_are_copies(self, opt: str) -> None:
        """Overwriting what `params` and `state` returned changes nothing."""
        case = plain_case(opt)
        expected = self.drive(self.start(case), case.grads("float32"))
        run = self.start(case)
        for g in case.grads("float32"):
            run.step(g)
            scribble(writable_view(run.params()))
            scribble(writable_view(run.state()))
        identical(run.params(), expected.params(), f"{opt}, returned trees overwritten")
        identical(run.state(), expected.state(), f"{opt}, returned trees overwritten")

    def test_runs_are_independent(self, opt: str) -> None:
        """Two runs from the same arrays, stepped in turn, end where each ends alone."""
        case = plain_case(opt)
        grads = case.grads("float32")
        alone = [self.drive(self.start(case), g) for g in (grads, grads[::-1])]
        shared = case.params("float32")
        pair = [self.start(case, params=shared) for _ in range(2)]
        for first, second in zip(grads, grads[::-1], strict=True):
            pair[0].step(first)
            pair[1].step(second)
        for run, expected in zip(pair, alone, strict=True):
            identical(run.params(), expected.params(), f"{opt}, two runs in turn")
            identical(run.state(), expected.state(), f"{opt}, two runs in turn")

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
    def test_dtypes_and_shapes(self, opt: str, dtype: str) -> None:
        """Parameters keep dtype and shape, state keeps both from step to step."""
        self.need(*([DTYPE_CAPABILITY[dtype]] if dtype in DTYPE_CAPABILITY else []))
        case = plain_case(opt)
        run, signatures = self.start(case, dtype), list[object]()
        for g in case.grads(dtype)[:4]:
            run.step(g)
            signatures.append(signature(run.state()))
            assert signature(run.params()) == signature(case.params(dtype)), (
                f"{opt} in {dtype}: parameters changed dtype or shape"
            )
        assert all(s == signatures[0] for s in signatures), (
            f"{opt} in {dtype}: state changed dtype or shape between steps: {signatures}"
        )

    @pytest.mark.parametrize("dtype", ["float32", "float64", "bfloat16", "float16"])
    def test_state_storage(self, opt: str, dtype: str) -> None:
        """The state is what the contract lists, in the dtype it lists: nothing more is stored."""
        self.need(*([DTYPE_CAPABILITY[dtype]] if dtype in DTYPE_CAPABILITY else []))
        case = plain_case(opt)
        params = case.params(dtype)
        run = self.start(case, dtype)
        run.step(case.grads(dtype)[0])
        state, own = run.state(), numpy_dtype(dtype)
        wide = np.promote_types(own, np.float32)
        expected = Oracle(opt, case.hparams, params).state()
        assert {k: v.shape for k, v in state.items()} == {k: v.shape for k, v in expected.items()}
        for key, value in state.items():
            slot = RULES[opt].slot(slot_of(key))
            if slot is not None:
                allowed = {own, wide} if slot.either else {wide if slot.wide else own}
                assert value.dtype in allowed, (
                    f"{opt} in {dtype}: {key} is stored as {value.dtype}, the contract says "
                    f"{' or '.join(sorted(map(str, allowed)))}"
                )

    def test_deterministic(self, opt: str) -> None:
        """The same run twice gives the same bits."""
        case = plain_case(opt)
        first, second = (self.drive(self.start(case), case.grads("float32")) for _ in range(2))
        identical(first.params(), second.params(), f"{opt}, the same run twice")
        identical(first.state(), second.state(), f"{opt}, the same run twice")


def signature(tree: Tree) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape by name."""
    return {k: (v.dtype.name, v.shape) for k, v in tree.items()}


def writable_view(tree: Tree) -> Tree:
    """Return the arrays of a tree that can be written; a read-only array protects itself."""
    return {k: v for k, v in tree.items() if v.flags.writeable}
