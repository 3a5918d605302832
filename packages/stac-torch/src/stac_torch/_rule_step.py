"""One step of a rule of ``stam_core`` on the tensors of a group.

Per tensor: sums over its entries, the statistics that follow from them, and the update of its
entries. The sums of all tensors come first, so that statistics are computed for all at once, and
ranks that hold parts of tensors exchange one vector.
"""

# pyright: reportPrivateImportUsage=false

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from stac_torch import _namespace
from stac_torch._dtypes import floating_dtype
from stac_torch._local import is_dtensor, shard_groups
from stac_torch._records import Slot
from stac_torch._terms import Form, Terms, calls, programs
from stac_torch._units import Many, One, units

# Statistics are computed for the tensors of so many entries at once, whose gradients and moments
# are read again from a near cache after the sums were taken.
WAVE_ENTRIES = 1 << 20


def step_(
    terms: Terms,
    slots: Sequence[Slot],
    numbers: Mapping[str, Any],
    dtype: torch.dtype,
    *,
    in_place: bool,
) -> None:
    """Take one step on tensors of one device.

    Args:
        terms: What holds for all of them.
        slots: The tensors with their counters already advanced; parts of DTensors are taken here.
        numbers: ``lr``, and ``skip`` and ``grad_scale`` where there are.
        dtype: The dtype of the arithmetic.
        in_place: Whether to run recorded programs; the values are the same.
    """
    sample = terms.hp.stat_sample if terms.rule.statistics else None
    shared = any(is_dtensor(slot.param) for slot in slots)
    first, second = programs(terms, dtype) if in_place else calls(terms)
    for wave in _waves(slots, whole=shared or torch.compiler.is_compiling()):
        # What this rank holds; with thousands of small tensors, looks at each are what costs.
        here = wave if in_place and not shared else [slot.here() for slot in wave]
        if terms.rule.by_parts:
            here = [slot.as_reals() for slot in here]
        found = units(here, dict(terms.moments), dtype, sample=sample, packed=in_place)
        members = [slot for unit in found for slot in unit.slots]
        counts = torch.stack([slot.state["step"] for slot in members])
        counts = counts.to(members[0].param.device, torch.int64)
        values: dict[str, Any] = {**numbers, "count": counts}
        if terms.rule.statistics:
            totals = _totals(found, values, first)
            sizes = [size for unit in found for size in unit.sizes]
            if shared:
                places = [at for unit in found for at in unit.places]
                sizes = [wave[at].param.numel() for at in places]
                _sum_over_ranks_(totals, wave, places)
            _advance_(terms, members, sizes, totals, values)
        _update_(found, values, second)


def _waves(slots: Sequence[Slot], *, whole: bool) -> Iterator[list[Slot]]:
    """Yield the tensors in lists; ``whole`` in one, as where ranks exchange their sums."""
    wave: list[Slot] = []
    size = 0
    for slot in slots:
        wave.append(slot)
        size += slot.param.numel()
        if size >= WAVE_ENTRIES and not whole:
            yield wave
            wave, size = [], 0
    if wave:
        yield wave


def _totals(found: Sequence[One | Many], values: Mapping[str, Any], run: Form) -> list[Tensor]:
    """Return the sums over what this rank holds of each tensor, a vector for each mean."""
    columns: list[list[Tensor]] = []
    for unit, spread in _with_numbers(found, run.prepare(values)):
        sums: list[Tensor] = []
        for wide in unit.averaged(run.wholes):
            new = run.run(wide, spread, unit.total)
            sums = [a + b for a, b in zip(sums, new, strict=True)] if sums else new
        columns.append(sums)
    return [torch.cat(column) for column in zip(*columns, strict=True)]


def _update_(found: Sequence[One | Many], values: Mapping[str, Any], run: Form) -> None:
    """Write parameters and moments."""
    for unit, spread in _with_numbers(found, run.prepare(values)):
        for wide in unit.updated():
            run.run(wide, spread, unit.total)


def _with_numbers(
    found: Sequence[One | Many], numbers: Mapping[Any, Any]
) -> Iterator[tuple[One | Many, dict[Any, Any]]]:
    """Yield each unit with the numbers of its tensors, made to broadcast against their entries."""
    start = 0
    for unit in found:
        stop = start + len(unit.slots)
        yield (
            unit,
            {k: unit.spread(v[start:stop]) if _varies(v) else v for k, v in numbers.items()},
        )
        start = stop


def _varies(value: Any) -> bool:
    """Tell whether there is one number for each tensor, and not one for all."""
    return isinstance(value, Tensor) and value.ndim == 1


def _sum_over_ranks_(totals: Sequence[Tensor], wave: Sequence[Slot], places: Sequence[int]) -> None:
    """Add what the other ranks hold of each tensor.

    Args:
        totals: The sums, in an order that depends on how much of a tensor this rank holds.
        wave: The tensors, in the order that all ranks share.
        places: Of each sum, the place of its tensor there.
    """
    alike: dict[tuple[Any, ...], list[int]] = {}
    for at in sorted(range(len(places)), key=places.__getitem__):
        groups = shard_groups(wave[places[at]].param)
        if groups:
            alike.setdefault(groups, []).append(at)
    for groups, own in alike.items():
        for total in totals:
            part = total[own]
            for group in groups:
                dist.all_reduce(part, group=group)
            total[own] = part


def _advance_(
    terms: Terms,
    members: Sequence[Slot],
    sizes: Sequence[int],
    totals: Sequence[Tensor],
    values: dict[str, Any],
) -> None:
    """Advance the statistics of all tensors, and put them into ``values``."""
    real = floating_dtype(totals[0].dtype)
    entries = torch.tensor(sizes, dtype=real, device=totals[0].device).clip_(min=1)
    averages = tuple(total / entries for total in totals)
    stored = {s.name: [m.state[s.name] for m in members] for s in terms.rule.statistics}
    before = {name: torch.stack(numbers) for name, numbers in stored.items()}
    new = terms.rule.advance(before, averages, values["count"], terms.hp, xp=_namespace)
    for name, value in new.items():
        if terms.skips:
            value = torch.where(values["skip"], before[name], value)
        torch._foreach_copy_(stored[name], value.to(stored[name][0].dtype).unbind())
        values[name] = value if value.is_complex() else value.to(real)
