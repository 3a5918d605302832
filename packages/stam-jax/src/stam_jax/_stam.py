"""STAM as an optax transformation.

The arithmetic is that of ``stam_core`` (equations 1 to 9 of its module ``_stam``), called here
under ``jax.jit``: statistics batch by batch, moments and direction leaf by leaf. This module adds
what JAX needs: dtypes at the edges, statistics packed for storage, state, and the alias.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import stam_core
from stam_core import STAM, STAMHyperparams

from stam_jax import _dtypes, _hyperparams, _tree
from stam_jax._auto import with_auto_axes
from stam_jax._batches import batches, cut, gather, reduced, scatter, stack
from stam_jax._decay import decayed_weights
from stam_jax._means import AxisName, average_of, sample, sums_of_stored
from stam_jax._nonfinite import apply_policy
from stam_jax._tree import StatAxes


class ScaleByStamState(NamedTuple):
    """State of :func:`scale_by_stam`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree.
        nu: Second moments, the parameters' tree.
        s2: Variance proxies, a packed vector: one entry per leaf (more with ``stat_axes``), in the
            order of ``jax.tree.leaves``.
        tau: Running scales, packed.
        b1_prod: Products of all beta1 so far, packed.
        beta1: Decays used in the last step, packed.
        s: z/(1+z) of the last step, packed; z is the normalised variance.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    nu: Any
    s2: jax.Array
    tau: jax.Array
    b1_prod: jax.Array
    beta1: jax.Array
    s: jax.Array

    __packed_fields__ = ("s2", "tau", "b1_prod", "beta1", "s")


class _Config(NamedTuple):
    """The constants of one batch's programs; hashable, so that equal batches share one trace."""

    hyperparams: tuple[tuple[str, Any], ...]
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool
    axis_name: AxisName | None


@functools.partial(jax.jit, static_argnames="config")
def _residual_sums(
    gs: tuple[jax.Array, ...], mus: tuple[jax.Array, ...], count: jax.Array, config: _Config
) -> tuple[jax.Array, ...]:
    """Return the local sums of |r|^2 and |r| of leaves of one type."""
    constants = dict(config.hyperparams)
    n, parity = constants["stat_sample"], constants["parity"]
    average = average_of(len(gs), gs[0].shape, config.kept, n, config.axis_name)

    def magnitudes(*leaves: jax.Array) -> jax.Array:
        pairs = (_wide(g, mu, parity) for g, mu in zip(leaves[::2], leaves[1::2], strict=True))
        return stack([STAM.observe(g, {"mu": mu}, None, xp=jnp) for g, mu in pairs])  # type: ignore[arg-type]

    return sums_of_stored(
        magnitudes,
        functools.partial(STAM.means, xp=jnp, mean=average.total),
        [sample(x, n, config.kept) for pair in zip(gs, mus, strict=True) for x in pair],
        average.kept,
        count,
    )


@functools.partial(jax.jit, static_argnames="config")
@with_auto_axes
def _update_statistics(
    gs: tuple[jax.Array, ...],
    mus: tuple[jax.Array, ...],
    statistics: dict[str, jax.Array],
    count: jax.Array,
    dynamic: dict[str, Any],
    config: _Config,
) -> dict[str, jax.Array]:
    """Return statistics, beta1 and s of a batch of leaves after a step, each as one vector."""
    scalar = statistics["s2"].dtype
    hp = _hyperparams.join(STAMHyperparams, config.hyperparams, dynamic, scalar)

    sums = [_residual_sums(*part, count, config) for part in reduced((gs, mus), config.stacked)]
    average = average_of(1, gs[0].shape, config.kept, hp.stat_sample, config.axis_name)
    mean_square, mean_abs = (average.finish(totals) for totals in zip(*sums, strict=True))
    return STAM.advance(
        statistics, (mean_square.astype(scalar), mean_abs.astype(scalar)), count, hp, xp=jnp
    )


@functools.partial(jax.jit, static_argnames="config")
def _update_leaf(
    g: jax.Array,
    mu: jax.Array,
    nu: jax.Array,
    beta1: jax.Array,
    b1_prod: jax.Array,
    start: jax.typing.ArrayLike,
    count: jax.Array,
    dynamic: dict[str, Any],
    config: _Config,
) -> tuple[jax.Array, jax.Array, jax.Array]:
    """Return direction, mu and nu of one leaf, whose scalars begin at ``start`` of its batch."""
    real = _dtypes.real_dtype(_compute_dtype(g, mu))
    hp = _hyperparams.join(STAMHyperparams, config.hyperparams, dynamic, real)
    g_wide, mu_wide = _wide(g, mu, hp.parity)
    beta1, b1_prod = (cut(x, start, config.shape).astype(real) for x in (beta1, b1_prod))
    moments = {"mu": mu_wide, "nu": nu.astype(real)}
    d, new = STAM.update(g_wide, moments, {"beta1": beta1, "b1_prod": b1_prod}, count, hp, xp=jnp)
    return d.astype(g.dtype), new["mu"].astype(mu.dtype), new["nu"].astype(nu.dtype)


