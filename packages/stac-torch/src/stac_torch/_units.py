"""The tensors that a rule's programs run over: one in pieces, or many small ones as one."""

# pyright: reportPrivateImportUsage=false
# The multi-tensor functions have no public names; torch's own optimizers call them so.

from collections.abc import Iterator, Mapping, Sequence
from functools import cached_property, lru_cache
from typing import Any, TypeAlias

import torch
from stam_core import sample_stride, strided_sample
from torch import Tensor

from stac_torch import _namespace
from stac_torch._dtypes import floating_dtype
from stac_torch._local import has_values
from stac_torch._records import Slot, chunk_entries
from stac_torch._sign import store_moment_, store_parameter_

# A larger tensor costs more by its entries than by its operations.
PACKED_ENTRIES = 1 << 14

Wide: TypeAlias = dict[str, Tensor]
"""Tensors of one piece by the rule's names, in the dtype of the arithmetic."""


class One:
    """One tensor, in pieces that stay in the cache.

    Args:
        slot: The tensor.
        at: Its place among all.
        moments: The key in its state of each moment, by the rule's name.
        dtype: The dtype of the arithmetic.
        sample: How many of its entries to average at most.
    """

    def __init__(
        self,
        slot: Slot,
        at: int,
        moments: Mapping[str, str],
        dtype: torch.dtype,
        sample: int | None,
    ) -> None:
        self.slots = [slot]
        self.places = [at]
        self._moments = moments
        self._dtype = dtype
        self._sample = sample

    @property
    def sizes(self) -> list[int]:
        """The entries that are averaged, as far as this rank holds them."""
        param, n = self.slots[0].param, self._sample
        if n is None or param.numel() <= n:
            return [param.numel()]
        return [-(-param.numel() // sample_stride(tuple(param.shape), n))]

    def averaged(self, names: Sequence[str]) -> Iterator[Wide]:
        """Yield what is averaged, by name."""
        n, slot = self._sample, self.slots[0]
        if n is None or slot.param.numel() <= n:
            for piece in self._cut():
                yield self._wide(piece, names)
            return
        entries = {name: self._stored(slot, name) for name in names}
        yield {k: self._widened(strided_sample(x, n, xp=_namespace)) for k, x in entries.items()}

    def updated(self) -> Iterator[Wide]:
        """Yield all of the tensor; what its holder leaves under each name is stored."""
        for piece in self._cut():
            wide = self._wide(piece, ("grad", "param", *self._moments))
            yield wide
            for name, key in self._moments.items():
                if wide[name] is not piece.state[key]:
                    store_moment_(piece.state[key], None, wide[name])
            if wide["param"] is not piece.param:
                store_parameter_(piece.param, wide["param"], piece.noise)

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of a piece as a vector of one."""
        if x.numel() > PACKED_ENTRIES:
            return x.sum().reshape(1)
        # As where many are one.
        wide = torch.complex128 if x.is_complex() else torch.float64
        return x.sum(dtype=wide).to(x.dtype).reshape(1)

    def spread(self, numbers: Tensor) -> Tensor:
        """Return a vector of one so that it broadcasts against a piece."""
        return numbers[0]

    def _cut(self) -> Iterator[Slot]:
        # A compiler makes its own pieces.
        if torch.compiler.is_compiling():
            return iter(self.slots)
        return self.slots[0].pieces()

    def _wide(self, piece: Slot, names: Sequence[str]) -> Wide:
        return {name: self._widened(self._stored(piece, name)) for name in names}

    def _widened(self, x: Tensor) -> Tensor:
        # Magnitudes of complex entries stay real.
        return x.to(self._dtype if x.is_complex() else floating_dtype(self._dtype))

    def _stored(self, piece: Slot, name: str) -> Tensor:
        if name in self._moments:
            return piece.state[self._moments[name]]
        return piece.grad if name == "grad" else piece.param


class Many:
    """Small tensors, laid one after the other: an operation costs as much for one as for all.

    Args:
        slots: The tensors; contiguous, alike in dtypes, rounded to nearest.
        places: Their places among all.
        moments: The key in their states of each moment, by the rule's name.
        dtype: The dtype of the arithmetic.
    """

    def __init__(
        self,
        slots: list[Slot],
        places: list[int],
        moments: Mapping[str, str],
        dtype: torch.dtype,
    ) -> None:
        self.slots = slots
        self.places = places
        self._moments = moments
        self._dtype = dtype
        self._flat: dict[str, list[Tensor]] = {}
        self._wide: Wide = {}

    @cached_property
    def sizes(self) -> list[int]:
        """The entries of each tensor."""
        return [slot.param.numel() for slot in self.slots]

    @cached_property
    def _owners(self) -> tuple[Tensor, Tensor]:
        param = self.slots[0].param
        # What is made while memory is estimated holds nothing that a later step could use.
        make = _owners if has_values(param) else _owners.__wrapped__
        return make(tuple(self.sizes), param.device)

    def averaged(self, names: Sequence[str]) -> Iterator[Wide]:
        """Yield what is averaged, by name."""
        yield self._joined(names)

    def updated(self) -> Iterator[Wide]:
        """Yield all of the tensors; what their holder leaves under each name is stored."""
        yield self._joined(("grad", "param", *self._moments))
        for name in ("param", *self._moments):
            value, stored = self._wide[name], self._flat[name]
            if stored[0].dtype is not self._dtype:
                rounded = torch.empty_like(value, dtype=stored[0].dtype)
                if name == "param":
                    rounded.copy_(value)
                else:
                    store_moment_(rounded, None, value)
                value = rounded
            torch._foreach_copy_(stored, value.split(self.sizes))

    def total(self, x: Tensor) -> Tensor:
        """Return the sum of each tensor, as a vector."""
        # In float64: the sums of segments are taken entry after entry.
        wide = x.to(torch.float64)
        return torch.segment_reduce(wide, "sum", lengths=self._owners[0]).to(x.dtype)

    def spread(self, numbers: Tensor) -> Tensor:
        """Return a vector with one number for each tensor so that it has one for each entry."""
        return numbers.index_select(0, self._owners[1])

    def _joined(self, names: Sequence[str]) -> Wide:
        for name in names:
            if name not in self._flat:
                self._flat[name] = self._views(name)
                self._wide[name] = torch.cat(self._flat[name]).to(self._dtype)
        return self._wide

    def _views(self, name: str) -> list[Tensor]:
        if name == "grad":
            return [slot.grad.reshape(-1) for slot in self.slots]
        if name == "param":
            return [slot.param.view(-1) for slot in self.slots]
        key = self._moments[name]
        return [slot.state[key].view(-1) for slot in self.slots]


# Few, and of a chunk each: who trains thousands of small tensors has the same at every step.
@lru_cache(maxsize=32)
def _owners(sizes: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the lengths of tensors laid one after the other, and of each entry the tensor."""
    lengths = torch.tensor(sizes, device="cpu")
    owner = torch.arange(len(sizes), dtype=torch.int32, device="cpu")
    owner = owner.repeat_interleave(lengths, output_size=sum(sizes))
    return lengths.to(device), owner.to(device)


def units(
    slots: Sequence[Slot],
    moments: Mapping[str, str],
    dtype: torch.dtype,
    *,
    sample: int | None,
    packed: bool,
) -> list[One | Many]:
    """Return the units of some tensors of one device and dtype.

    Args:
        slots: The tensors.
        moments: The key in their states of each moment, by the rule's name.
        dtype: The dtype of the arithmetic.
        sample: How many entries of a tensor to average at most.
        packed: Whether small tensors are taken as one.
    """
    found: list[One | Many] = []
    packs: dict[Any, tuple[list[Slot], list[int]]] = {}
    filled: dict[Any, int] = {}
    keys = tuple(moments.values())
    limit = PACKED_ENTRIES if packed else -1
    limit = limit if sample is None else min(limit, sample)
    for at, slot in enumerate(slots):
        param, grad, state, noise = slot
        size = param.numel()
        if size > limit or noise is not None or not param.is_contiguous():
            found.append(One(slot, at, moments, dtype, sample))
            continue
        stored = [state[key] for key in keys]
        if not all([each.is_contiguous() for each in stored]):  # noqa: C419 - twice as fast
            found.append(One(slot, at, moments, dtype, sample))
            continue
        kind = (grad.dtype, *[each.dtype for each in stored])
        size += filled.get(kind, 0)
        if kind not in packs or size > chunk_entries(param):
            size = param.numel()
            members = packs[kind] = ([], [])
            found.append(Many(*members, moments, dtype))
        filled[kind] = size
        packs[kind][0].append(slot)
        packs[kind][1].append(at)
    return found
