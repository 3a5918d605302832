"""The global random number generators of a torch training process."""

import random
import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from optim_checkpoint._errors import CheckpointWarning, CorruptCheckpointError


def capture() -> dict[str, Any]:
    """Return the states of torch (CPU and every CUDA device), Python's random and NumPy's."""
    version, words, gauss = random.getstate()
    legacy = np.random.get_state(legacy=False)  # noqa: NPY002 - the global state is what is saved
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "python": (version, np.array(words, np.uint32), gauss),
        "numpy": legacy,
    }
    if torch.cuda.is_available() and torch.cuda.is_initialized():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def keep(undo: Callable[[Callable[[], None]], object]) -> None:
    """Give `undo` what sets the generators to what they are now."""
    before = capture()
    undo(lambda: _set(before))


def restore(state: Any) -> None:
    """Set the generators to what `capture` returned."""
    _set(state)


def _set(state: Any) -> None:
    try:
        torch.set_rng_state(state["torch"])
        version, words, gauss = state["python"]
        random.setstate((version, tuple(int(word) for word in words), gauss))
        np.random.set_state(state["numpy"])  # noqa: NPY002 - the global generator
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise CorruptCheckpointError("train", f"a generator refuses its state: {error}") from None
    cuda = state.get("cuda")
    if cuda is None:
        return
    devices = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if devices != len(cuda):
        warnings.warn(
            f"the generators of {len(cuda)} CUDA devices were saved, {devices} are here: "
            f"{min(devices, len(cuda))} restored",
            CheckpointWarning,
            stacklevel=5,
        )
    for device, value in zip(range(devices), cuda, strict=False):
        torch.cuda.set_rng_state(value, device)
