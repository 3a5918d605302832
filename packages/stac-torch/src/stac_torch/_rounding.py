"""Stochastic rounding of bfloat16 parameters, reproducible on every replica.

A step smaller than half the distance to the next bfloat16 number is lost by rounding to nearest;
rounded up with the probability that the remainder is of that distance, it is kept on average. The
noise is a hash of (seed, name, step, offset): no generator, nothing to save, equal on every
replica.
"""

from dataclasses import dataclass, replace

import torch
from stam_core.noise import moment_key
from torch import Tensor

_MASK = 0xFFFFFFFF


@dataclass(frozen=True)
class Noise:
    """Where to draw the noise for one tensor.

    Attributes:
        key: Hash of seed and name, 32 bits.
        step: The step being taken, a 0-d tensor.
        offset: Position of the first entry in the tensor it was cut from.
        parameter: Whether the parameter is rounded by it, or its moments alone.
    """

    key: int
    step: Tensor
    offset: int = 0
    parameter: bool = True

    def shifted(self, entries: int) -> "Noise":
        """Return the noise of a piece that begins ``entries`` later."""
        return replace(self, offset=self.offset + entries)

    def of_moment(self) -> "Noise":
        """Return the noise of a moment, which is not that of the parameter."""
        return replace(self, key=moment_key(self.key))


def _mix(x: Tensor) -> Tensor:
    """Scramble 32-bit numbers held in int64: the finaliser of MurmurHash3."""
    x = ((x ^ (x >> 16)) * 0x85EBCA6B) & _MASK
    x = ((x ^ (x >> 13)) * 0xC2B2AE35) & _MASK
    return x ^ (x >> 16)


def random_bits(noise: Noise, entries: int, device: torch.device) -> Tensor:
    """Return 16 random bits per entry, as int32 in [0, 65536)."""
    index = torch.arange(noise.offset, noise.offset + entries, device=device)
    step = _mix(noise.step.to(device=device, dtype=torch.int64) & _MASK)
    # Offsets beyond 32 bits are folded in, so that no piece of a huge tensor repeats another.
    word = _mix((index & _MASK) ^ step) ^ (index >> 32) ^ noise.key
    return (_mix(word & _MASK) >> 16).to(torch.int32)


def round_stochastically_(param: Tensor, value: Tensor, noise: Noise) -> None:
    """Write ``value`` to ``param``, each entry to one of its two neighbours in bfloat16.

    Args:
        param: bfloat16.
        value: float32, same shape.
        noise: The noise.

    Example:
        >>> p, noise = torch.zeros(10000, dtype=torch.bfloat16), Noise(7, torch.tensor(1))
        >>> round_stochastically_(p, torch.full((10000,), 1 + 2**-9), noise)
        >>> p.unique().tolist(), round(p.double().mean().item(), 3)
        ([1.0, 1.0078125], 1.002)
    """
    bits = value.contiguous().view(torch.int32)
    noisy = (bits + random_bits(noise, value.numel(), value.device).view(value.shape)) & ~0xFFFF
    rounded = noisy.view(torch.float32)
    # Infinities and nan have no neighbour to be rounded to.
    param.copy_(torch.where(value.isfinite(), rounded, value))
