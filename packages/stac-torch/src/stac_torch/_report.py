"""What an optimizer can tell about itself: its partition as a table, and counts of its steps."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from stac_torch._int8 import saturated_share
from stac_torch._local import local
from stac_torch._partition import LayerGroup


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
    codes = [local(s["exp_avg"]) for s in states if "exp_avg_scale" in s]
    codes = [c for c in codes if c.numel() > 0]
    if not codes:
        return None
    entries = sum(c.numel() for c in codes)
    shares = torch.stack([saturated_share(c).double().cpu() * c.numel() for c in codes])
    return float(shares.sum()) / entries


def table(rows: Sequence[tuple[LayerGroup, str, int]]) -> str:
    """Return layers as a text table: layer, role, parameters, state bytes, and the sum."""
    cells = [("layer", "role", "parameters", "state bytes")]
    for layer, role, size in rows:
        entries = sum(p.numel() for p in layer.parameters)
        cells.append((layer.name, role, f"{entries:,}", f"{size:,}"))
    total = sum(p.numel() for layer, _, _ in rows for p in layer.parameters)
    cells.append(("total", "", f"{total:,}", f"{sum(size for _, _, size in rows):,}"))
    widths = [max(len(row[column]) for row in cells) for column in range(4)]
    return "\n".join(
        f"{name:<{widths[0]}}  {role:<{widths[1]}}  {n:>{widths[2]}}  {size:>{widths[3]}}"
        for name, role, n, size in cells
    )
