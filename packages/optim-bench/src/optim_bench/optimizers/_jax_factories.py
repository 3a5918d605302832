"""Factories of the JAX optimizers: keywords in, an optax transformation out."""

from typing import Any

import jax
import jax.numpy as jnp
import optax
import optax.contrib
import stam_jax
from stam_core import HYBRID_SIGN_LR_SCALE

from optim_bench.optimizers._matrices import MUON_SCALE, hidden_matrices, output_layer

Transformation = optax.GradientTransformation


def adamw(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """AdamW as optax has it."""
    return optax.adamw(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def adam(*, learning_rate: Any, b1: float, b2: float, eps: float) -> Transformation:
    """Adam as optax has it."""
    return optax.adam(learning_rate, b1=b1, b2=b2, eps=eps)


def nadam(*, learning_rate: Any, b1: float, b2: float, eps: float) -> Transformation:
    """NAdam as optax has it."""
    return optax.nadam(learning_rate, b1=b1, b2=b2, eps=eps)


def sgd(*, learning_rate: Any, momentum: float) -> Transformation:
    """Heavy-ball SGD."""
    return optax.sgd(learning_rate, momentum=momentum)


def rmsprop(*, learning_rate: Any, decay: float, eps: float) -> Transformation:
    """RMSProp as optax has it."""
    return optax.rmsprop(learning_rate, decay=decay, eps=eps)


def adagrad(*, learning_rate: Any, eps: float) -> Transformation:
    """Adagrad as optax has it."""
    return optax.adagrad(learning_rate, eps=eps)


def novograd(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """NovoGrad as optax has it: one second moment per tensor."""
    return optax.novograd(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def lamb(
    *, learning_rate: Any, b1: float, b2: float, eps: float, weight_decay: float
) -> Transformation:
    """LAMB as optax has it."""
    return optax.lamb(learning_rate, b1=b1, b2=b2, eps=eps, weight_decay=weight_decay)


def lion(*, learning_rate: Any, b1: float, b2: float, weight_decay: float) -> Transformation:
    """Lion as optax has it."""
    return optax.lion(learning_rate, b1=b1, b2=b2, weight_decay=weight_decay)


def schedule_free_adamw(
    *,
    learning_rate: Any,
    b1: float,
    b2: float,
    eps: float,
    weight_decay: float,
    warmup_steps: int,
) -> Transformation:
    """Schedule-Free AdamW as optax has it, with its own linear warmup."""
    return optax.contrib.schedule_free_adamw(
        learning_rate,
        warmup_steps=warmup_steps,
        b1=b1,
        b2=b2,
        eps=eps,
        weight_decay=weight_decay,
    )


def schedule_free_parameters(state: Any, params: Any) -> Any:
    """Return the averaged parameters, which are the ones to judge."""
    return optax.contrib.schedule_free_eval_params(state, params)


def stac(*, learning_rate: Any, **rest: Any) -> optax.GradientTransformation:
    """STAC over a flat tree of parameters, whose dotted names JAX does not take apart."""
    return stam_jax.stac(
        learning_rate, partition=_sections, sign_lr_scale=HYBRID_SIGN_LR_SCALE, **rest
    )


def _sections(tree: dict[str, Any]) -> dict[str, str]:
    output = output_layer(tree)
    return {name: "adamw" if name.rpartition(".")[0] == output else "sign" for name in tree}


_COEFFICIENTS = (3.4445, -4.775, 2.0315)
_ITERATIONS = 5


# Muon is written out because optax's own has changed its arguments with almost every release, while
# this benchmark runs on all of them.
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
