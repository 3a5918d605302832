"""STAMLite as an optax transformation.

The arithmetic is that of ``stam_core`` (equations 1 to 5 of its module ``_stam_lite``), called here
under ``jax.jit``: statistics batch by batch, momentum and direction leaf by leaf.
"""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
import stam_core
from stam_core import STAM_LITE, STAMLiteHyperparams

from stam_jax import _dtypes, _hyperparams, _tree
from stam_jax._auto import with_auto_axes
from stam_jax._batches import batches, cut, gather, reduced, scatter, stack
from stam_jax._decay import decayed_weights
from stam_jax._means import AxisName, average_of, sample
from stam_jax._nonfinite import apply_policy
from stam_jax._tree import StatAxes


class ScaleByStamLiteState(NamedTuple):
    """State of :func:`scale_by_stam_lite`.

    Attributes:
        count: Steps taken, int32 scalar.
        mu: First moments, the parameters' tree.
        e1: Means of the gradient, a packed vector: one entry per leaf (more with ``stat_axes``), in
            the order of ``jax.tree.leaves``; complex if any leaf is.
        e2: Mean squares of the gradient, packed.
        beta1: Decays in force, packed.
        b1_prod: Products of all beta1 so far, packed.
        s: z/(1+z) of the last step, packed; z is the normalised variance.
    """

    count: jax.Array  # pyright: ignore[reportIncompatibleMethodOverride] (optax's name)
    mu: Any
    e1: jax.Array
    e2: jax.Array
    beta1: jax.Array
    b1_prod: jax.Array
    s: jax.Array

    __packed_fields__ = ("e1", "e2", "beta1", "b1_prod", "s")


class _Config(NamedTuple):
    """The constants of one batch's programs; hashable, so that equal batches share one trace."""

    hyperparams: tuple[tuple[str, Any], ...]
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool
    axis_name: AxisName | None


@functools.partial(jax.jit, static_argnames="config")
def _gradient_sums(
    gs: tuple[jax.Array, ...], mus: tuple[jax.Array, ...], config: _Config
) -> tuple[jax.Array, jax.Array]:
    """Return the local sums of g and |g|^2 of leaves of one type."""
    constants = dict(config.hyperparams)
    n, parity = constants["stat_sample"], constants["parity"]
    average = average_of(len(gs), gs[0].shape, config.kept, n, config.axis_name)
    # The two read one array in two loops, which a CPU does as fast as it can read.
    pairs = zip(gs, mus, strict=True)
    read = stack([sample(_wide(g, mu, parity), n, config.kept) for g, mu in pairs])
    return STAM_LITE.means(read, xp=jnp, mean=average.total)  # type: ignore[return-value]


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
    """Return statistics and s of a batch of leaves after a step, each as one vector."""
    scalar = statistics["e2"].dtype
    hp = _hyperparams.join(STAMLiteHyperparams, config.hyperparams, dynamic, scalar)
    sums = [_gradient_sums(*part, config) for part in reduced((gs, mus), config.stacked)]
    average = average_of(1, gs[0].shape, config.kept, hp.stat_sample, config.axis_name)
    mean_g, mean_square = (average.finish(totals) for totals in zip(*sums, strict=True))
    # A packed e1 is complex as soon as one leaf is; a real leaf's own stays real in the arithmetic.
    packed_e1 = statistics["e1"].dtype
    if not _dtypes.is_complex(mean_g.dtype):
        statistics = {**statistics, "e1": statistics["e1"].real}
    means = (mean_g.astype(statistics["e1"].dtype), mean_square.astype(scalar))
    new = STAM_LITE.advance(statistics, means, count, hp, xp=jnp)
    return {**new, "e1": new["e1"].astype(packed_e1)}


@functools.partial(jax.jit, static_argnames="config")
def _update_leaf(
    g: jax.Array,
    mu: jax.Array,
    statistics: dict[str, jax.Array],
    start: jax.typing.ArrayLike,
    count: jax.Array,
    dynamic: dict[str, Any],
    config: _Config,
) -> tuple[jax.Array, jax.Array]:
    """Return direction and mu of one leaf, whose scalars begin at ``start`` of its batch."""
    dtype = _compute_dtype(g, mu)
    real = _dtypes.real_dtype(dtype)
    hp = _hyperparams.join(STAMLiteHyperparams, config.hyperparams, dynamic, real)
    own = {
        name: cut(statistics[name], start, config.shape).astype(real)
        for name in ("beta1", "e2", "b1_prod")
    }
    moments = {"mu": mu.astype(dtype)}
    d, new = STAM_LITE.update(_wide(g, mu, hp.parity), moments, own, count, hp, xp=jnp)
    return d.astype(g.dtype), new["mu"].astype(mu.dtype)


