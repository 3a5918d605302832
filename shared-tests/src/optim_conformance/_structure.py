"""Checks on the tree: leaves do not influence each other, and odd shapes are leaves too."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from optim_conformance._base import Checks
from optim_conformance._compare import close, slot_of
from optim_conformance.adapter import Array, Tree
from optim_conformance.cases import Case
from optim_conformance.oracle import Oracle
from optim_conformance.rules import RULES, SLOTS, plain_case
from optim_conformance.tolerances import Tolerance, free_running

RENAMED = {"w": "zz.w", "b": "a", "emb.table": "m.9"}
"""New names whose sorted order is not the old one."""

ODD_SHAPES: Mapping[str, tuple[int, ...]] = {"scalar": (), "rank4": (2, 1, 3, 2), "one": (1, 1)}


class StructureChecks(Checks):
    """One leaf's step depends on that leaf alone."""

    def test_split_tree_equals_joint_tree(self, opt: str) -> None:
        """A leaf stepped alone ends where it ends beside others: statistics are per tensor."""
        case = plain_case(opt)
        joint = self.drive(self.start(case), case.grads("float32"))
        for leaf, p in case.params("float32").items():
            alone = self.start(case, params={leaf: p}, hparams=_hparams_for(case, {leaf: leaf}))
            self.drive(alone, [{leaf: g[leaf]} for g in case.grads("float32")])
            what = f"{opt}, {leaf} alone against {leaf} beside others"
            close(alone.params(), {leaf: joint.params()[leaf]}, _params_tolerance, what)
            ours = {k: v for k, v in joint.state().items() if k.endswith(f"/{leaf}")}
            theirs = {k: v for k, v in alone.state().items() if k != "count"}
            close(theirs, ours, _slot_tolerance, what)

    def test_order_and_names_do_not_matter(self, opt: str) -> None:
        """Renamed and reordered leaves carry the same values, statistics included."""
        case = plain_case(opt)
        base = self.drive(self.start(case), case.grads("float32"))
        moved = self.start(
            case, params=_renamed(case.params("float32")), hparams=_hparams_for(case, RENAMED)
        )
        for g in case.grads("float32"):
            moved.step(dict(sorted(_renamed(g).items())))
        what = f"{opt}, renamed and reordered leaves"
        close(moved.params(), _renamed(base.params()), _params_tolerance, what)
        close(moved.state(), _renamed_state(base.state()), _slot_tolerance, what)

    def test_odd_shapes(self, opt: str) -> None:
        """A scalar, a single entry and a rank-4 leaf follow the oracle."""
        self._against_oracle(opt, ODD_SHAPES)

    def test_empty_leaf(self, opt: str) -> None:
        """A leaf without entries makes no NaN and leaves its neighbour alone."""
        self._against_oracle(opt, {"none": (0, 3), "w": (4,)})

    def test_large_leaf(self, opt: str) -> None:
        """A leaf beyond every block size follows the oracle, its mean included."""
        self._against_oracle(opt, {"big": (257, 300)}, steps=4)

    def test_duplicated_entries(self, opt: str) -> None:
        """Repeating a tensor's entries changes no statistic: they are means, not sums."""
        case = plain_case(opt)
        once = self.drive(self.start(case), case.grads("float32"))
        twice = self.start(case, params=_doubled(case.params("float32")))
        self.drive(twice, [_doubled(g) for g in case.grads("float32")])
        what = f"{opt}, every entry twice"
        close(twice.params(), _doubled(once.params()), _params_tolerance, what)
        scalars = {k: v for k, v in once.state().items() if v.ndim == 0}
        close({k: twice.state()[k] for k in scalars}, scalars, _slot_tolerance, what)

    def test_zero_gradients(self, opt: str) -> None:
        """Gradients of zero leave only the decay, and a finite state of zeros."""
        case = plain_case(opt)
        zeros = {k: np.zeros_like(v) for k, v in case.params("float32").items()}
        run = self.drive(self.start(case), [zeros] * 4)
        lr, params = case.hparams["learning_rate"], case.params("float32")
        expected = {
            leaf: params[leaf].astype(np.float64) * (1 - lr * rule.share * rule.weight_decay) ** 4
            for leaf, rule in Oracle(opt, case.hparams, params).rules.items()
        }
        close(run.params(), expected, _params_tolerance, f"{opt}, zero gradients")
        for key, value in run.state().items():
            expected_value = 4.0 if key == "count" else SLOTS[slot_of(key)].idle(4)
            np.testing.assert_allclose(value, expected_value, rtol=1e-6, atol=0, err_msg=key)

    def _against_oracle(
        self, opt: str, shapes: Mapping[str, tuple[int, ...]], steps: int = 8
    ) -> None:
        case = plain_case(opt)
        rng = np.random.default_rng(12)
        params = {k: np.asarray(rng.uniform(-1, 1, s), np.float32) for k, s in shapes.items()}
        hparams = {**case.hparams, **RULES[opt].for_leaves(shapes)}
        run, oracle = self.start(case, params=params, hparams=hparams), Oracle(opt, hparams, params)
        for t in range(1, steps + 1):
            # All of one sign: a single entry whose average cancels would be all rounding error.
            g = {k: np.asarray(rng.uniform(0.5, 1.5, s), np.float32) for k, s in shapes.items()}
            run.step(g)
            oracle.step(g)
            what = f"{opt} on {dict(shapes)}, step {t}"
            close(run.params(), oracle.params(), _params_tolerance, what)
            filled = {k for k in oracle.state() if k == "count" or params[k.split("/")[1]].size}
            state = run.state()
            for key, value in state.items():
                assert np.isfinite(value).all(), f"{what}: {key} is {value}"
            close(
                {k: v for k, v in state.items() if k in filled},
                {k: v for k, v in oracle.state().items() if k in filled},
                _slot_tolerance,
                what,
            )


def _params_tolerance(key: str) -> Tolerance:
    return free_running("float32", "params")


def _slot_tolerance(key: str) -> Tolerance:
    return free_running("float32", slot_of(key))


def _doubled(tree: Tree) -> dict[str, Array]:
    return {k: np.repeat(v, 2, axis=0) for k, v in tree.items()}


def _renamed(tree: Tree) -> dict[str, Array]:
    return {RENAMED[k]: tree[k] for k in reversed(list(tree))}


def _renamed_state(state: Tree) -> dict[str, Array]:
    parts = {k: k.partition("/") for k in state}
    return {
        f"{slot}/{RENAMED[leaf]}" if leaf else slot: state[k]
        for k, (slot, _, leaf) in parts.items()
    }


def _hparams_for(case: Case, names: Mapping[str, str]) -> dict[str, Any]:
    """Return the hyperparameters, those by leaf for these leaves under their new names."""
    return {
        k: {new: v[old] for old, new in names.items()} if isinstance(v, Mapping) else v
        for k, v in case.hparams.items()
    }
