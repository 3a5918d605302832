"""Rules that the package does not know are lifted as its own: state, storage, statistics, tools."""

from dataclasses import dataclass
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec
from stam_core import Hyperparams, Moment, Report, Rule, Statistic
from stam_core._hyperparams import OPEN_UNIT, POSITIVE, integer, number
from stam_core.reference import Driver
from stam_jax._lift import lift
from stam_jax._optimizer import optimizer_of

PARAMS = {"b": jnp.asarray([0.5, -1.0, 0.25]), "w": jnp.linspace(-1, 1, 12).reshape(4, 3)}

STATELESS = Rule(
    name="sign_descent",
    hyperparams=Hyperparams,
    direction=lambda g, moments, statistics, count, hp, /, *, xp: xp.sign(g),
)


@dataclass(frozen=True, kw_only=True)
class LevelHyperparams(Hyperparams):
    b1: Any = number(0.9, OPEN_UNIT)
    gain: Any = number(2.0, POSITIVE, schedulable=True)
    stat_sample: int | None = integer(None)


def level_advance(statistics, means, count, hp, /, *, xp):
    return {"level": 0.5 * statistics["level"] + 0.5 * means[0]}


def level_accumulate(g, moments, statistics, hp, /, *, xp, exact):
    mu = hp.b1 * moments["mu"] + (1 - hp.b1) * g
    return {"mu": mu, "slow": 0.75 * moments["slow"] + 0.25 * mu}


def level_direction(g, moments, statistics, count, hp, /, *, xp):
    lead = moments["mu"] + hp.gain * moments["slow"]
    return lead / (statistics["level"] * xp.astype(count, lead.dtype))


# Two moments, and a statistic of both of them.
LEVEL = Rule(
    name="level",
    hyperparams=LevelHyperparams,
    moments=(Moment("mu", "exp_avg"), Moment("slow", "exp_avg_slow", wide=True)),
    statistics=(Statistic("level", 1.0),),
    reads=("mu", "slow"),
    observe=lambda g, moments, hp, /, *, xp: xp.abs(g - moments["mu"]) + xp.abs(moments["slow"]),
    means=lambda x, /, *, xp, mean: (mean(x),),
    advance=level_advance,
    accumulate=level_accumulate,
    direction=level_direction,
    report=lambda statistics, xp: Report(*[statistics["level"]] * 4),
)


class LevelState(NamedTuple):
    count: Any
    mu: Any
    slow: Any
    level: Any

    __rule__ = LEVEL
    __packed_fields__ = LEVEL.statistic_names


def level(learning_rate, **options):
    scale = lift(LEVEL, LevelState, **options)
    rest = {"weight_decay": 0.1, "mask": None, "nonfinite": "skip"}
    return optimizer_of(LEVEL, scale, learning_rate=learning_rate, **rest)


def gradients(steps):
    rng = np.random.default_rng(0)
    return [
        {k: rng.standard_normal(p.shape).astype(np.float32) for k, p in PARAMS.items()}
        for _ in range(steps)
    ]


def drive(optimizer, grads, params=PARAMS):
    state, update = optimizer.init(params), jax.jit(optimizer.update)
    for g in grads:
        updates, state = update(g, state, params)
        params = optax.apply_updates(params, updates)
    return params, state


def test_a_stateless_rule_needs_no_class_of_its_own():
    scale = lift(STATELESS, optax.EmptyState)
    assert scale.init(PARAMS) == optax.EmptyState()
    updates, state = jax.jit(scale.update)(PARAMS, scale.init(PARAMS))
    assert state == optax.EmptyState()
    np.testing.assert_array_equal(updates["b"], [1.0, -1.0, 1.0])