def _compute_dtype(g: jax.Array, mu: jax.Array) -> Any:
    return _dtypes.compute_dtype(_dtypes.promote(g.dtype, mu.dtype))


def _wide(g: jax.Array, mu: jax.Array, parity: str | None) -> jax.Array:
    """Return the gradient in the dtype of the arithmetic."""
    g_wide = g.astype(_compute_dtype(g, mu))
    return g_wide if parity is None else stam_core.zero_nonfinite(g_wide, xp=jnp)


def scale_by_stam_lite(
    b1_base: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    *,
    adapt_strength: optax.ScalarOrSchedule = 0.2,
    moment_decay: jax.typing.ArrayLike = 0.99,
    beta1_update_interval: jax.typing.ArrayLike = 5,
    state_dtype: Any = "float32",
    stat_sample: int | None = None,
    stat_axes: StatAxes | None = None,
    axis_name: AxisName | None = None,
    parity: str | None = None,
    eps_root: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Rescale gradients by STAMLite, without learning rate, sign or weight decay.

    The quotient of equation (5) of the rule, (m/(1-P)) / (sqrt(e2/c + er) + eps), in the gradient's
    dtype. See :func:`stam_lite` for the arguments.
    """
    _hyperparams.check_static("stat_sample", stat_sample)
    hyperparams = STAMLiteHyperparams(
        b1_base=b1_base,
        eps=eps,
        adapt_strength=adapt_strength,
        moment_decay=moment_decay,
        beta1_update_interval=beta1_update_interval,
        stat_sample=stat_sample,
        parity=parity,
        eps_root=eps_root,
    )
    _hyperparams.check_decay_precision(hyperparams)
    state_dtype = _dtypes.canonical_float("state_dtype", state_dtype)

    def init(params: Any) -> ScaleByStamLiteState:
        _tree.check_floating(params, "parameter")
        size = _tree.layout(params, stat_axes).size
        dtype = _dtypes.statistics_dtype(params)
        any_complex = any(_dtypes.is_complex(_dtypes.dtype_of(p)) for p in jax.tree.leaves(params))
        return ScaleByStamLiteState(
            count=jnp.zeros([], jnp.int32),
            mu=_dtypes.first_moments(params, state_dtype),
            e1=jnp.zeros((size,), _dtypes.COMPLEX_OF[dtype] if any_complex else dtype),
            e2=jnp.zeros((size,), dtype),
            beta1=jnp.full((size,), b1_base, dtype),
            b1_prod=jnp.ones((size,), dtype),
            s=jnp.zeros((size,), dtype),
        )

    def update(
        updates: Any, state: ScaleByStamLiteState, params: Any = None, **extra: Any
    ) -> tuple[Any, ScaleByStamLiteState]:
        del params, extra
        _tree.check_floating(updates, "gradient")
        grads, treedef = jax.tree.flatten(updates)
        grads = [jnp.asarray(g) for g in grads]
        mus = _tree.flatten_like(treedef, grads, state.mu, "the optimizer state")
        if stat_sample is not None:
            _tree.check_sampled(updates)
        layout = _tree.layout(updates, stat_axes)
        packed = {name: layout.check(getattr(state, name)) for name in state.__packed_fields__}
        count = jnp.asarray(optax.safe_increment(state.count))
        at_step = _hyperparams.at_step(hyperparams, state.count)
        static, dynamic = _hyperparams.split(at_step)

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
                leaves[i] = _update_leaf(grads[i], mus[i], new, start, count, dynamic, config)
        new_updates, new_mu = zip(*leaves, strict=True) if leaves else ((), ())
        return treedef.unflatten(new_updates), ScaleByStamLiteState(
            count=count,
            mu=treedef.unflatten(new_mu),
            **{
                name: scatter([vector[name] for vector in vectors], found, getattr(state, name))
                for name in ScaleByStamLiteState.__packed_fields__
            },
        )

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


def stam_lite(
    learning_rate: optax.ScalarOrSchedule = 1e-3,
    b1_base: jax.typing.ArrayLike = 0.9,
    eps: jax.typing.ArrayLike = 1e-8,
    weight_decay: optax.ScalarOrSchedule = 0.01,
    *,
    mask: Any = None,
    adapt_strength: optax.ScalarOrSchedule = 0.2,
    moment_decay: jax.typing.ArrayLike = 0.99,
    beta1_update_interval: jax.typing.ArrayLike = 5,
    state_dtype: Any = "float32",
    stat_sample: int | None = None,
    stat_axes: StatAxes | None = None,
    axis_name: AxisName | None = None,
    nonfinite: str = "propagate",
    parity: str | None = None,
    eps_root: jax.typing.ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Return STAMLite: adaptive momentum over a denominator that is one number per tensor.

    Per tensor, with gradient g, first moment m and step t = 1, 2, ...:

        e1    = md*e1 + (1-md)*mean(g),   e2 = md*e2 + (1-md)*mean(|g|^2),   c = 1 - md^t
        z     = max(e2/c - |e1/c|^2, 0) / (e2/c + eps)
        beta1 = clip(b1*(1 - a*z/(1+z)), min(b1, max(0.5, b1*(1-a))), b1)   at t = 1, k+1, 2k+1, ...
        m     = beta1*m + (1-beta1)*g,    P = P*beta1
        u     = -lr * ((m/(1-P)) / (sqrt(e2/c + er) + eps) + wd*p)

    State is one buffer per parameter. Its peers are NovoGrad and Adam-mini: without a second moment
    per entry it is not AdamW with less memory.

    Args:
        learning_rate: Step size lr, > 0, or a schedule of the step count.
        b1_base: Largest decay of the first moment, in (0, 1).
        eps: Added to the denominators, >= 1e-30.
        weight_decay: Decoupled weight decay wd, >= 0, or a schedule.
        mask: Which leaves are decayed: a tree of booleans, or a callable from parameters to one.
        adapt_strength: How far beta1 may fall below ``b1_base``, in [0, 0.5], or a schedule.
        moment_decay: Decay md of the gradient's moments, in (0, 1).
        beta1_update_interval: Steps k between two updates of beta1, >= 1.
        state_dtype: Storage dtype of m, a floating dtype or its name; None for the parameter's. The
            scalars are never stored in less than float32.
        stat_sample: Take the means over a fixed strided sample of at most this many entries of a
            tensor; None for all.
        stat_axes: A callable (path, leaf) -> axes along which statistics are kept apart.
        axis_name: Mapped axis of ``jax.shard_map``, or a tuple of them, over which a tensor is
            spread.
        nonfinite: "propagate", "zero" or "skip".
        parity: None, or "stam-optimizer-0.1.0" to reproduce the published package.
        eps_root: Added to the mean square under the root, >= 0.

    Returns:
        The transformation; its ``update`` needs ``params`` unless ``weight_decay`` is 0.

    Raises:
        ValueError: A hyperparameter is out of range.
        TypeError: A hyperparameter is not a number, or a decay is a 16-bit array.

    Example:
        >>> import jax, jax.numpy as jnp, optax, stam_jax
        >>> optimizer = stam_jax.stam_lite(learning_rate=0.1)
        >>> params = {"w": jnp.asarray([1.0, -2.0])}
        >>> state = optimizer.init(params)
        >>> loss = lambda params: jnp.sum(params["w"] ** 2)
        >>> for _ in range(3):
        ...     updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        ...     params = optax.apply_updates(params, updates)
        ...     print(f"{loss(params):.4f}")
        4.3782
        3.8003
        3.2672

    References:
        The project page of stam-optimizer 0.1.0, "STAMLite Approximation"; Ginsburg et al. (2019),
        NovoGrad; Zhang et al. (2024), Adam-mini.
    """
    STAMLiteHyperparams(learning_rate=learning_rate, weight_decay=weight_decay)
    chain = optax.chain(
        scale_by_stam_lite(
            b1_base,
            eps,
            adapt_strength=adapt_strength,
            moment_decay=moment_decay,
            beta1_update_interval=beta1_update_interval,
            state_dtype=state_dtype,
            stat_sample=stat_sample,
            stat_axes=stat_axes,
            axis_name=axis_name,
            parity=parity,
            eps_root=eps_root,
        ),
        decayed_weights(weight_decay, mask),
        optax.scale_by_learning_rate(learning_rate),
    )
    return apply_policy(nonfinite, chain, axis_name)  # type: ignore[arg-type]
