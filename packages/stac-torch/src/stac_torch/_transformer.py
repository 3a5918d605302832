"""The preset ``partition="transformer"``: matrices between activations by sign, the rest by AdamW.

The division that users of matrix optimizers make: embeddings, output heads, normalisation layers,
routers, and whatever has one dimension or acts as a scale keep an adaptive step. Modules tell what
they are by class; where classes say nothing (attention, experts, heads of other libraries), by the
names that the libraries have in common. A name speaks of the module that has it and not of a whole
model inside: ``embedder`` may be an encoder, ``heads`` those of an attention.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from stac_torch._layers import clean_name, unwrapped

# Last names of modules, whole but for "embed" and "router", which are part of many.
_EMBEDDING = re.compile(r"embed", re.IGNORECASE)
_ROUTER = re.compile(r"router|^shared_expert_gate$", re.IGNORECASE)
_HEAD = re.compile(r"^(head|\w+_head|classifier|score|qa_outputs|(text|visual)_projection)$")
# What PEFT puts between the name of a layer and the layer.
_ADAPTED = re.compile(r"\.(base_layer|original_module|modules_to_save\.[^.]+)(?=\.|$)")
# Names of parameters that a module registers itself instead of holding a layer.
_SCALE = re.compile(
    r"^(A_log|D)$|bias|gamma|scale|lambda|token|latents|quer(y|ies)$|pos(_|ition|$)|embed",
    re.IGNORECASE,
)


def adaptive_parameters(model: nn.Module) -> set[int]:
    """Return the ids of the parameters that the preset trains by AdamW."""
    model = unwrapped(model)
    outputs = set(map(id, _output_parameters(model)))
    found = set(outputs)
    last: tuple[str, str] | None = None
    headed = bool(outputs)
    modules = dict(model.named_modules(remove_duplicate=False))
    owned = list(_owned(modules))
    # The layers that hold matrices, but for those whose class tells all.
    layers = {
        path: parameter
        for path, _, parameter in owned
        if _is_matrix(parameter) and not isinstance(modules[path], nn.Embedding)
    }
    named, heads = _named_layers(modules, layers)
    for path, name, parameter in owned:
        headed |= path in heads
        if path in named or path in heads or _is_adaptive(modules[path], name, parameter):
            found.add(id(parameter))
        else:
            last = path, name
    # A model of transformers without a head is a body; any other ends with its head.
    if not headed and not hasattr(model, "get_output_embeddings"):
        found.update(id(parameter) for path, name, parameter in owned if (path, name) == last)
    return found


def _owned(modules: Mapping[str, nn.Module]) -> Iterator[tuple[str, str, Tensor]]:
    """Yield each parameter with the path of its layer and its name there.

    What parametrizes a tensor belongs to the layer that has the tensor, under the tensor's name.
    """
    for path, module in modules.items():
        parts = path.split(".")
        tensor = None
        if "parametrizations" in parts[:-1]:
            at = parts.index("parametrizations")
            path, tensor = ".".join(parts[:at]), parts[at + 1]
        for name, parameter in module.named_parameters(recurse=False):
            yield path, tensor or name, parameter


def _is_matrix(parameter: Tensor) -> bool:
    return sum(size > 1 for size in parameter.shape) >= 2


def _is_adaptive(module: nn.Module, name: str, parameter: Tensor) -> bool:
    if not _is_matrix(parameter):
        return True
    if isinstance(module, (nn.Embedding, nn.EmbeddingBag)) or "Norm" in type(module).__name__:
        return True
    # One filter per channel scales that channel alone.
    if isinstance(module, _ConvNd) and module.groups > 1:
        channels = module.out_channels if module.transposed else module.in_channels
        if channels == module.groups:
            return True
    return _SCALE.search(name) is not None


def _named_layers(
    modules: Mapping[str, nn.Module], layers: Mapping[str, Tensor]
) -> tuple[set[str], set[str]]:
    """Return the paths of the layers that names call embeddings or routers, and of the heads.

    A module with such a name is one itself, or its only matrix is; the head in a sequence is its
    last. Routers may have two matrices: a second layer, or one for noise.
    """
    named: set[str] = set()
    heads: set[str] = set()
    shown = {path: _ADAPTED.sub("", clean_name(path)) for path in modules}
    by_name = {name: modules[path] for path, name in shown.items()}
    for path, module in modules.items():
        parent, _, name = shown[path].rpartition(".")
        beside = by_name.get(parent)
        if _HEAD.search(name) or _is_one_of_heads(shown[path], parent, beside):
            inside = _inside(path, layers)
            last = isinstance(module, nn.Sequential) or len(inside) == 1
            heads.update([path], inside[-1:] if last else [])
        elif _EMBEDDING.search(name):
            inside = _inside(path, layers)
            named.update([path], inside if len(inside) == 1 else [])
        elif (
            _ROUTER.search(name)
            or "Router" in type(module).__name__
            or (name == "gate" and _chooses(beside, path, layers))
        ):
            inside = _inside(path, layers)
            named.update([path], inside if len(inside) <= 2 else [])
    return named, heads


def _inside(path: str, layers: Mapping[str, Tensor]) -> Sequence[str]:
    return [layer for layer in layers if layer == path or layer.startswith(f"{path}.")]


def _is_one_of_heads(name: str, parent: str, beside: nn.Module | None) -> bool:
    """Tell whether a module is ``heads`` of the model, or one of several; not an attention's."""
    return name == "heads" or (parent == "heads" and not isinstance(beside, nn.Sequential))


def _chooses(beside: nn.Module | None, path: str, layers: Mapping[str, Tensor]) -> bool:
    """Tell whether a gate chooses between experts; that of a gated MLP is a matrix like others."""
    if beside is None:
        return False
    children = dict(beside.named_children())
    own = dict(beside.named_parameters(recurse=False))
    if any("expert" in name for name in (*children, *own)):
        return True
    counts = {len(child) for child in children.values() if isinstance(child, nn.ModuleList)}
    return any(layers[layer].shape[0] in counts for layer in _inside(path, layers)[-1:])


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
