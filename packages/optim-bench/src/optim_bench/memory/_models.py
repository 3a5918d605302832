"""The models of the memory report: those on which the published pages of STAM and STAC report.

A model is a chain of dense layers with biases, float32. The first three are STAM's resource report,
the last one STAC's memory probe. State bytes depend on the shapes alone.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


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
