"""What a step works on: one record per parameter that has a gradient."""

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from stac_torch._local import first_entry, local, local_grad, real
from stac_torch._report import Tally
from stac_torch._rounding import Noise

# Bounds the temporaries of a step. On a device 16 Mi entries, 64 MiB in float32, spare launches; on
# the CPU 256 Ki stay in the second-level cache, and memory is read and written once.
CHUNK_ENTRIES = 1 << 24
CPU_CHUNK_ENTRIES = 1 << 18

# The classes whose memory is what they say: subclasses may dispatch.
PLAIN = (Tensor, Parameter)


class Flags(NamedTuple):
    """What holds for the whole step.

    Attributes:
        skip: None, or a 0-d boolean tensor: where true the step leaves everything as it is.
        grad_scale: None, or the 0-d factor that a gradient scaler left in the gradients.
        clip: None, or the 0-d factor that clips gradients to a total norm.
        propagate_nan: Whether gradients that are not finite may arrive.
        tally: None, or where to count what the sign section does.
    """

    skip: Tensor | None = None
    grad_scale: Tensor | None = None
    clip: Tensor | None = None
    propagate_nan: bool = False
    tally: Tally | None = None


class Slot(NamedTuple):
    """A parameter and all that belongs to it in a step.

    Attributes:
        param: The parameter.
        grad: Its gradient.
        state: Its state, by key; what is 0-d belongs to the whole parameter.
        noise: Where to draw the noise of stochastic rounding, None where nothing needs it.
    """

    param: Tensor
    grad: Tensor
    state: dict[str, Tensor]
    noise: Noise | None = None

    def here(self) -> "Slot":
        """Return what this rank holds."""
        param, grad = self.param, self.grad
        # With thousands of small parameters a step is bound by such looks.
        if type(param) in PLAIN and type(grad) is Tensor and not param.is_complex():
            return self
        state = {key: local(value) for key, value in self.state.items()}
        noise = self.noise and self.noise.shifted(first_entry(param))
        return Slot(local(param), local_grad(param, grad), state, noise)

    def as_reals(self) -> "Slot":
        """Return complex tensors as their two parts."""
        if not self.param.is_complex():
            return self
        state = {key: real(value) for key, value in self.state.items()}
        return Slot(real(self.param), real(self.grad), state, self.noise)

    def rows(self, start: int, stop: int) -> "Slot":
        """Return the rows [start, stop)."""
        noise = self.noise
        if noise is not None:
            noise = noise.shifted(start * self.param[0].numel())
        state = {k: v[start:stop] if v.ndim else v for k, v in self.state.items()}
        return Slot(self.param[start:stop], self.grad[start:stop], state, noise)

    def pieces(self) -> Iterator["Slot"]:
        """Yield the rows in pieces of at most one chunk, if a row has no more."""
        for start, stop in row_ranges(self.param):
            yield self.rows(start, stop) if stop else self


def slots_of(tensors: Sequence[Tensor], layout: Sequence[tuple[Any, ...]]) -> list[Slot]:
    """Return the records that two flat lists hold.

    Dynamo does not trace what fills lists of tensors, and hands back such lists alone.

    Args:
        tensors: Parameter, gradient and state of one after the other.
        layout: For each of them the key of its noise, or None, whether the parameter is rounded by
            it, and the keys of its state.
    """
    slots: list[Slot] = []
    start = 0
    for key, rounded, *names in layout:
        stop = start + 2 + len(names)
        state = dict(zip(names, tensors[start + 2 : stop], strict=True))
        noise = None if key is None else Noise(key, state["step"], parameter=rounded)
        slots.append(Slot(tensors[start], tensors[start + 1], state, noise))
        start = stop
    return slots


def chunk_entries(parameter: Tensor) -> int:
    """Return how many entries a chunk may have on a parameter's device."""
    return CPU_CHUNK_ENTRIES if parameter.device.type == "cpu" else CHUNK_ENTRIES


def row_ranges(parameter: Tensor) -> Iterator[tuple[int, int]]:
    """Yield row ranges of at most one chunk; (0, 0) stands for the whole tensor."""
    limit = chunk_entries(parameter)
    if parameter.ndim == 0 or parameter.numel() <= limit:
        yield 0, 0
        return
    rows = max(1, limit * parameter.shape[0] // parameter.numel())
    for start in range(0, parameter.shape[0], rows):
        yield start, min(start + rows, parameter.shape[0])


def chunks(slots: Sequence[Slot]) -> Iterator[list[Slot]]:
    """Yield the work in lists of about one chunk, large tensors cut between rows."""
    chunk: list[Slot] = []
    size = 0
    for slot in slots:
        limit = chunk_entries(slot.param)
        for piece in slot.pieces():
            entries = piece.param.numel()
            if chunk and size + entries > limit:
                yield chunk
                chunk, size = [], 0
            chunk.append(piece)
            size += entries
    if chunk:
        yield chunk


def by_device(slots: list[Slot]) -> dict[torch.device, list[Slot]]:
    """Return the records of each device."""
    parts: dict[torch.device, list[Slot]] = {}
    for slot in slots:
        parts.setdefault(slot.param.device, []).append(slot)
    return parts
