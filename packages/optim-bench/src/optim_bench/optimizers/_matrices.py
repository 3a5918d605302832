"""Which matrices Muon takes: those between the embeddings and the output layer.

Convolutions, biases and norms are left to AdamW, as in Muon's own recipe; so are embeddings and the
output layer. PyTorch's modules say what is an embedding, and come in the order of the model. A tree
of JAX has names alone, and sorts them: there the words by which libraries call the two decide, and
where no name has one, the last layer by its name is the output, numbers in names counted as such.
"""

import re
from collections.abc import Iterable, Mapping, Sequence

MUON_SCALE = 0.2
_EMBEDDING = re.compile(r"embed|token|posit|vocab|wte|wpe|patch_proj|cls")
_OUTPUT = re.compile(r"head|logits|unembed|output_proj|classifier|readout")


def hidden_matrices(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the dotted names of the matrices between the embeddings and the output layer.

    Example:
        >>> shapes = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (2, 8)}
        >>> hidden_matrices(shapes)
        {'fc1.weight'}
    """
    matrices = [name for name, shape in shapes.items() if len(shape) == 2]
    inner = [name for name in matrices if not _EMBEDDING.search(name.lower())]
    output = output_layer(inner)
    return {name for name in inner if name.rpartition(".")[0] != output}


def output_layer(names: Iterable[str]) -> str:
    """Return the layer that makes the output, by what it is called, or the last by name.

    Example:
        >>> output_layer(["lm_head.weight", "up.weight"]), output_layer(["fc9.bias", "fc10.bias"])
        ('lm_head', 'fc10')
    """
    layers = sorted({name.rpartition(".")[0] for name in names}, key=_natural)
    named = [layer for layer in layers if _OUTPUT.search(layer.rpartition(".")[2].lower())]
    return (named or layers or [""])[-1]


def _natural(name: str) -> list[tuple[int, str]]:
    return [(int(part), "") if part.isdigit() else (-1, part) for part in re.split(r"(\d+)", name)]
