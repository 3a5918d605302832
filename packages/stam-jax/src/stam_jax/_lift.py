"""Any rule of ``stam_core`` as an optax transformation.

The arithmetic is that of the rule's functions, called here under ``jax.jit``: statistics batch by
batch, moments and direction leaf by leaf. This module adds what JAX needs: dtypes at the edges,
statistics packed for storage, and state.
"""

import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from stam_core import Rule
from stam_core.noise import moment_key, noise_key, random_bits

from stam_jax import _dtypes, _hyperparams, _storage, _tree
from stam_jax._batches import alone, batches, cut, gather, scatter
from stam_jax._means import AxisName
from stam_jax._rounding import positions
from stam_jax._statistics import Config, first_statistics, if_taken, own_of, update_statistics
from stam_jax._storage import Coded, Stored
from stam_jax._tree import Layout, StatAxes


def lift(
    rule: Rule[Any],
    state_class: Any,
    *,
    dtypes: Mapping[str, Any] | None = None,
    stat_axes: StatAxes | None = None,
    axis_name: AxisName | None = None,
    wide: bool = False,
    seed: int = 0,
    **options: Any,
) -> optax.GradientTransformationExtraArgs:
    """Return a rule as a transformation, without learning rate, sign and weight decay.

    Args:
        rule: The rule.
        state_class: A ``NamedTuple`` with a field for each moment and statistic of the rule, and
            ``count`` where one is kept. Statistics are packed vectors: one entry per leaf (more
            with ``stat_axes``), in the order of ``jax.tree.leaves``.
        dtypes: Storage of moments by name, as ``_storage.canonical`` returns it, where the argument
            is not called as the moment with ``_dtype``.
        stat_axes: A callable (path, leaf) -> axes along which statistics are kept apart.
        axis_name: Mapped axes over which a tensor is spread.
        wide: Return the direction in the dtype of the arithmetic, and not in the gradient's.
        seed: Of the noise by which moments are rounded that are stored in a code that needs it.
        **options: Hyperparameters of the rule, and ``<moment>_dtype``, a floating dtype or None.

    Returns:
        The transformation. Its ``update`` takes ``taken``, a boolean scalar, for whoever has to
        decide whether a step is taken: where it is not, the state stays, and the direction means
        nothing.

    Raises:
        ValueError: A hyperparameter is out of range, or a dtype is not floating.
        TypeError: A hyperparameter is not a number, or a decay is a 16-bit array.
    """
    storage = dict(dtypes or {})
    for moment in rule.moments:
        name = f"{moment.name}_dtype"
        if name in options:
            storage[moment.name] = _dtypes.canonical_float(name, options.pop(name))
    hyperparams = _hyperparams.checked(rule.hyperparams, options)
    moments = rule.moments_of(hyperparams)
    slots = [slot.name for slot in (*moments, *rule.statistics)]
    missing = sorted(set(slots) - set(state_class._fields))
    if missing:
        msg = (
            f"{state_class.__name__} has no field for {missing}, which {rule.name!r} keeps: add it"
        )
        raise TypeError(msg)

    def state_of(fields: Mapping[str, Any]) -> Any:
        return state_class(**{name: fields.get(name) for name in state_class._fields})

    def init(params: Any) -> Any:
        _tree.check_floating(params, "parameter")
        fields: dict[str, Any] = {"count": jnp.zeros([], jnp.int32)}
        for moment in moments:
            fields |= _storage.start(moment, storage.get(moment.name), params)
        if rule.statistics:
            fields |= first_statistics(rule, hyperparams, params, _tree.layout(params, stat_axes))
        return state_of(fields)

    def update(
        updates: Any,
        state: Any,
        params: Any = None,
        *,
        taken: jax.Array | None = None,
        **extra: Any,
    ) -> tuple[Any, Any]:
        del params, extra
        _tree.check_floating(updates, "gradient")
        grads, treedef = jax.tree.flatten(updates)
        grads = [jnp.asarray(g) for g in grads]
        columns = {m.name: _storage.leaves_of(state, m.name, treedef, grads) for m in moments}
        held = [{name: column[i] for name, column in columns.items()} for i in range(len(grads))]
        before = state.count if "count" in state_class._fields else None
        count = None if before is None else jnp.asarray(optax.safe_increment(before))
        static, dynamic = _hyperparams.split(_hyperparams.at_step(hyperparams, before))
        packed: dict[str, jax.Array] = {}
        found = [alone(i) for i in range(len(grads))]
        if rule.statistics:
            layout = _layout(hyperparams, updates, stat_axes)
            packed = {s.name: layout.check(getattr(state, s.name)) for s in rule.statistics}
            found = batches(
                [jax.tree.leaves(leaf) for leaf in zip(grads, held, strict=True)], layout
            )

        keys = _noise_keys(updates, held, seed)
        leaves: list[Any] = [None] * len(grads)
        vectors: list[dict[str, jax.Array]] = []
        for batch in found:
            first = batch.leaves[0]
            dtype = _compute_dtype(grads[first], held[first])
            places = (batch.kept, batch.shape, batch.stacked, axis_name)
            config = Config(rule, static, dtype, wide, *places)
            new: dict[str, jax.Array] = {}
            if packed:
                read = (grads, *(columns[name] for name in rule.reads))
                parts = tuple(tuple(column[i] for i in batch.leaves) for column in read)
                own = {name: gather(x, batch) for name, x in packed.items()}
                new = update_statistics(parts, own, count, taken, dynamic, config)
                vectors.append(new)
            for i, start in zip(batch.leaves, batch.starts(), strict=True):
                leaves[i] = _update_leaf(
                    grads[i], held[i], new, start, count, taken, keys[i], dynamic, config
                )

        fields: dict[str, Any] = {"count": if_taken(taken, count, before)}
        for name in columns:
            moved = [new_moments[name] for _, new_moments in leaves]
            fields |= _storage.fields_of(state, name, treedef, moved)
        for name, vector in packed.items():
            fields[name] = scatter([new[name] for new in vectors], found, vector)
        return treedef.unflatten([direction for direction, _ in leaves]), state_of(fields)

    return optax.GradientTransformationExtraArgs(init, update)  # type: ignore[arg-type]


