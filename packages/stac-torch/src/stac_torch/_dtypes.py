"""Names of state dtypes: what a user may write, and what a parameter group holds.

Groups hold names and not ``torch.dtype``: they go through JSON, ``weights_only`` loading and
flattened distributed checkpoints unchanged.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import torch

INT8 = "int8"
INT4 = "int4"

_ALIASES = {
    "bf16": "bfloat16",
    "fp16": "float16",
    "half": "float16",
    "fp32": "float32",
    "float": "float32",
    "fp64": "float64",
    "double": "float64",
}
_FLOATING = {
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
    "float32": torch.float32,
    "float64": torch.float64,
}


def dtype_name(
    option: str, value: torch.dtype | str | None, *, codes: Sequence[str] = ()
) -> str | None:
    """Return the canonical name of a state dtype, or None for the parameter's own.

    Args:
        option: The option's name, for messages.
        value: What the user gave.
        codes: The codes that the option takes beside floating dtypes.

    Raises:
        ValueError: ``value`` is not a dtype that this option takes.

    Example:
        >>> dtype_name("sign_state_dtype", "bf16")
        'bfloat16'
        >>> dtype_name("sign_state_dtype", torch.int8, codes=[INT8])
        'int8'
    """
    if value is None:
        return None
    name = str(value).removeprefix("torch.").strip().lower()
    name = _ALIASES.get(name, name)
    if name in _FLOATING or name in codes:
        return name
    choices = [*_FLOATING, *codes]
    msg = f"{option} must be None, a dtype among {choices} or its name, got {value!r}"
    raise ValueError(msg)


def state_dtype(name: str | None, parameter: torch.Tensor) -> torch.dtype:
    """Return the dtype of a floating state of ``parameter``."""
    return parameter.dtype if name is None else _FLOATING[name]


def check_state_dtype(
    group: Mapping[str, Any], option: str, parameter: torch.Tensor, *, unfused: str
) -> None:
    """Raise if a parameter cannot have the state that an option of its group asks for.

    Args:
        group: The group.
        option: The option.
        parameter: The parameter.
        unfused: The code that no kernel reads.

    Raises:
        ValueError: It is complex and the state real, or the step is fused.
    """
    if group["fused"] and group[option] == unfused:
        msg = f"fused=True has no kernel for {option}={unfused!r}: use fused=None"
        raise ValueError(msg)
    if group[option] is not None and parameter.is_complex():
        msg = (
            f"{option}={group[option]!r} cannot hold the moment of a complex parameter of "
            f"shape {tuple(parameter.shape)}: put it into a group with {option}=None"
        )
        raise ValueError(msg)


def arithmetic_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the real dtype to compute in: float64 for itself and complex128, else float32."""
    return torch.float64 if dtype in (torch.float64, torch.complex128) else torch.float32


# Tables, because Dynamo does not trace the methods of a dtype.
_WHOLES = {
    torch.float16: torch.complex32,
    torch.float32: torch.complex64,
    torch.float64: torch.complex128,
}
_PARTS = {whole: part for part, whole in _WHOLES.items()}


def floating_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the dtype of the parts of a complex dtype; another one as it is."""
    return _PARTS.get(dtype, dtype)


def complex_dtype(dtype: torch.dtype) -> torch.dtype:
    """Return the complex dtype whose parts have a dtype."""
    return _WHOLES[dtype]
