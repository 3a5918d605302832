# pyright: strict
"""XXH3-128 digests: they find damage, they do not stop someone who means to deceive."""

from collections.abc import Sequence

import xxhash

ALGORITHM = "xxh3-128"
HEX_DIGITS = 32


def new_tensor_digest(name: str, dtype: str, shape: Sequence[int]) -> xxhash.xxh3_128:
    """Start the digest of a tensor: what it is called and is comes before its bytes.

    So a tensor whose bytes are sound but which was renamed, reshaped or swapped with another of the
    same size does not verify.
    """
    text = ascii(name)
    return xxhash.xxh3_128(f"{text}\0{dtype}\0{','.join(map(str, shape))}\0".encode("ascii"))


def digest(raw: bytes) -> str:
    """Return the digest of `raw` in hexadecimal."""
    return xxhash.xxh3_128_hexdigest(raw)