@pytest.mark.parametrize("options", [{}, {"stat_sample": 4}])
def test_a_rule_with_two_moments_and_a_statistic_is_the_drivers(options):
    grads = gradients(20)
    params, state = drive(level(0.1, **options), grads)
    driver = Driver(LEVEL, learning_rate=0.1, weight_decay=0.1, **options)
    expected = {k: np.asarray(p, np.float64) for k, p in PARAMS.items()}
    slots = driver.init(expected)
    for g in grads:
        expected, slots = driver.step(expected, {k: np.float64(x) for k, x in g.items()}, slots)
    for k in PARAMS:
        np.testing.assert_allclose(params[k], expected[k], rtol=2e-6)
        np.testing.assert_allclose(state[0].slow[k], slots[f"slow/{k}"], rtol=2e-6, atol=1e-7)
    np.testing.assert_allclose(state[0].level, [slots["level/b"], slots["level/w"]], rtol=1e-6)


def test_its_statistics_are_reported_and_stored_by_leaf():
    optimizer = level(0.1)
    params, state = drive(optimizer, gradients(3))
    assert float(stam_jax.diagnostics(state, params)["w"].scale) == state[0].level[1]
    saved = stam_jax.state_to_dict(state)
    assert {"0/slow/w", "0/level/b", "0/level/w", "0/count"} <= set(saved)
    back = stam_jax.state_from_dict(optimizer.init(PARAMS), saved)
    assert all(jax.tree.leaves(jax.tree.map(lambda a, b: bool((a == b).all()), state, back)))


def test_its_moments_are_spread_as_the_parameters():
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("data",))
    spec = {"b": PartitionSpec("data"), "w": PartitionSpec(None, "data")}
    shardings = {k: NamedSharding(mesh, s) for k, s in spec.items()}
    tree = stam_jax.state_shardings(shardings, PARAMS, level(0.1))
    assert tree[0].slow["w"].spec == tree[0].mu["w"].spec == spec["w"]
    assert tuple(tree[0].level.spec) == ()


def test_storage_is_chosen_by_the_name_of_the_moment():
    params = {"w": jnp.ones(3, jnp.bfloat16)}
    assert [x["w"].dtype for x in level(0.1).init(params)[0][1:3]] == [jnp.bfloat16, jnp.float32]
    state = level(0.1, mu_dtype="float32", slow_dtype="bfloat16").init(params)[0]
    assert [x["w"].dtype for x in state[1:3]] == [jnp.float32, jnp.bfloat16]


def test_schedules_of_any_hyperparameter_are_evaluated():
    grads = gradients(3)
    scheduled, _ = drive(level(0.1, gain=lambda count: jnp.where(count < 2, 2.0, 5.0)), grads)
    constant, _ = drive(level(0.1), grads[:2])
    assert not jnp.allclose(drive(level(0.1), grads)[0]["w"], scheduled["w"])
    at_two, _ = drive(level(0.1, gain=lambda count: jnp.where(count < 2, 2.0, 5.0)), grads[:2])
    np.testing.assert_allclose(at_two["w"], constant["w"], rtol=1e-6)


def test_a_step_that_is_not_taken_leaves_the_state_to_the_bit():
    scale = lift(LEVEL, LevelState)
    _, state = drive(scale, gradients(2))
    for taken in (False, True):
        _, new = jax.jit(scale.update)(gradients(1)[0], state, taken=jnp.asarray(taken))
        same = jax.tree.map(lambda a, b: bool((a == b).all()), state, new)
        assert all(jax.tree.leaves(same)) is not taken
        assert (new.count == state.count) == (not taken)


def test_a_state_without_a_field_for_a_slot_is_refused():
    with pytest.raises(
        TypeError, match=r"^ScaleByAdamState has no field for \['level', 'slow'\], which 'level'"
    ):
        lift(LEVEL, optax.ScaleByAdamState)


def test_what_is_no_hyperparameter_of_the_rule_is_refused():
    with pytest.raises(TypeError, match="unexpected keyword argument 'b2'"):
        lift(LEVEL, LevelState, b2=0.9)