@functools.partial(jax.jit, static_argnames="config")
def _update_leaf(
    g: jax.Array,
    moments: dict[str, Stored],
    statistics: dict[str, jax.Array],
    start: jax.typing.ArrayLike,
    count: jax.Array,
    taken: jax.Array | None,
    key: jax.Array | None,
    dynamic: dict[str, Any],
    config: Config,
) -> tuple[jax.Array, dict[str, Stored]]:
    """Return direction and moments of one leaf.

    Args:
        g: Gradient.
        moments: The moments as they are stored.
        statistics: Those of its batch after the step; the leaf's own begin at ``start``.
        start: See there.
        count: The step being taken.
        taken: Whether it is; None for yes.
        key: That of the noise by which moments are rounded; None for those that need none.
        dynamic: Hyperparameters that are arrays.
        config: The constants.
    """
    rule, dtype = config.rule, config.dtype
    real = _dtypes.real_dtype(dtype)
    hp = _hyperparams.join(rule.hyperparams, config.hyperparams, dynamic, real)
    pairs = rule.by_parts and _dtypes.is_complex(dtype)
    exact = _storage.exact_for(moments, count)

    def parts(x: jax.Array) -> jax.Array:
        return jnp.stack([x.real, x.imag]) if pairs else x

    def whole(x: jax.Array) -> jax.Array:
        return jax.lax.complex(x[0], x[1]) if pairs else x

    kinds = {moment.name: real if moment.real else dtype for moment in rule.moments}
    g_wide = parts(rule.prepare(g.astype(dtype), hp, xp=jnp))
    old = {
        name: parts(_storage.load(x, g.shape, kinds[name], exact)) for name, x in moments.items()
    }
    own = {
        name: cut(own_of(x, config), start, config.shape).astype(_dtypes.like(x.dtype, real))
        for name, x in statistics.items()
    }
    new = rule.accumulate(g_wide, old, own, hp, xp=jnp, exact=exact)
    # Chosen before the direction is computed, which then reads what is stored: if it read both
    # moments, the old one would be copied before it is overwritten.
    new = {name: if_taken(taken, x, old[name]) for name, x in new.items()}
    d = rule.direction(g_wide, new, own, count, hp, xp=jnp)
    noise = None
    if key is not None:
        noise = random_bits(key, count.astype(jnp.uint32), *positions(g.shape), xp=jnp)
    stored = {
        name: _storage.store(whole(new[name]), x, exact, noise) for name, x in moments.items()
    }
    # Codes that are decoded and encoded are not always themselves.
    stored = {
        name: Coded(*(if_taken(taken, *pair) for pair in zip(x, moments[name], strict=True)))
        if isinstance(x, Coded)
        else x
        for name, x in stored.items()
    }
    return whole(d).astype(dtype if config.wide else g.dtype), stored


def _noise_keys(
    updates: Any, held: Sequence[Mapping[str, Stored]], seed: int
) -> list[jax.Array | None]:
    """Return the key of each leaf's noise, by its dotted path; None where no moment needs it."""
    noisy = [any(map(_storage.draws_noise, moments.values())) for moments in held]
    if not any(noisy):
        return [None] * len(noisy)
    names = [name.replace("/", ".") for name in _tree.leaf_names(updates)]
    return [
        jnp.asarray(moment_key(noise_key(seed, name)), jnp.uint32) if drawn else None
        for name, drawn in zip(names, noisy, strict=True)
    ]


def _compute_dtype(g: jax.Array, moments: Mapping[str, Stored]) -> np.dtype:
    floating = [x.dtype for x in moments.values() if not isinstance(x, Coded)]
    return _dtypes.compute_dtype(_dtypes.promote(g.dtype, *floating))


def _layout(hp: Any, updates: Any, stat_axes: StatAxes | None) -> Layout:
    if hp.stat_sample is not None:
        _tree.check_sampled(updates)
    return _tree.layout(updates, stat_axes)
