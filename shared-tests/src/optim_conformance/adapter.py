"""What a package shows to the suites: one adapter, and the runs that it starts.

The suites know canonical names only. An adapter translates the hyperparameters, the leaves and the
state of one implementation to them, and holds no arithmetic of its own.

State slots are those of the rules' files, one array each: `<slot>/<leaf>`, where `<leaf>` is the
parameter's name, and `count`, the steps taken, where a step depends on it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol

import ml_dtypes
import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Tree = Mapping[str, Array]
"""Flat, dotted leaf names to NumPy arrays; bfloat16 is `ml_dtypes.bfloat16`."""

CAPABILITIES: Mapping[str, str] = {
    "f64": "runs in float64",
    "bf16": "runs with bfloat16 parameters and gradients",
    "f16": "runs with float16 parameters and gradients",
    "complex": "accepts complex64 leaves",
    "digits": "corrects bias without cancellation; else early float32 updates are right to 2e-5",
    "jit": "compiles its step; `Run.compilations` counts compilations",
    "resume": "`Run.save` and `Run.restore` work",
    "lr": "`Run.step` takes a learning rate for the step",
    "lr0": "may be made with a learning rate of 0, as optimizers of torch may",
    "mu_dtype": 'stores a first moment of mu_dtype="bfloat16" or "float16"',
    "codes": 'stores moments of mu_dtype="int8" or "int4", or moment_dtype="int8", in codes',
    "propagate": 'accepts nonfinite="propagate"',
    "zero": 'accepts nonfinite="zero"',
    "skip": 'accepts nonfinite="skip"',
    "raise": 'accepts nonfinite="raise"',
}
"""What an adapter may declare beside the rules' own; everybody must have float32."""


class Run(Protocol):
    """One optimizer with its parameters and state, somewhere between two steps."""

    def step(self, grads: Tree, *, lr: float | None = None) -> None:
        """Take one step; `lr` replaces the learning rate for this step only."""
        ...

    def params(self) -> Tree:
        """Return the parameters: copies in host memory, in their own dtype."""
        ...

    def state(self) -> Tree:
        """Return the state under the canonical slots: copies, in the dtype they are stored in."""
        ...

    def codes(self) -> Tree:
        """Return moments in codes, as they are stored, with their scales.

        `<slot>/<leaf>` and `<slot>_scale/<leaf>`, each of two dimensions: a row per row of the
        leaf. Without the capability "codes" nobody asks.
        """
        ...

    def save(self) -> bytes:
        """Serialize parameters and state."""
        ...

    def restore(self, blob: bytes) -> Run:
        """Return a run that continues from `blob`; hyperparameters are this run's."""
        ...

    def compilations(self) -> int | None:
        """Return how many times the step was compiled so far, or None where nothing compiles."""
        ...


class OptimizerAdapter(Protocol):
    """One implementation in one mode, for example stam-jax under jit."""

    name: str
    framework: str
    capabilities: frozenset[str]

    def optimizers(self) -> frozenset[str]:
        """Return the registry names that this adapter offers."""
        ...

    def start(self, opt: str, hparams: Mapping[str, Any], params: Tree, *, dtype: str) -> Run:
        """Start `opt` at `params`.

        Args:
            opt: A registry name.
            hparams: Canonical hyperparameters; what is missing takes the implementation's default.
            params: Arrays that already have `dtype`, and that may be read-only.
            dtype: "float32", "float64", "bfloat16", "float16" or "complex64".
        """
        ...


def numpy_dtype(name: str) -> np.dtype[Any]:
    """Return the NumPy dtype of a name, bfloat16 included.

    Example:
        >>> numpy_dtype("float32").itemsize, numpy_dtype("bfloat16").itemsize
        (4, 2)
    """
    if name == "bfloat16":
        return np.dtype(ml_dtypes.bfloat16)
    return np.dtype(name)
