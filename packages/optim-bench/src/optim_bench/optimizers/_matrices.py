"""Which parameters Muon takes: decided by name and shape, the same way in both frameworks."""

from collections.abc import Mapping, Sequence

MUON_SCALE = 0.2
_NEVER = ("token.", "position.", "head.")


def hidden_matrices(shapes: Mapping[str, Sequence[int]]) -> set[str]:
    """Return the names of the matrices between the embeddings and the output layer.

    Convolutions, biases and norms are left to AdamW, as in Muon's own recipe; so are embeddings and
    the output layer, which here is `head` or the `fc` with the highest number.

    Example:
        >>> shapes = {"fc1.weight": (8, 4), "fc1.bias": (8,), "fc2.weight": (2, 8)}
        >>> hidden_matrices(shapes)
        {'fc1.weight'}
    """
    dense = sorted(name for name in shapes if name.startswith("fc") and name.endswith(".weight"))
    outputs = dense[-1:]
    return {
        name
        for name, shape in shapes.items()
        if len(shape) == 2 and name not in outputs and not name.startswith(_NEVER)
    }
