"""The statistics of a lifted rule: packed in vectors, advanced batch by batch."""

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from stam_core import Rule

from stam_jax import _dtypes, _hyperparams
from stam_jax._auto import with_auto_axes
from stam_jax._batches import reduced, stack
from stam_jax._means import AxisName, average_of, sample, sums_of_stored
from stam_jax._tree import Layout


class Config(NamedTuple):
    """The constants of one batch's programs; hashable, so that equal batches share one trace."""

    rule: Rule[Any]
    hyperparams: _hyperparams.Static
    dtype: np.dtype
    wide: bool
    kept: tuple[int, ...]
    shape: tuple[int, ...]
    stacked: bool
    axis_name: AxisName | None


def first_statistics(rule: Rule[Any], hp: Any, params: Any, layout: Layout) -> dict[str, Any]:
    """Return the statistics before the first step, packed."""
    dtype = _dtypes.statistics_dtype(params)
    any_complex = any(_dtypes.is_complex(_dtypes.dtype_of(p)) for p in jax.tree.leaves(params))
    values = {}
    for s in rule.statistics:
        start = getattr(hp, s.initial) if isinstance(s.initial, str) else s.initial
        own = _dtypes.COMPLEX_OF[dtype] if s.complex and any_complex else dtype
        values[s.name] = jnp.full((layout.size,), start, own)
    return values


@functools.partial(jax.jit, static_argnames="config")
def _local_sums(
    columns: tuple[tuple[jax.Array, ...], ...],
    count: jax.Array,
    dynamic: dict[str, Any],
    config: Config,
) -> tuple[jax.Array, ...]:
    """Return the sums over a shard from which the means of leaves of one type are made."""
    rule, gs = config.rule, columns[0]
    real = _dtypes.real_dtype(config.dtype)
    hp = _hyperparams.join(rule.hyperparams, config.hyperparams, dynamic, real)
    average = average_of(len(gs), gs[0].shape, config.kept, hp.stat_sample, config.axis_name)

    def observe(leaf: tuple[jax.Array, ...]) -> jax.Array:
        g, *moments = (x.astype(config.dtype) for x in leaf)
        read = dict(zip(rule.reads, moments, strict=True))
        return rule.observe(rule.prepare(g, hp, xp=jnp), read, hp, xp=jnp)

    def observe_all(*arrays: jax.Array) -> jax.Array:
        n = len(columns)
        return stack([observe(arrays[i : i + n]) for i in range(0, len(arrays), n)])

    read = [
        sample(x, hp.stat_sample, config.kept) for leaf in zip(*columns, strict=True) for x in leaf
    ]
    sums = functools.partial(rule.means, xp=jnp, mean=average.total)
    if not rule.reads:
        # Several loops over one array, which a CPU does as fast as it can read.
        return sums(observe_all(*read))
    return sums_of_stored(observe_all, sums, read, average.kept, count)


@functools.partial(jax.jit, static_argnames="config")
@with_auto_axes
def update_statistics(
    columns: tuple[tuple[jax.Array, ...], ...],
    statistics: dict[str, jax.Array],
    count: jax.Array,
    taken: jax.Array | None,
    dynamic: dict[str, Any],
    config: Config,
) -> dict[str, jax.Array]:
    """Return the statistics of a batch of leaves after a step, each as one vector.

    Args:
        columns: The gradients of the batch, and the moments that the rule observes with them.
        statistics: Those before the step.
        count: The step being taken.
        taken: Whether it is; None for yes.
        dynamic: Hyperparameters that are arrays.
        config: The constants.
    """
    rule = config.rule
    scalar = _dtypes.real_dtype(next(iter(statistics.values())).dtype)
    hp = _hyperparams.join(rule.hyperparams, config.hyperparams, dynamic, scalar)
    sums = [_local_sums(part, count, dynamic, config) for part in reduced(columns, config.stacked)]
    average = average_of(1, columns[0][0].shape, config.kept, hp.stat_sample, config.axis_name)
    means = [average.finish(totals) for totals in zip(*sums, strict=True)]
    new = rule.advance(
        {name: own_of(x, config) for name, x in statistics.items()},
        tuple(x.astype(_dtypes.like(x.dtype, scalar)) for x in means),
        count,
        hp,
        xp=jnp,
    )
    return {
        name: if_taken(taken, x.astype(statistics[name].dtype), statistics[name])
        for name, x in new.items()
    }


def own_of(statistic: jax.Array, config: Config) -> jax.Array:
    """Return a packed statistic as these leaves have it.

    It is complex as soon as one leaf is; a real leaf's own stays real in the arithmetic.
    """
    complex_ = _dtypes.is_complex(statistic.dtype) and not _dtypes.is_complex(config.dtype)
    return statistic.real if complex_ else statistic


def if_taken(taken: jax.Array | None, new: Any, old: Any) -> Any:
    """Return what a step leaves, where it is taken or else was there before."""
    return new if taken is None or new is None else jnp.where(taken, new, old)
