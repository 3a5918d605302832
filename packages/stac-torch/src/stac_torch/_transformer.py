"""The preset ``partition="transformer"``: matrices between activations by sign, the rest by AdamW.

The division that users of matrix optimizers make: embeddings, output heads, normalisation layers,
routers, and whatever has one dimension or acts as a scale keep an adaptive step. Modules tell what
they are by class; where classes say nothing (attention, experts, heads of other libraries), by the
names that the libraries have in common.
"""

import re
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from stac_torch._layers import unwrapped

# Names of modules: whole parts of a path, but for "embed" and "router", which are part of many.
_EMBEDDING = re.compile(r"embed", re.IGNORECASE)
_ROUTER = re.compile(r"(^|\.)(gate|shared_expert_gate)(\.|$)|router", re.IGNORECASE)
_HEAD = re.compile(
    r"(^|\.)(head|heads|\w+_head|classifier|score|qa_outputs|(text|visual)_projection)(\.|$)"
)
# Names of parameters that a module registers itself instead of holding a layer.
_SCALE = re.compile(
    r"^(A_log|D)$|bias|gamma|scale|lambda|token|latents|quer(y|ies)$|pos(_|ition|$)", re.IGNORECASE
)


def adaptive_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that the preset trains by AdamW."""
    model = unwrapped(model)
    outputs = set(map(id, _output_parameters(model)))
    found = set(outputs)
    last_matrix: int | None = None
    headed = bool(outputs)
    for path, module in model.named_modules(remove_duplicate=False):
        head = _HEAD.search(path) is not None
        for name, parameter in module.named_parameters(recurse=False):
            headed |= head
            if head or _is_adaptive(path, module, name, parameter):
                found.add(id(parameter))
            else:
                last_matrix = id(parameter)
    # A model of transformers without a head is a body; any other ends with its head.
    if not headed and last_matrix is not None and not hasattr(model, "get_output_embeddings"):
        found.add(last_matrix)
    return found


def _is_adaptive(path: str, module: nn.Module, name: str, parameter: Tensor) -> bool:
    if sum(size > 1 for size in parameter.shape) < 2:
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "Norm" in type(module).__name__:
        return True
    # One filter per channel scales that channel alone.
    depthwise = isinstance(module, _ConvNd) and parameter.shape[1] == 1 and module.groups > 1
    named = _EMBEDDING.search(path) or _ROUTER.search(path) or _SCALE.search(name)
    return depthwise or named is not None


def output_embeddings(model: nn.Module) -> Any:
    """Return the module that ``get_output_embeddings`` of transformers names; None without one."""
    getter = getattr(unwrapped(model), "get_output_embeddings", None)
    try:
        return None if getter is None else getter()
    except Exception:  # noqa: BLE001 - the model's own method, which may be another one of this name
        # Base classes have the method for models that have no such module.
        return None


def _output_parameters(model: nn.Module) -> Iterator[Tensor]:
    outputs = output_embeddings(model)
    if isinstance(outputs, nn.Module):
        yield from outputs.parameters()
    # In transformers what stands beside the base model is the head of a task.
    prefix = getattr(model, "base_model_prefix", "")
    base = getattr(model, prefix, None) if isinstance(prefix, str) and prefix else None
    if isinstance(base, nn.Module) and base is not model:
        inside = set(map(id, base.parameters()))
        yield from (p for p in model.parameters() if id(p) not in inside)
