"""The oracle's rules over stored state, as an adapter: what a correct implementation looks like.

State is kept in the dtypes that the contract names and rounded there after each step, as a real
implementation would. The suites must pass on it; the planted bugs of the meta-tests derive from it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import ml_dtypes
import numpy as np

from optim_conformance._codes import Code, code_of
from optim_conformance._compare import slot_of
from optim_conformance.adapter import Array, Run, Tree, numpy_dtype
from optim_conformance.oracle import Oracle
from optim_conformance.rules import CAPABILITIES, RULES, SLOTS


class NumpyRun:
    """A run whose state is stored between steps in the dtypes of the contract."""

    def __init__(self, opt: str, hparams: Mapping[str, Any], params: Tree, dtype: str) -> None:
        self.optimizer, self.hparams, self.dtype = opt, dict(hparams), dtype
        self._params = {leaf: np.array(p) for leaf, p in params.items()}
        self._state: dict[str, Array] = {}
        self._codes: dict[str, Array] = {}
        self._noise = np.random.default_rng(0)
        self._state = self.stored(self.oracle(self._params).state())

    def oracle(self, params: Tree) -> Oracle:
        """Return a fresh oracle for these parameters."""
        return Oracle(self.optimizer, self.hparams, params)

    def storage(self, slot: str) -> np.dtype[Any]:
        """Return the dtype in which a slot is stored."""
        own, kind = numpy_dtype(self.dtype), RULES[self.optimizer].slot(slot)
        if kind is None:
            return np.dtype(np.int32)
        if kind.wide:
            wide = np.promote_types(own, np.float32)
            return np.dtype(f"f{wide.itemsize // 2}") if kind.real and wide.kind == "c" else wide
        if code_of(self.hparams, slot) is not None:
            return np.dtype(np.float64)
        return numpy_dtype(self.hparams.get("mu_dtype", self.dtype)) if slot == "mu" else own

    def stored(self, state: Tree) -> dict[str, Array]:
        """Round a state to its storage.

        A signed moment saturates there; a statistic that overflows keeps its last value.
        """
        with np.errstate(over="ignore"):
            rounded = {k: self._rounded(slot_of(k), v) for k, v in state.items()}
        overflowed = [
            k
            for k, v in rounded.items()
            if "/" in k and SLOTS[slot_of(k)].scalar and np.isfinite(state[k]) > np.isfinite(v)
        ]
        return {**rounded, **{k: self._state[k] for k in overflowed}}

    def _coded(self, key: str, value: Array) -> Array:
        """Return what the code of a moment stands for, once it is stored."""
        slot, _, leaf = key.partition("/")
        code = code_of(self.hparams, slot)
        if code is None or slot not in ("mu", "nu", "nu_max") or not value.any():
            return value
        rows = value.reshape(len(value), -1)
        stored, scale = self.encoded(code, rows)
        self._codes |= {f"{slot}/{leaf}": stored, f"{slot}_scale/{leaf}": scale}
        return code.value(code.unpacked(stored, rows.shape[1]), scale).reshape(value.shape)

    def encoded(self, code: Code, rows: Array) -> tuple[Array, Array]:
        """Return codes and scales; without noise to the nearest value."""
        noise = self._noise.random(rows.shape) if code.stochastic else np.full(rows.shape, 0.5)
        return code.encoded(rows, noise)

    def codes(self) -> Tree:
        """Return copies of the codes."""
        return {k: v.copy() for k, v in self._codes.items()}

    def _rounded(self, slot: str, x: Array) -> Array:
        dtype = self.storage(slot)
        if slot == "count" or SLOTS[slot].scalar or not SLOTS[slot].signed:
            return x.astype(dtype)
        largest = float(ml_dtypes.finfo(dtype).max)
        return np.where(np.isfinite(x), np.clip(x, -largest, largest), x).astype(dtype)

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        """Take one step in float64 from the stored state, and store the result."""
        oracle = self.oracle(self._params)
        oracle.load(self._params, self._state)
        oracle.step(grads, lr=lr)
        own = numpy_dtype(self.dtype)
        self._params = {k: v.astype(own) for k, v in oracle.params().items()}
        state = {k: self._coded(k, v) for k, v in oracle.state().items()}
        self._state = self.stored(state)

    def params(self) -> Tree:
        """Return copies of the parameters."""
        return {k: v.copy() for k, v in self._params.items()}

    def state(self) -> Tree:
        """Return copies of the state."""
        return {k: v.copy() for k, v in self._state.items()}

    def save(self) -> bytes:
        """Serialize everything by its bits."""
        both = {"params": self._params, "state": self._state}
        return json.dumps(
            {
                part: {k: [v.dtype.name, list(v.shape), v.tobytes().hex()] for k, v in tree.items()}
                for part, tree in both.items()
            }
        ).encode()

    def restore(self, blob: bytes) -> Run:
        """Return a run that continues from `blob`."""
        both = {
            part: {
                k: np.frombuffer(bytes.fromhex(bits), numpy_dtype(dtype)).reshape(shape).copy()
                for k, (dtype, shape, bits) in tree.items()
            }
            for part, tree in json.loads(blob).items()
        }
        run = type(self)(self.optimizer, self.hparams, both["params"], self.dtype)
        run._state = both["state"]
        return run

    def compilations(self) -> int | None:
        """Nothing compiles."""
        return None


class NumpyAdapter:
    """Starts `NumpyRun`s."""

    name = "oracle over stored state"
    framework = "numpy"
    capabilities = frozenset(CAPABILITIES) - {"jit", "lr0"}
    run: type[NumpyRun] = NumpyRun

    def optimizers(self) -> frozenset[str]:
        """Return all of them."""
        return frozenset(RULES)

    def start(self, opt: str, hparams: Mapping[str, Any], params: Tree, *, dtype: str) -> Run:
        """Start a run."""
        return self.run(opt, hparams, params, dtype)
