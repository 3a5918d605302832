"""Which leaf is trained by sign and which by AdamW: layers by path, in the order of the tree.

A layer is what stands above a leaf's last key: ``dense/kernel`` and ``dense/bias`` are the layer
``dense``; leaves at the top are ``"<root>"``.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import KW_ONLY, dataclass
from fnmatch import fnmatchcase
from typing import Any, TypeAlias, cast

import jax
import jax.numpy as jnp
from jax.tree_util import GetAttrKey
from stam_core import ROLES, STACRole

ROOT = "<root>"

Partition: TypeAlias = Callable[[Any], Any] | Mapping[str, Any] | Sequence[Any] | str | None
"""None, a callable from parameters to a tree of roles, or a tree (or a prefix of one) of roles."""


@dataclass(frozen=True)
class LastLayers:
    """The partition that puts the last layers, by tree order, on AdamW.

    JAX sorts the keys of a dictionary, so the last layer of a tree need not be the one that makes
    the output: look at :func:`describe`, and name the head where it is another.

    Args:
        count: How many of the last layers take AdamW, >= 0. None is 1, unless ``ratio`` is given.
        ratio: The share of the layers that takes AdamW instead, in (0, 1], rounded down, at least
            one layer.
        adamw: Layers trained by AdamW wherever they stand, with all that they contain: paths, or
            shell patterns of paths, such as ``"decoder/*/router"``.
        sign: Likewise for the sign update.
        norms_on_adamw: Train every layer by AdamW whose last key contains "norm", in any case.

    Called with parameters, it returns a tree of ``"sign"`` and ``"adamw"``, in which named layers
    count among the last ones; its ``ValueError`` names a pattern that matches no layer, or a layer
    that is named twice.

    Raises:
        ValueError: A number is out of range, or both were given.
        TypeError: ``count`` is not an integer, or patterns came as one string.

    Example:
        >>> import jax.numpy as jnp
        >>> x = jnp.zeros(2)
        >>> params = {"body": {"w": x}, "head": {"w": x}, "norm": {"scale": x}}
        >>> LastLayers()(params)
        {'body': {'w': 'sign'}, 'head': {'w': 'sign'}, 'norm': {'scale': 'adamw'}}
        >>> LastLayers(0, adamw=["head"], norms_on_adamw=True)(params)
        {'body': {'w': 'sign'}, 'head': {'w': 'adamw'}, 'norm': {'scale': 'adamw'}}
    """

    count: int | None = None
    _: KW_ONLY
    ratio: float | None = None
    adamw: Sequence[str] = ()
    sign: Sequence[str] = ()
    norms_on_adamw: bool = False

    def __post_init__(self) -> None:
        _check_numbers(self.count, self.ratio)
        for option, patterns in (("adamw", self.adamw), ("sign", self.sign)):
            if isinstance(patterns, str):
                msg = (
                    f"{option} must be a sequence, got the string {patterns!r}: write "
                    f"[{patterns!r}]"
                )
                raise TypeError(msg)

    def __call__(self, params: Any) -> Any:
        """Return the tree of roles."""
        names, treedef = layer_names(params)
        layers = list(dict.fromkeys(names))
        on_adamw = _matching(layers, self.adamw, "adamw")
        on_sign = _matching(layers, self.sign, "sign")
        both = sorted(on_adamw & on_sign)
        if both:
            msg = f"adamw and sign both name {both}: take each layer out of one of them"
            raise ValueError(msg)
        if self.norms_on_adamw:
            norms = {layer for layer in layers if "norm" in layer.rpartition("/")[2].lower()}
            on_adamw |= norms - on_sign
        last = 1 if self.count is None else self.count
        if self.ratio is not None:
            last = max(1, math.floor(self.ratio * len(layers)))
        on_adamw |= set(layers[max(0, len(layers) - last) :]) - on_sign
        return treedef.unflatten(["adamw" if name in on_adamw else "sign" for name in names])


def _check_numbers(count: int | None, ratio: float | None) -> None:
    if count is not None and ratio is not None:
        msg = f"give count={count!r} or ratio={ratio!r}, not both"
        raise ValueError(msg)
    if count is not None and (isinstance(count, bool) or not isinstance(count, int)):
        msg = f"count must be an integer, got {count!r} ({type(count).__name__})"
        raise TypeError(msg)
    if count is not None and count < 0:
        msg = f"count must be >= 0, got {count}: 0 trains every layer by sign"
        raise ValueError(msg)
    if ratio is not None and not 0 < ratio <= 1:
        msg = f"ratio must be in (0, 1], got {ratio!r}: count=0 is all sign"
        raise ValueError(msg)


def layer_names(tree: Any) -> tuple[list[str], Any]:
    """Return the layer of every leaf, and the structure of the tree."""
    paths, treedef = jax.tree_util.tree_flatten_with_path(tree)
    return [_layer(path) for path, _ in paths], treedef


def _layer(path: Sequence[Any]) -> str:
    # The variable in which Flax NNX keeps an array is no part of a layer's name.
    own = path[:-1] if path and path[-1] == GetAttrKey("value") else path
    return jax.tree_util.keystr(tuple(own[:-1]), simple=True, separator="/") or ROOT


def _matching(layers: Sequence[str], patterns: Sequence[str], option: str) -> set[str]:
    found: set[str] = set()
    for pattern in patterns:
        hits = {layer for layer in layers if _selects(pattern, layer)}
        if layers and not hits:
            msg = f"{option}: {pattern!r} matches no layer; the layers are {list(layers)}"
            raise ValueError(msg)
        found |= hits
    return found


def _selects(pattern: str, layer: str) -> bool:
    parts = layer.split("/")
    return any(fnmatchcase("/".join(parts[: depth + 1]), pattern) for depth in range(len(parts)))


def roles_of(partition: Partition, params: Any) -> Any:
    """Return a tree of roles for ``params``, one role for each leaf.

    Raises:
        ValueError: A role is unknown, or the tree of roles does not fit the parameters.
    """
    if not jax.tree.leaves(params):
        # No leaves, no roles: optax finds the moments in a state by an init of such a tree.
        return params
    chosen = LastLayers() if partition is None else partition
    # A model of roles may be callable, too, as Equinox's modules are.
    held = jax.tree.leaves(chosen)
    is_tree = bool(held) and all(isinstance(role, str) for role in held)
    roles = chosen(params) if callable(chosen) and not is_tree else chosen
    try:
        spread = jax.tree.map(
            lambda role, part: jax.tree.map(lambda _: role, part),
            roles,
            params,
            is_leaf=lambda x: isinstance(x, str),
        )
    except (ValueError, TypeError, KeyError) as error:
        msg = (
            f"the partition does not fit the parameters ({error}): give a role for every leaf, or "
            "for whole branches"
        )
        raise ValueError(msg) from error
    for role in jax.tree.leaves(spread):
        if role not in ROLES:
            msg = f"a partition holds 'sign' or 'adamw', got {role!r}"
            raise ValueError(msg)
    return spread


def layer_table(params: Any, roles: Any, sizes: Sequence[int]) -> str:
    """Return the layers as a text table: layer, role, parameters, state bytes, and the sums."""
    names, _ = layer_names(params)
    rows: dict[tuple[str, STACRole], list[int]] = {}
    leaves = zip(names, jax.tree.leaves(roles), jax.tree.leaves(params), sizes, strict=True)
    for name, role, leaf, size in leaves:
        row = rows.setdefault((name, cast("STACRole", role)), [0, 0])
        row[0] += math.prod(jnp.shape(leaf))
        row[1] += size
    total = [sum(column) for column in zip(*rows.values(), strict=True)] or [0, 0]
    cells = [("layer", "role", "parameters", "state bytes")]
    cells += [(name, role, f"{n:,}", f"{size:,}") for (name, role), (n, size) in rows.items()]
    cells.append(("total", "", f"{total[0]:,}", f"{total[1]:,}"))
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    return "\n".join(
        f"{name:<{widths[0]}}  {role:<{widths[1]}}  {n:>{widths[2]}}  {size:>{widths[3]}}"
        for name, role, n, size in cells
    )
