"""Muon for the hidden matrices, AdamW for the rest.

Written out here because optax's own has changed its arguments with almost every release, while this
benchmark runs on all of them.
"""

from typing import Any

import jax
import jax.numpy as jnp
import optax

from optim_bench.optimizers._matrices import MUON_SCALE, hidden_matrices

_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


def orthogonalize(x: jax.Array) -> jax.Array:
    """Move all singular values of a matrix near 1 by five Newton–Schulz iterations.

    X <- a X + (b A + c A^2) X with A = X X^T, from X / |X|_F (Jordan 2024, Muon).
    """
    a, b, c = _COEFFICIENTS
    tall = x.shape[0] > x.shape[1]
    x = x.T if tall else x
    x = x / (jnp.linalg.norm(x) + 1e-7)
    for _ in range(_ITERATIONS):
        gram = x @ x.T
        x = a * x + (b * gram + c * gram @ gram) @ x
    return x.T if tall else x


def scale_by_muon(momentum: float) -> optax.GradientTransformation:
    """Return the orthogonalised Nesterov momentum, with the root mean square of an AdamW update.

    m <- beta m + (1-beta) g;  u = 0.2 sqrt(max(rows, columns)) orthogonalize(beta m + (1-beta) g),
    the scale from Liu et al. 2025 (arXiv 2502.16982, equation 4).
    """

    def update(updates: Any, state: Any, params: Any = None) -> Any:
        mixed = optax.tree_utils.tree_update_moment(updates, state, momentum, 1)
        ahead = optax.tree_utils.tree_update_moment(updates, mixed, momentum, 1)
        scaled = jax.tree.map(lambda u: MUON_SCALE * max(u.shape) ** 0.5 * orthogonalize(u), ahead)
        return scaled, mixed

    def init(params: Any) -> Any:
        return jax.tree.map(jnp.zeros_like, params)

    return optax.GradientTransformation(init, update)


def _key(entry: Any) -> str:
    """Return a step of a path as text: a key, an attribute or a place."""
    return str(getattr(entry, "key", getattr(entry, "name", getattr(entry, "idx", entry))))


def muon(
    *,
    learning_rate: Any,
    momentum: float,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
) -> optax.GradientTransformation:
    """Muon with decoupled decay on the hidden matrices, AdamW elsewhere, one rate for both."""

    def labels(params: Any) -> Any:
        paths, treedef = jax.tree_util.tree_flatten_with_path(params)
        names = [".".join(map(_key, path)) for path, _ in paths]
        shapes = {n: jnp.shape(leaf) for n, (_, leaf) in zip(names, paths, strict=True)}
        hidden = hidden_matrices(shapes)
        return treedef.unflatten(["muon" if name in hidden else "adamw" for name in names])

    matrices = optax.chain(
        scale_by_muon(momentum),
        optax.add_decayed_weights(weight_decay),
        optax.scale_by_learning_rate(learning_rate),
    )
    rest = optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)
    return optax.multi_transform({"muon": matrices, "adamw": rest}, labels)
