"""A part of a checkpoint into trees that are not those that were saved, and its report."""

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
import pytest
from optim_checkpoint import jax as ckpt

TX = optax.adam(0.1)


def layer(seed, shape=(2, 3)):
    key = jax.random.key(seed)
    return {"w": jax.random.normal(key, shape), "b": jax.random.normal(key, shape[1:])}


def stepped(params):
    state = TX.init(params)
    return TX.update(jax.tree.map(jnp.ones_like, params), state, params)[1]


def assert_equal(one, other):
    assert jax.tree.structure(one) == jax.tree.structure(other)
    for a, b in zip(jax.tree.leaves(one), jax.tree.leaves(other), strict=True):
        assert a.dtype == b.dtype
        np.testing.assert_array_equal(a, b)


@pytest.fixture
def saved(tmp_path):
    params = {"body": layer(1), "head": layer(2)}
    state = stepped(params)
    ckpt.save(tmp_path, 1, params=params, opt_state=state)
    return tmp_path, params, state


def test_the_report_of_a_whole_restore_lists_everything_as_loaded(saved):
    path, params, state = saved
    report = ckpt.restore(path, params=params, opt_state=state).report
    assert report["params"].loaded == ("body.b", "body.w", "head.b", "head.w")
    assert "0.mu.body.b" in report["opt_state"].loaded
    assert len(report["opt_state"].loaded) == 9
    assert not any(part.missing or part.unexpected or part.cast for part in report.values())


def test_names_of_one_side_stay_and_are_listed(saved):
    path, params, state = saved
    live = {"body": layer(8), "adapter": layer(9)}
    live_state = stepped(live)
    with pytest.raises(
        oc.IncompatibleCheckpointError, match=r"adapter\.b is not in the checkpoint"
    ):
        ckpt.restore(path, params=live)
    r = ckpt.restore(path, params=live, opt_state=live_state, strict=False)
    assert_equal(r.params, {"body": params["body"], "adapter": live["adapter"]})
    assert_equal(r.opt_state[0].mu["body"], state[0].mu["body"])
    assert_equal(r.opt_state[0].mu["adapter"], live_state[0].mu["adapter"])
    part = r.report["params"]
    assert part.loaded == ("body.b", "body.w")
    assert part.missing == ("adapter.b", "adapter.w")
    assert part.unexpected == ("head.b", "head.w")
    assert {"0.mu.adapter.b", "0.nu.adapter.w"} <= {*r.report["opt_state"].missing}
    shapes = jax.eval_shape(lambda: live)
    with pytest.raises(oc.IncompatibleCheckpointError, match="template has no value for it"):
        ckpt.restore(path, params=shapes, strict=False)


@pytest.mark.parametrize("with_params", [True, False])
def test_renamed_parameters_take_their_state_along(saved, with_params):
    path, params, state = saved
    live = {"encoder": {"body": layer(8)}, "head": layer(9)}
    options = {"params": live} if with_params else {}
    r = ckpt.restore(path, opt_state=stepped(live), rename={"body": "encoder.body"}, **options)
    assert_equal(r.opt_state[0].nu["encoder"]["body"], state[0].nu["body"])
    assert r.report["opt_state"].renamed["0.mu.encoder.body.w"] == "0.mu.body.w"
    if with_params:
        assert_equal(r.params, {"encoder": {"body": params["body"]}, "head": params["head"]})


def test_only_what_a_pattern_names_is_loaded(saved):
    path, params, state = saved
    live = {"body": layer(8), "head": layer(9, (2, 5))}
    live_state = TX.init(live)
    r = ckpt.restore(path, params=live, opt_state=live_state, only="body.*")
    assert_equal(r.params, {"body": params["body"], "head": live["head"]})
    assert_equal(r.opt_state[0].mu, {"body": state[0].mu["body"], "head": live_state[0].mu["head"]})
    # The count belongs to no parameter.
    assert int(r.opt_state[0].count) == 1
    assert r.report["params"].left_out == ("head.b", "head.w")
    assert "0.nu.head.w" in r.report["opt_state"].left_out


def test_casts_are_safe_or_asked_for_by_dtype(saved):
    path, params, _ = saved
    half = jax.tree.map(lambda x: x.astype(jnp.bfloat16), params)
    with pytest.raises(oc.IncompatibleCheckpointError, match="has dtype float32 in the checkpoint"):
        ckpt.restore(path, params=half, cast="safe")
    r = ckpt.restore(path, params=half, cast=jnp.bfloat16)
    assert_equal(r.params, half)
    assert r.report["params"].cast["body.w"] == ("F32", "BF16")
    ckpt.save(path, 2, params=half)
    r = ckpt.restore(path, params=params, cast="safe")
    assert_equal(r.params, jax.tree.map(lambda x: x.astype(jnp.float32), half))


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            {"rename": {"nobody": "x"}},
            oc.IncompatibleCheckpointError,
            "rename has 'nobody', and no",
        ),
        ({"only": ["tail"]}, oc.IncompatibleCheckpointError, "only has 'tail', which no name"),
        ({"rename": {"head": "body"}}, oc.IncompatibleCheckpointError, "would both be body.b"),
        ({"rename": 3}, TypeError, "^rename is a int; it must be a mapping"),
        ({"cast": "float32"}, ValueError, "^cast is 'float32'; it must be None"),
        ({"cast": jnp.int32}, ValueError, "^cast is .*; it must be None"),
    ],
)
def test_what_stands_for_nothing_is_an_error(saved, options, error, message):
    path, params, _ = saved
    with pytest.raises(error, match=message):
        ckpt.restore(path, params=params, **options)


def test_values_beyond_the_range_of_a_cast_are_named(tmp_path):
    params = {"w": jnp.array([7e4, 1.0]), "b": jnp.array([jnp.inf, 2.0])}
    ckpt.save(tmp_path, 1, params=params)
    template = jax.tree.map(lambda leaf: leaf.astype(jnp.float16), params)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        ckpt.restore(tmp_path, params=template, cast=jnp.float16)
    assert [(type(w.message), str(w.message)) for w in caught] == [
        (
            oc.CheckpointWarning,
            "cast: params w had values beyond the range of float16, in which it is now",
        )
    ]


@pytest.mark.parametrize(
    ("dtype", "value"),
    [("float8_e4m3fn", jnp.inf), ("float8_e8m0fnu", 0.0), ("float8_e8m0fnu", -3.0)],
)
def test_a_value_that_the_dtype_of_a_cast_lacks_is_named(tmp_path, dtype, value):
    params = {"a": jnp.ones(2), "b": jnp.array([1.0, value])}
    ckpt.save(tmp_path, 1, params=params)
    template = jax.tree.map(lambda leaf: jnp.ones(leaf.shape, dtype), params)
    with pytest.warns(oc.CheckpointWarning, match="^cast: params b had values beyond"):
        ckpt.restore(tmp_path, params=template, cast=jnp.dtype(dtype))
