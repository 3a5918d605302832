"""Noise for stochastic rounding: a hash of (seed, name, step, position), no generator.

Nothing has to be saved, replicas agree, and every framework draws the same bits. The mixing
function is the finaliser of MurmurHash3 (Appleby, 2011).
"""

from zlib import crc32

from stam_core._typing import Array, Namespace


def noise_key(seed: int, name: str) -> int:
    """Return the hash of a seed and a parameter's dotted name, 32 bits.

    Example:
        >>> noise_key(0, "head.weight"), noise_key(1, "head.weight"), noise_key(0, "body.weight")
        (503201796, 3228080513, 1163586044)
    """
    return crc32(f"{seed}:{name}".encode())


def moment_key(key: int) -> int:
    """Return the key of the noise of a parameter's moment, which is not that of the parameter.

    Example:
        >>> moment_key(noise_key(0, "head.weight"))
        2211002813
    """
    return key ^ 0x9E3779B9


def mix(x: Array, *, xp: Namespace) -> Array:
    """Scramble uint32 numbers.

    Example:
        >>> import numpy as np
        >>> mix(np.asarray([0, 1, 2], np.uint32), xp=np).tolist()
        [0, 1364076727, 821347078]
    """
    x = (x ^ (x >> 16)) * xp.asarray(0x85EBCA6B, dtype=xp.uint32)
    x = (x ^ (x >> 13)) * xp.asarray(0xC2B2AE35, dtype=xp.uint32)
    return x ^ (x >> 16)


def random_bits(key: Array, step: Array, low: Array, high: Array, *, xp: Namespace) -> Array:
    """Return 16 random bits per entry, as uint32 in [0, 65536).

    Args:
        key: :func:`noise_key` of the tensor, 0-d uint32.
        step: The step being taken, 0-d uint32.
        low: Positions in the tensor in C order, uint32: their lower 32 bits.
        high: Their higher bits, uint32: no piece of a huge tensor repeats another.
        xp: The array namespace.

    Example:
        >>> import numpy as np
        >>> low = np.arange(3, dtype=np.uint32)
        >>> key, step = np.asarray([7], np.uint32), np.asarray([1], np.uint32)
        >>> random_bits(key, step, low, low * 0, xp=np).tolist()
        [54293, 32663, 42537]
    """
    word = mix(low ^ mix(step, xp=xp), xp=xp) ^ high ^ key
    return mix(word, xp=xp) >> 16


__all__ = ["mix", "moment_key", "noise_key", "random_bits"]
