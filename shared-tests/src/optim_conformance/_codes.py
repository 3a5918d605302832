"""The codes in which moments may be stored, in float64 from their definitions, and their check.

With s the largest magnitude of a block of a row, a code c stands for sign(c) s (|c| / n)^power. A
stochastic one is one of the two codes around a value, and the mean over the noise is the value.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from optim_conformance._base import Checks, where
from optim_conformance.adapter import Array
from optim_conformance.rules import RULES

# An even row of three blocks of 128 and two of 256, and an odd one of more than two dimensions.
LEAVES: Mapping[str, tuple[int, ...]] = {"w": (16, 300), "cube": (16, 9, 31)}


@dataclass(frozen=True)
class Code:
    """One code.

    Attributes:
        levels: n, the largest code.
        power: The power of the levels.
        block: Entries in a block.
        packed: Whether two codes are in a byte, the entry with the even place in the lower half.
        stochastic: Whether noise decides between the two codes around a value.
    """

    levels: int
    power: int
    block: int
    packed: bool = False
    stochastic: bool = False

    def value(self, codes: Array, scale: Array) -> Array:
        """Return what codes stand for, rows by places."""
        columns = scale.repeat(self.block, axis=1)[:, : codes.shape[1]]
        return np.sign(codes) * columns * (np.abs(codes) / self.levels) ** self.power

    def unpacked(self, stored: Array, length: int) -> Array:
        """Return codes as whole numbers in float64, rows by places."""
        if not self.packed:
            return stored.astype(np.float64)
        halves = np.stack([stored & 15, stored >> 4], axis=-1).astype(np.int64)
        return ((halves ^ 8) - 8).reshape(len(stored), -1)[:, :length].astype(np.float64)

    def scales(self, values: Array) -> Array:
        """Return the largest magnitude of each block."""
        blocks = -(-values.shape[1] // self.block)
        wide = np.pad(np.abs(values), ((0, 0), (0, blocks * self.block - values.shape[1])))
        return wide.reshape(len(values), blocks, self.block).max(axis=-1)

    def encoded(self, values: Array, noise: Array) -> tuple[Array, Array]:
        """Return stored codes and scales of rows of values; the noise is in [0, 1)."""
        scale = self.scales(values)
        columns = scale.repeat(self.block, axis=1)[:, : values.shape[1]]
        share = np.abs(values) / np.where(columns == 0, 1, columns)
        low = np.floor(share ** (1 / self.power) * self.levels)
        below, above = ((c / self.levels) ** self.power for c in (low, low + 1))
        codes = np.minimum(low + (noise < (share - below) / (above - below)), self.levels)
        if self is SQUARES:
            codes = np.where((share > 0) & (codes < 1), 1, codes)
        codes = (codes * np.sign(values)).astype(np.int64)
        if not self.packed:
            return codes, scale
        codes = np.pad(codes, ((0, 0), (0, codes.shape[1] % 2))) & 15
        return codes[:, ::2] | (codes[:, 1::2] << 4), scale


INT8 = Code(127, 4, 256)
SQUARES = Code(255, 4, 256, stochastic=True)
INT4 = Code(7, 2, 128, packed=True, stochastic=True)


def code_of(hparams: Mapping[str, Any], slot: str) -> Code | None:
    """Return the code in which hyperparameters have a slot stored, None for none.

    Example:
        >>> code_of({"mu_dtype": "int4"}, "mu").levels, code_of({"mu_dtype": "bfloat16"}, "mu")
        (7, None)
    """
    name = hparams.get("moment_dtype", hparams.get("mu_dtype"))
    if name == "int8":
        return SQUARES if slot.startswith("nu") else INT8
    return INT4 if name == "int4" else None


class CodeChecks(Checks):
    """`mu_dtype` and `moment_dtype` that name a code."""

    @where(lambda rule: rule.coded, "moment in a code")
    def test_codes(self, opt: str) -> None:
        """Each moment is stored as a code next to its value, by the layout that all share.

        The step is that of the value before it is stored, and a second moment that is not 0 is not
        stored as 0.
        """
        self.need("codes")
        for coded in RULES[opt].coded:
            hparams = {"learning_rate": 1e-2, "weight_decay": 0.0, **coded}
            rng = np.random.default_rng(11)
            params = {k: rng.standard_normal(s).astype(np.float32) for k, s in LEAVES.items()}
            rules = RULES[opt].steps_for(hparams, LEAVES)
            before = {leaf: rules[leaf].init(np.zeros(shape)) for leaf, shape in LEAVES.items()}
            run = self.adapter.start(opt, hparams, params, dtype="float32")
            for t in range(1, 5):
                grads = {
                    k: (rng.standard_normal(s) * 10.0 ** rng.uniform(-3, 0, s)).astype(np.float32)
                    for k, s in LEAVES.items()
                }
                old = run.params()
                run.step(grads)
                new, stored = run.params(), run.codes()
                for leaf, rule in rules.items():
                    p, g = old[leaf].astype(np.float64), grads[leaf].astype(np.float64)
                    moved, wanted = rule.step(p, g, before[leaf], t=t, lr=1e-2)
                    what = f"{opt} under {coded}, {leaf} after step {t}"
                    np.testing.assert_allclose(new[leaf], moved, rtol=1e-6, atol=2e-6, err_msg=what)
                    for slot, value in wanted.items():
                        code = code_of(hparams, slot)
                        assert code is not None
                        found = stored[f"{slot}/{leaf}"], stored[f"{slot}_scale/{leaf}"]
                        rows = _checked(code, *found, value.reshape(len(value), -1), what)
                        before[leaf][slot] = rows.reshape(value.shape)


def _checked(code: Code, stored: Array, scale: Array, value: Array, what: str) -> Array:
    """Return what is stored, which has to be a code next to each value."""
    np.testing.assert_allclose(scale, code.scales(value), rtol=1e-5, err_msg=what)
    wide = scale.astype(np.float64)
    codes = code.unpacked(stored, value.shape[1])
    assert np.abs(codes).max() <= code.levels, f"{what}: a code of {np.abs(codes).max()}"
    size = np.abs(codes)
    low, high = (code.value(np.maximum(size + d, 0), wide) for d in (-1, 1))
    magnitude, slack = np.abs(value), 1e-5 * np.abs(value) + 1e-30
    bad = (magnitude < low - slack) | (magnitude > high + slack)
    assert not bad.any(), f"{what}: {int(bad.sum())} codes are not next to their value"
    got = code.value(codes, wide)
    assert (got * value >= 0).all(), f"{what}: a moment has the other sign"
    if code is SQUARES:
        assert ((got > 0) == (value > 0)).all(), f"{what}: a second moment became 0"
    if code.stochastic:
        columns = wide.repeat(code.block, axis=1)[:, : value.shape[1]]
        floor = np.floor((magnitude / columns) ** (1 / code.power) * code.levels)
        below, above = code.value(floor, wide), code.value(floor + 1, wide)
        chance = (magnitude - below) / (above - below)
        few = (chance > 0.1) & (chance < 0.4) & (floor > 0)
        share = (size > floor)[few].mean()
        expected = chance[few].mean()
        assert abs(share - expected) < 0.1, f"{what}: {share:.2f} rounded up, not {expected:.2f}"
    return got