def _compute_dtype(g: jax.Array, mu: jax.Array) -> Any:
    return _dtypes.compute_dtype(_dtypes.promote(g.dtype, mu.dtype))


def _wide(g: jax.Array, mu: jax.Array, parity: str | None) -> tuple[jax.Array, jax.Array]:
    """Return gradient and first moment in the dtype of the arithmetic."""
    dtype = _compute_dtype(g, mu)
    g_wide = g.astype(dtype)
    if parity is not None:
        g_wide = stam_core.zero_nonfinite(g_wide, xp=jnp)
    return g_wide, mu.astype(dtype)


def scale_by_stam(
    b1_base: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    adapt_strength: optax.ScalarOrSchedule = 0.2,
    tau_decay: jax.typing.ArrayLike = 0.99,
    fallback_threshold: jax.typing.ArrayLike = 100.0,
    variance_eps: jax.typing.ArrayLike = 1e-8,
    statistics: str = "published",
    stat_sample: int | None = None,
    stat_axes: StatAxes | None = None,
    axis_name: AxisName | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    parity: str | None = None,
    eps_root: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by STAM, without learning rate, sign or weight decay.

    The quotient of equation (9) of the rule, (m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps), in the
    gradient's dtype. See :func:`stam` for the arguments.
    """
    _hyperparams.check_static("stat_sample", stat_sample)
    hyperparams = STAMHyperparams(
        b1_base=b1_base,
        b2=b2,
        eps=eps,
        adapt_strength=adapt_strength,
        tau_decay=tau_decay,
        fallback_threshold=fallback_threshold,
        variance_eps=variance_eps,
        statistics=statistics,  # type: ignore[arg-type]
        stat_sample=stat_sample,
        parity=parity,
        eps_root=eps_root,
    )
    _hyperparams.check_decay_precision(hyperparams)
    mu_dtype = _dtypes.canonical_float("mu_dtype", mu_dtype)
    nu_dtype = _dtypes.canonical_float("nu_dtype", nu_dtype)

    def init(params: Any) -> ScaleByStamState:
        _tree.check_floating(params, "parameter")
        size = _tree.layout(params, stat_axes).size
        dtype = _dtypes.statistics_dtype(params)
        return ScaleByStamState(
            count=jnp.zeros([], jnp.int32),
            mu=_dtypes.first_moments(params, mu_dtype),
            nu=_dtypes.second_moments(params, nu_dtype),
            s2=jnp.zeros((size,), dtype),
            tau=jnp.zeros((size,), dtype),
            b1_prod=jnp.ones((size,), dtype),
            beta1=jnp.full((size,), b1_base, dtype),
            s=jnp.zeros((size,), dtype),
        )

    def update(
        updates: Any, state: ScaleByStamState, params: Any = None, **extra: Any
    ) -> tuple[Any, ScaleByStamState]:
        del params, extra
        _tree.check_floating(updates, "gradient")
        grads, treedef = jax.tree.flatten(updates)
        grads = [jnp.asarray(g) for g in grads]
        mus = _tree.flatten_like(treedef, grads, state.mu, "the optimizer state")
        nus = treedef.flatten_up_to(state.nu)
        if stat_sample is not None:
            _tree.check_sampled(updates)
        layout = _tree.layout(updates, stat_axes)
        packed = {name: layout.check(getattr(state, name)) for name in state.__packed_fields__}
        count = jnp.asarray(optax.safe_increment(state.count))
        static, dynamic = _hyperparams.split(_hyperparams.at_step(hyperparams, state.count))

        found = batches(list(zip(grads, mus, strict=True)), layout)
        leaves: list[Any] = [None] * len(grads)
        vectors = []
        for batch in found:
            config = _Config(static, batch.kept, batch.shape, batch.stacked, axis_name)
            new = _update_statistics(
                tuple(grads[i] for i in batch.leaves),
                tuple(mus[i] for i in batch.leaves),
                {name: gather(x, batch) for name, x in packed.items()},
                count,
                dynamic,
                config,
            )
            vectors.append(new)
            for i, start in zip(batch.leaves, batch.starts(), strict=True):
                leaves[i] = _update_leaf(
                    grads[i],
                    mus[i],
                    nus[i],
                    new["beta1"],
                    new["b1_prod"],
                    start,
                    count,
                    dynamic,
                    config,
                )
        new_updates, new_mu, new_nu = zip(*leaves, strict=True) if leaves else ((), (), ())
        return treedef.unflatten(new_updates), ScaleByStamState(
            count=count,
            mu=treedef.unflatten(new_mu),
            nu=treedef.unflatten(new_nu),
            **{
                name: scatter([vector[name] for vector in vectors], found, getattr(state, name))
                for name in ScaleByStamState.__packed_fields__
            },
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def stam(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1_base: jax.typing.ArrayLike = 0.9,
    b2: jax.typing.ArrayLike = 0.999,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    *,
    mask: Any = None,
    adapt_strength: optax.ScalarOrSchedule = 0.2,
    tau_decay: jax.typing.ArrayLike = 0.99,
    fallback_threshold: jax.typing.ArrayLike = 100.0,
    variance_eps: jax.typing.ArrayLike = 1e-8,
    statistics: str = "published",
    stat_sample: int | None = None,
    stat_axes: StatAxes | None = None,
    axis_name: AxisName | None = None,
    mu_dtype: Any = None,
    nu_dtype: Any = None,
    nonfinite: str = "propagate",
    parity: str | None = None,
    eps_root: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Return STAM: AdamW whose first-moment decay follows the variance of the residual.

    Per tensor, with gradient g, first moment m, second moment v and step t = 1, 2, ...:

        r     = g - m
        s2    = b2*s2  + (1-b2)*mean(|r|^2)
        tau   = td*tau + (1-td)*mean(|r|)
        z     = min(s2, threshold*(tau^2+veps)) / (tau^2+veps)
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)
        m     = beta1*m + (1-beta1)*g
        v     = b2*v + (1-b2)*|g|^2
        P     = P*beta1
        u     = -lr * ((m/(1-P)) / (sqrt(v/(1-b2^t) + er) + eps) + wd*p)

    The update u is additive, as everywhere in optax. ``adapt_strength=0`` is AdamW. For dense noise
    z is at least 1 and beta1 settles near 0.79 whatever the data, so the control to compare with is
    AdamW with b1 tuned.

    Args:
        learning_rate: Step size lr, > 0, or a schedule of the step count.
        b1_base: Largest decay of the first moment, in (0, 1).
        b2: Decay of the second moment and of s2, in (0, 1).
        eps: Added to the root of the second moment, >= 0.
        weight_decay: Decoupled weight decay wd, >= 0, or a schedule.
        mask: Which leaves are decayed: a tree of booleans, or a callable from parameters to one.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5], or a schedule.
        tau_decay: Decay td of the running scale, in (0, 1).
        fallback_threshold: Cap on z, > 0.
        variance_eps: veps, >= 1e-30.
        statistics: "published" as above, or "corrected": bias-corrected and scale-free.
        stat_sample: Take the means over a fixed strided sample of at most this many entries of a
            tensor (per kept slice with ``stat_axes``); None for all. Saves one pass over gradient
            and momentum.
        stat_axes: A callable (path, leaf) -> axes along which statistics, and beta1, are kept
            apart: for scan-stacked layers, ``lambda path, leaf: (0,) if path.startswith("layers/")
            else ()``.
        axis_name: Mapped axis of ``jax.shard_map``, or a tuple of them, over which a tensor is
            spread; its means then run over all shards. Under ``jax.jit`` means are global already.
        mu_dtype: Storage dtype of the first moment; None for the parameter's.
        nu_dtype: Storage dtype of the second moment; None for at least float32.
        nonfinite: "propagate" as optax does; "zero" replaces non-finite gradient entries by 0;
            "skip" leaves out the whole step.
        parity: None, or "stam-optimizer-0.1.0" to reproduce the published package.
        eps_root: Added to the second moment under the root, >= 0, as in ``optax.adamw``: a gradient
            through a step needs it where an entry has had no gradient but 0.

    Returns:
        The transformation; its ``update`` needs ``params`` unless ``weight_decay`` is 0.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number, or a decay is a 16-bit array.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> optimizer = stam_jax.stam(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> loss = lambda params: jnp.sum(params["w"] ** 2)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(f"{loss(params):.4f}")
        4.4106
        3.8655
        3.3657

    References:
        The project page of stam-optimizer 0.1.0, "Core Update Rules"; the equations' numbers and
        the differences from that package stand in ``stam_core._stam``.
    """
    STAMHyperparams(learning_rate=learning_rate, weight_decay=weight_decay)
    chain = optax.chain(
        scale_by_stam(
            b1_base,
            b2,
            eps,
            adapt_strength=adapt_strength,
            tau_decay=tau_decay,
            fallback_threshold=fallback_threshold,
            variance_eps=variance_eps,
            statistics=statistics,
            stat_sample=stat_sample,
            stat_axes=stat_axes,
            axis_name=axis_name,
            mu_dtype=mu_dtype,
            nu_dtype=nu_dtype,
            parity=parity,
            eps_root=eps_root,
        ),
        decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return apply_policy(nonfinite, chain, axis_name)  # type: ignore[arg-type]
