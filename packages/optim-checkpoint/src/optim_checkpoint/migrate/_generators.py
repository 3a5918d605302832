"""The global generators as other tools keep them."""

from typing import Any

import numpy as np
import torch

from optim_checkpoint._errors import CorruptCheckpointError


def generators(torch_state: Any, python: Any, numpy: Any, cuda: Any, where: str) -> dict[str, Any]:
    """Return generators as a checkpoint of this package has them.

    Args:
        torch_state: What `torch.get_rng_state` returned.
        python: What `random.getstate` returned.
        numpy: What `numpy.random.get_state` returned, as a tuple or a dict.
        cuda: What `torch.cuda.get_rng_state` or `get_rng_state_all` returned, or None.
        where: What to call it in an error.

    Raises:
        CorruptCheckpointError: If one is of another form.
    """
    try:
        version, words, gauss = python
        state: dict[str, Any] = {
            "torch": torch_state,
            "python": (int(version), np.array(words, np.uint32), gauss),
            "numpy": numpy if isinstance(numpy, dict) else _numpy(*numpy),
        }
        # A generator refuses what is none, and nothing is set that is not this object's.
        torch.Generator().set_state(torch_state)
        np.random.RandomState().set_state(state["numpy"])
    except (TypeError, ValueError, RuntimeError, KeyError) as error:
        raise CorruptCheckpointError(where, f"a generator refuses its state: {error}") from None
    if cuda is not None:
        state["cuda"] = [cuda] if isinstance(cuda, torch.Tensor) else list(cuda)
    return state


def _numpy(kind: str, words: Any, position: int, has_gauss: int, gauss: float) -> dict[str, Any]:
    return {
        "bit_generator": str(kind),
        "state": {"key": np.array(words, np.uint32), "pos": int(position)},
        "has_gauss": int(has_gauss),
        "gauss": float(gauss),
    }


def plain(rng: dict[str, Any]) -> dict[str, Any]:
    """Return generators that `torch.load(weights_only=True)` loads and their owners take.

    NumPy's arrays, which that refuses, become tuples of numbers.
    """
    version, words, gauss = rng["python"]
    numpy = rng["numpy"]
    state = numpy["state"]
    return {
        **rng,
        "python": (version, tuple(words.tolist()), gauss),
        "numpy": (
            numpy["bit_generator"],
            tuple(state["key"].tolist()),
            state["pos"],
            numpy["has_gauss"],
            numpy["gauss"],
        ),
    }


def tensors_for(value: Any, notes: list[str], where: str = "extra") -> Any:
    """Return nested values with tensors for NumPy's arrays, which `weights_only` refuses to load.

    Args:
        value: The value.
        notes: Receives a line for each.
        where: What it is called.
    """
    if isinstance(value, np.ndarray | np.generic):
        notes.append(f"{where}: an array of NumPy, written as a tensor")
        return torch.from_numpy(np.array(value))
    if isinstance(value, dict):
        items = {k: tensors_for(v, notes, f"{where}[{k!r}]") for k, v in value.items()}
        if type(value) is not dict:
            # An OrderedDict, Counter or defaultdict, which torch knows.
            copied = value.copy()
            copied.update(items)
            return copied
        return items
    if type(value) in (list, tuple):
        return type(value)(tensors_for(v, notes, f"{where}[{i}]") for i, v in enumerate(value))
    return value
