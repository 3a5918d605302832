"""Which parameters are the output layer, and which Muon takes: the same in both frameworks."""

from collections.abc import Iterable, Mapping, Sequence

MUON_SCALE = 0.2
_NEVER = ("token.", "position.")


def hidden_matrices(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the names of the matrices between the embeddings and the output layer.

    Convolutions, biases and norms are left to AdamW, as in Muon's own recipe; so are embeddings and
    the output layer.

    Example:
        >>> shapes = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (2, 8)}
        >>> hidden_matrices(shapes)
        {'fc1.weight'}
    """
    output = output_layer(shapes)
    return {
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and name.rpartition(".")[0] != output and not name.startswith(_NEVER)
    }


def output_layer(names: Iterable[str]) -> str:
    """Return the layer that makes the output: `head`, or the last by name, as the last `fc`.

    Example:
        >>> output_layer(["head.weight", "token.weight"]), output_layer(["fc1.bias", "fc2.bias"])
        ('head', 'fc2')
    """
    layers = {name.rpartition(".")[0] for name in names}
    return "head" if "head" in layers else max(layers, default="")
