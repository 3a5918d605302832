"""What an optimizer can tell about itself: its partition as a table, and counts of its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor

from stac_torch._int8 import saturated_share
from stac_torch._local import local
from stac_torch._partition import STACPartition


class Form(NamedTuple):
    """How a group takes its steps.

    Attributes:
        name: ``"fused"``, ``"foreach"`` or ``"loop"``.
        why: Why it is not the kernel, in one clause; empty where it is.
    """

    name: str
    why: str = ""


@dataclass
class Tally:
    """Counts over the sign section's entries in one step, kept on the device until they are read.

    Attributes:
        entries: Entries with a step to take, that is, whose sign was not 0.
        frozen: Those among them that rounding left where they were.
        agreeing: Those among them whose sign was the gradient's.
    """

    entries: Tensor | int = 0
    frozen: Tensor | int = 0
    agreeing: Tensor | int = 0

    def count(self, before: Tensor, after: Tensor, direction: Tensor, gradient: Tensor) -> None:
        """Add the entries of one tensor."""
        moving = direction != 0
        self.entries = self.entries + moving.sum()
        self.frozen = self.frozen + (moving & (before == after)).sum()
        self.agreeing = self.agreeing + (moving & (gradient.sign() == direction)).sum()

    def shares(self) -> tuple[float | None, float | None]:
        """Return the frozen and the agreeing share; None where nothing was counted."""
        entries = int(self.entries)
        if entries == 0:
            return None, None
        return int(self.frozen) / entries, int(self.agreeing) / entries


def int8_saturation(states: Sequence[Mapping[str, Any]]) -> float | None:
    """Return the share of 8-bit momentum entries at the end of the code; None without any."""
    # AdamW's moments in 8 bits have a second one.
    signs = [s for s in states if "exp_avg_scale" in s and "exp_avg_sq" not in s]
    codes = [local(s["exp_avg"]) for s in signs]
    codes = [c for c in codes if c.dtype is torch.int8 and c.numel() > 0]
    if not codes:
        return None
    entries = sum(c.numel() for c in codes)
    shares = torch.stack([saturated_share(c).double().cpu() * c.numel() for c in codes])
    return float(shares.sum()) / entries


def table(
    partition: STACPartition,
    sizes: Mapping[Tensor, int],
    forms: Mapping[Tensor, Form],
    order: Sequence[str],
) -> str:
    """Return layers as a text table: layer, role, form, parameters, state bytes, and the sums.

    Args:
        partition: The layers.
        sizes: Bytes of state of each parameter.
        forms: The form of the update of each parameter.
        order: Layer names in registration order; others come last.
    """
    layers = [(layer, "sign") for layer in partition.sign_layers]
    layers += [(layer, "adamw") for layer in partition.adamw_layers]
    rank = {name: position for position, name in enumerate(order)}
    layers.sort(key=lambda entry: rank.get(entry[0].name, len(rank)))
    cells = [("layer", "role", "form", "parameters", "state bytes")]
    reasons: dict[str, None] = {}
    total = [0, 0]
    for layer, role in layers:
        entries = sum(p.numel() for p in layer.parameters)
        size = sum(sizes[p] for p in layer.parameters)
        total = [total[0] + entries, total[1] + size]
        found = [forms[p] for p in layer.parameters if p in forms]
        names = "/".join(dict.fromkeys(form.name for form in found))
        cells.append((layer.name, role, names, f"{entries:,}", f"{size:,}"))
        reasons.update(
            dict.fromkeys(f"{role}, {form.name}: {form.why}" for form in found if form.why)
        )
    cells.append(("total", "", "", f"{total[0]:,}", f"{total[1]:,}"))
    return "\n".join([aligned(cells, left=3), *reasons])


def aligned(cells: Sequence[tuple[str, ...]], left: int) -> str:
    """Return rows of cells as text, the first ``left`` columns flush left and the others right."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        "  ".join(
            f"{cell:<{width}}" if column < left else f"{cell:>{width}}"
            for column, (cell, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    )
