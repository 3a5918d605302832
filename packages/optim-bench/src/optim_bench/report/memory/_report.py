"""Count a preset and make its table.

The models are those on which the published pages of STAM and STAC report: chains of dense layers
with biases, float32. The first three are STAM's resource report, the last one STAC's memory probe.
State bytes depend on the shapes alone.
"""

import importlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any

from optim_bench.executors.train import environment

MEBIBYTE = 1024**2


def memory_report(preset: str, frameworks: Sequence[str]) -> dict[str, Any]:
    """Count every model and optimizer of a preset.

    Args:
        preset: a name in `PRESETS`.
        frameworks: which ones take part.

    Returns:
        What `optim-bench memory --preset --json` writes. `state_bytes` are exact and the same on
        every machine; `temporary_bytes` and `peak_bytes` are the compiler's (JAX) or the
        allocator's (CUDA), None where neither tells.
    """
    rows = list(_rows(preset, frameworks))
    versions = {k: v for f in frameworks for k, v in environment(f).items()}
    return {"schema_version": 1, "preset": preset, "rows": rows, "environment": versions}


def _rows(preset: str, frameworks: Sequence[str]) -> Iterator[dict[str, Any]]:
    for model in PRESETS[preset]:
        if model.framework not in frameworks:
            continue
        # Imported here: a framework is loaded only where it is measured.
        cases = importlib.import_module(f"optim_bench.report.memory._cases_{model.framework}")
        counted = {case: cases.measure(model, case) for case in model.cases}
        baseline = counted[model.cases[0]]
        for case, found in counted.items():
            yield {
                "model": model.name,
                "framework": model.framework,
                "optimizer": case,
                **found,
                "ratio": found["state_bytes"] / baseline["state_bytes"],
            }


def memory_markdown(data: Mapping[str, Any]) -> str:
    """Return the table of a preset.

    A peak is shown beside the state where somebody could tell it.
    """
    facts = data["environment"]
    names = [name for name in ("jax", "torch") if name in facts]
    versions = " and ".join(f"{name} {facts[name]}" for name in names)
    lines = [
        "| model | optimizer | state, bytes | MiB | to AdamW's | temporaries, MiB | peak, MiB |",
        "|---|---|--:|--:|--:|--:|--:|",
    ]
    model = None
    for row in data["rows"]:
        shown = "" if row["model"] == model else row["model"]
        model = row["model"]
        cells = [
            shown,
            row["optimizer"],
            f"{row['state_bytes']:,}",
            f"{row['state_bytes'] / MEBIBYTE:.3f}",
            f"{row['ratio']:.4f}",
            _mebibytes(row["temporary_bytes"]),
            _mebibytes(row["peak_bytes"]),
        ]
        lines.append(f"| {' | '.join(cells)} |")
    note = (
        "State bytes are exact. In JAX the peak is the compiler's, of the donated step with its "
        f"gradients; in PyTorch it is the allocator's on CUDA ({versions}, {facts['device']})."
    )
    lines += ["", note]
    return "\n".join(lines) + "\n"


def _mebibytes(value: int | None) -> str:
    return "" if value is None else f"{value / MEBIBYTE:.2f}"


@dataclass(frozen=True)
class Model:
    """A chain of dense layers.

    Args:
        name: as its published page calls it, where it has a name there.
        framework: `"jax"` or `"torch"`.
        widths: inputs of the first layer, then outputs of each.
        cases: the optimizers, AdamW first, by their name in the framework's module of cases.
    """

    name: str
    framework: str
    widths: tuple[int, ...]
    cases: tuple[str, ...]


_JAX_CASES = ("AdamW", "STAM", "STAMLite", "STAMLite, bfloat16 momentum")
_TORCH_CASES = (
    "AdamW",
    "STAC, last layer on AdamW",
    "STAC, last two layers on AdamW",
    "STAC, bfloat16 momentum",
    "STAC, int8 momentum",
    "STAC, plain sign",
)
MODELS = (
    Model("small_mlp", "jax", (64, 128, 64, 4), _JAX_CASES),
    Model("medium_mlp", "jax", (1024, 4096, 4096, 1024), _JAX_CASES),
    Model("wide_linear", "jax", (8192, 8192), _JAX_CASES),
    Model("memory probe", "torch", (256, 512, 512, 512, 512, 64, 8), _TORCH_CASES),
)
PRESETS: Mapping[str, tuple[Model, ...]] = MappingProxyType({"state-bytes": MODELS})
