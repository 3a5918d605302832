"""What a step costs, as far as its compiled program tells: nothing here is timed."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import stam_jax
from stam_jax._batches import LARGEST_BATCH, SMALL_LEAF, batches
from stam_jax._tree import layout

MAKERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
OPTIMIZERS = {
    **MAKERS,
    "sampled": lambda *args, **options: stam_jax.stam(*args, stat_sample=4096, **options),
}
EACH = pytest.mark.parametrize("name", OPTIMIZERS)
LARGE = {f"w{i}": (512, 600 + i) for i in range(4)}
MANY = {f"w{i:03}": (256,) for i in range(200)}
# Called multi_transform before optax 0.2.5.
partition = optax.partition if hasattr(optax, "partition") else optax.multi_transform
# Older compilers schedule and fuse otherwise: they hold up to one copy of the parameters, and
# compile a kernel for every leaf, AdamW's too.
NEW_COMPILER = jax.__version_info__ >= (0, 12)


def abstract(shapes):
    return {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}


def lowered(optimizer, params):
    """Return the lowered step of abstract parameters: update and its application, donated."""

    def step(params, state, grads):
        updates, state = optimizer.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    state = jax.eval_shape(optimizer.init, params)
    return jax.jit(step, donate_argnums=(0, 1)).trace(params, state, params)


@EACH
def test_temporaries_are_one_leaf_not_all_of_them(name):
    params = abstract(LARGE)
    memory = lowered(OPTIMIZERS[name](1e-3), params).lower().compile().memory_analysis()
    sizes = [4 * p.size for p in params.values()]
    allowed = 1.25 * max(sizes) if NEW_COMPILER else 1.01 * sum(sizes)
    assert memory.temp_size_in_bytes <= allowed, (memory.temp_size_in_bytes, allowed)
    # Donated parameters and moments are updated where they lie.
    buffers = 2 if name == "stam_lite" else 3
    assert memory.alias_size_in_bytes >= buffers * sum(sizes)


@pytest.mark.parametrize("make", [*MAKERS.values(), stam_jax.stac], ids=[*MAKERS, "stac"])
def test_a_step_that_may_be_skipped_keeps_no_old_moments_beside_the_new(make):
    params = abstract(LARGE)
    step = lowered(make(1e-3, nonfinite="skip"), params).lower().compile()
    sizes = [4 * p.size for p in params.values()]
    temporaries = step.memory_analysis().temp_size_in_bytes
    allowed = 1.25 * max(sizes) if NEW_COMPILER else 3 * sum(sizes)
    assert temporaries <= allowed, (temporaries, allowed)


def test_sampled_statistics_and_the_lite_rule_store_no_leaf():
    for name in ("sampled", "stam_lite") if NEW_COMPILER else ("sampled",):
        step = lowered(OPTIMIZERS[name](1e-3), abstract(LARGE)).lower().compile()
        assert step.memory_analysis().temp_size_in_bytes < 4 * 512 * 600 / 4, name


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_equal_small_leaves_compile_to_equal_kernels(name):
    """XLA compiles equal kernels once: 200 leaves may need no more kinds of them than one leaf."""
    step = lowered(MAKERS[name](1e-3), abstract(MANY)).lower()
    for function in ("_update_leaf", "update_statistics"):
        assert step.as_text().count(f"func.func private @{function}") == 1, function
    text = step.compile().as_text()
    # AdamW has three a leaf; the number for the scalars does not grow with the leaves.
    assert text.count(" fusion(") <= 6 * 200 + 60
    if NEW_COMPILER:
        assert len(kinds_of_fusion(text)) <= 60


def kinds_of_fusion(text):
    """Return the distinct fused computations of a compiled program, names and order aside."""
    text = re.sub(r", metadata=\{[^}]*\}", "", text)
    bodies = re.findall(r"^%\S+ \([^\n]*\{\n(.*?)^\}", text, re.MULTILINE | re.DOTALL)
    return {
        tuple(sorted(re.sub(r"%[\w.\-]+", "%", line).strip() for line in body.splitlines()))
        for body in bodies
    }


@EACH
def test_a_step_asks_nothing_of_the_host(name):
    optimizer = OPTIMIZERS[name](1e-3, nonfinite="skip")
    params = abstract(LARGE | MANY)
    traced = lowered(optimizer, params)
    primitives = set(names_of_primitives(traced.jaxpr.jaxpr))
    assert primitives.isdisjoint(
        {"pure_callback", "io_callback", "debug_callback", "infeed", "outfeed", "device_put"}
    )
    # What the callbacks are called is JAX's matter; what they become in the program is not.
    assert "custom_call" not in re.sub(r"custom_call @Sharding", "", traced.lower().as_text())


def names_of_primitives(jaxpr):
    for equation in jaxpr.eqns:
        yield equation.primitive.name
        for parameter in jax.tree.leaves(
            list(equation.params.values()), is_leaf=lambda x: hasattr(x, "eqns")
        ):
            inner = getattr(parameter, "jaxpr", parameter)
            if hasattr(inner, "eqns"):
                yield from names_of_primitives(inner)


@pytest.mark.parametrize("name", MAKERS)
def test_a_hundred_steps_of_schedules_compile_once(name):
    cosine = optax.cosine_decay_schedule(1e-2, 100)
    optimizer = MAKERS[name](
        cosine, weight_decay=cosine, adapt_strength=lambda count: 0.002 * count
    )
    params = {"b": jnp.ones(3), "w": jnp.ones((2, 3))}
    traces = []

    @jax.jit
    def step(params, state):
        traces.append(1)
        updates, state = optimizer.update(params, state, params)
        return optax.apply_updates(params, updates), state

    state = optimizer.init(params)
    for _ in range(100):
        params, state = step(params, state)
    assert len(traces) == step._cache_size() == 1
    assert int(state[0].count) == 100


@pytest.mark.parametrize("name", MAKERS)
def test_freezing_and_adding_a_leaf_compile_once_each(name):
    traces = []

    def stepper(frozen):
        labels = lambda params: {k: "frozen" if k in frozen else "train" for k in params}  # noqa: E731
        optimizer = partition({"train": MAKERS[name](1e-2), "frozen": optax.set_to_zero()}, labels)

        @jax.jit
        def step(params, state):
            traces.append(sorted(params))
            updates, state = optimizer.update(params, state, params)
            return optax.apply_updates(params, updates), state

        return optimizer, step

    def train(optimizer, step, params):
        state = optimizer.init(params)
        for _ in range(5):
            params, state = step(params, state)
        return params

    params = train(*stepper(()), {"a": jnp.ones(3), "w": jnp.ones(4)})
    optimizer, step = stepper(("a",))
    frozen = train(optimizer, step, params)
    assert len(traces) == 2
    np.testing.assert_array_equal(frozen["a"], params["a"])
    train(optimizer, step, {**frozen, "new": jnp.ones(2)})
    assert len(traces) == 3


def test_batches_hold_equal_small_leaves_up_to_a_limit():
    shapes = [(SMALL_LEAF,)] * 65 + [(SMALL_LEAF + 1,)] * 2 + [(3,), (3, 1), (3,)]
    params = [jax.ShapeDtypeStruct(shape, jnp.float32) for shape in shapes]
    # Types are those of arrays, as in an update.
    found: list = []
    jax.eval_shape(
        lambda *leaves: found.extend(batches([(x,) for x in leaves], layout(leaves, None))),
        *params,
    )
    members = [batch.leaves for batch in found]
    assert members == [tuple(range(64)), (64,), (65,), (66,), (67, 69), (68,)]
    assert LARGEST_BATCH == 64 * SMALL_LEAF


@pytest.mark.slow
@pytest.mark.parametrize("name", MAKERS)
def test_the_order_of_leaves_in_batches_is_not_that_of_the_state(name):
    """Leaves whose types alternate are batched apart; packed statistics stay in tree order."""
    rng = np.random.default_rng(0)
    shapes = {"a": (3,), "b": (2, 2), "c": (3,), "d": (0,), "e": (2, 2)}
    params = {k: jnp.asarray(rng.standard_normal(s), jnp.float32) for k, s in shapes.items()}
    optimizer = MAKERS[name](0.1)
    state = optimizer.init(params)
    alone = {k: optimizer.init({k: p}) for k, p in params.items()}
    step = jax.jit(optimizer.update)
    for t in range(3):
        grads = jax.tree.map(lambda p, t=t: p * (t + 1), params)
        updates, state = step(grads, state, params)
        for i, (k, p) in enumerate(params.items()):
            expected, alone[k] = step({k: grads[k]}, alone[k], {k: p})
            np.testing.assert_allclose(updates[k], expected[k], rtol=2e-6)
            for field in type(state[0]).__packed_fields__:
                np.testing.assert_allclose(
                    getattr(state[0], field)[i], getattr(alone[k][0], field)[0], rtol=2e-6
                )


@pytest.mark.parametrize("platform", ["cpu", "cuda", "tpu"])
def test_only_a_cpu_stores_the_residual(platform):
    traced = lowered(stam_jax.stam(1e-3), abstract({"w": (512, 600)}))
    text = traced.lower(lowering_platforms=(platform,)).as_text()
    assert ("optimization_barrier" in text) == (platform == "cpu")


@pytest.mark.parametrize("options", [{}, {"stat_axes": lambda path, leaf: (0,)}])
def test_what_is_stored_changes_no_number(options, monkeypatch):
    rng = np.random.default_rng(1)
    params = {"w": jnp.asarray(rng.standard_normal((16, 32)), jnp.float32)}
    results = []
    for limit in (0, 10**9):
        monkeypatch.setattr("stam_jax._means.NOT_WORTH_STORING", limit)
        jax.clear_caches()
        optimizer = stam_jax.stam(0.1, **options)
        state = optimizer.init(params)
        for _ in range(3):
            updates, state = optimizer.update(params, state, params)
        results.append((updates, state[0].s2, state[0].tau))
    for stored, fused in zip(*map(jax.tree.leaves, results), strict=True):
        np.testing.assert_allclose(stored, fused, rtol=2e-6)


@pytest.mark.skipif(not NEW_COMPILER, reason="older compilers fuse otherwise")
@pytest.mark.parametrize("name", [*MAKERS, "stac"])
def test_clipping_before_keeps_the_clipped_gradients_and_no_more(name):
    params = abstract(LARGE)
    make = getattr(stam_jax, name)
    alone, clipped = (
        lowered(optimizer, params).lower().compile().memory_analysis().temp_size_in_bytes
        for optimizer in (make(1e-3), optax.chain(optax.clip_by_global_norm(1.0), make(1e-3)))
    )
    assert clipped - alone <= 1.01 * sum(4 * p.size for p in params.values())
