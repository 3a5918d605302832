"""The registry holds what it declares: every optimizer trains and keeps exactly its state."""

import numpy as np
import pytest
from optim_bench.executors.train import open_session, train
from optim_bench.optimizers import OPTIMIZERS, OptimizerInfo, resolve
from optim_bench.optimizers._matrices import hidden_matrices
from optim_bench.records import RunSpec
from optim_bench.tasks.built_in import WORKLOADS

# digits-noisy is an MLP 64-128-128-10: six tensors, 26,122 entries, of which the hidden matrices
# fc1 and fc2 hold 24,576 and the output layer fc3 1,290.
ENTRIES, TENSORS, HIDDEN, LAST = 26_122, 6, 8_192 + 16_384, 1_290
ONE, TWO = 4 * ENTRIES, 8 * ENTRIES
STAC = 4 * (ENTRIES - LAST) + 8 * LAST + 2 * 4
# One byte per entry of the two matrices, a float32 scale per row (128 each), float32 biases.
STAC_INT8 = HIDDEN + 2 * 128 * 4 + 2 * 128 * 4 + 8 * LAST + 2 * 4
# Exact bytes of state. optax counts steps in one int32, torch's AdamW in a float32 per tensor.
STATE_BYTES = {
    "jax/stam": TWO + 5 * 4 * TENSORS + 4,
    "jax/stam_corrected": TWO + 5 * 4 * TENSORS + 4,
    "jax/stac": STAC,
    "jax/stac_int8": STAC_INT8,
    "jax/stam_fixed": TWO + 5 * 4 * TENSORS + 4,
    "jax/stam_const_beta": TWO + 5 * 4 * TENSORS + 4,
    "jax/stam_lite": ONE + 5 * 4 * TENSORS + 4,
    "jax/adamw": TWO + 4,
    "jax/adamw_b1_079": TWO + 4,
    "jax/adam": TWO + 4,
    "jax/nadam": TWO + 4,
    "jax/sgd": ONE,
    "jax/rmsprop": ONE,
    "jax/adagrad": ONE,
    "jax/novograd": ONE + 4 * TENSORS + 4,
    "jax/lamb": TWO + 4,
    "jax/lion": ONE + 4,
    "jax/muon": 4 * HIDDEN + 8 * (ENTRIES - HIDDEN) + 4,
    # z and the second moment, three scalars of the averaging and three counters.
    "jax/schedule_free_adamw": TWO + 6 * 4,
    "torch/stac": STAC,
    # Half of three layers is one.
    "torch/stac_wide": STAC,
    "torch/stac_no_decay": STAC,
    "torch/stac_plain": 8 * LAST + 2 * 4,
    "torch/stac_int8": STAC_INT8,
    # Five statistics and a step per tensor.
    "torch/stam": TWO + 6 * 4 * TENSORS,
    "torch/stam_lite": ONE + 6 * 4 * TENSORS,
    "torch/adamw": TWO + 4 * TENSORS,
    "torch/sgd": ONE,
    "torch/lion": ONE,
    "torch/signum": ONE,
    "torch/muon": 4 * HIDDEN + 8 * (ENTRIES - HIDDEN) + 4 * (TENSORS - 2),
    # Row and column factors of three matrices, whole second moments of three biases.
    "torch/adafactor": 4 * (128 + 64 + 128 + 128 + 10 + 128 + 128 + 128 + 10) + 4 * TENSORS,
}


def make_spec(info: OptimizerInfo, workload: str = "digits-noisy", steps: int = 100) -> RunSpec:
    return RunSpec(
        workload=workload,
        workload_version=1,
        framework=info.framework,
        optimizer=info.name,
        hyperparameters={"learning_rate": info.learning_rate},
        seed=0,
        steps=steps,
        schedule=info.schedule or WORKLOADS[workload].schedule,
    )


# On the newest Python all of them; elsewhere each family once, with its own kind of state.
EVERYWHERE = {
    *("jax/stam", "jax/stam_lite", "jax/stac", "jax/adamw", "jax/schedule_free_adamw"),
    *("torch/stac", "torch/stac_int8", "torch/stam", "torch/adamw", "torch/muon"),
}
KEYS = [
    pytest.param(key, marks=[] if key in EVERYWHERE else [pytest.mark.slow]) for key in OPTIMIZERS
]


@pytest.mark.parametrize("key", KEYS)
def test_optimizer_trains_and_keeps_exactly_its_state(key):
    record = train(make_spec(OPTIMIZERS[key]))

    assert record.error is None
    assert record.status == "ok"
    assert record.metrics["val_loss"] < record.curve["val_loss"][0]
    assert record.state_bytes == STATE_BYTES[key]


# Of one shape, for which eager JAX compiles each operation once.
ALIKE = {"fc1": (6, 6), "fc2": (6, 6), "fc3": (6, 6)}
DIFFERENT = {"fc1": (6, 5), "fc2": (7, 6), "fc3": (3, 7)}


def path(info: OptimizerInfo, steps: int = 4, shapes=ALIKE, **changes):
    """Parameters after some steps on given gradients, without a model or a compiler."""
    hyperparameters = info.validate({"learning_rate": 0.1, **changes})
    rng = np.random.default_rng(0)
    start = {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
    gradients = [
        {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}
        for _ in range(steps)
    ]
    run = jax_path if info.framework == "jax" else torch_path
    return run(info.load_factory(), hyperparameters, start, gradients)


def jax_path(factory, hyperparameters, start, gradients):
    import jax.numpy as jnp
    import optax

    transformation = factory(**hyperparameters)
    params = {f"{name}.weight": jnp.asarray(value) for name, value in start.items()}
    state = transformation.init(params)
    for gradient in gradients:
        named = {f"{name}.weight": jnp.asarray(value) for name, value in gradient.items()}
        updates, state = transformation.update(named, state, params)
        params = optax.apply_updates(params, updates)
    return np.concatenate([np.asarray(value).ravel() for value in params.values()])


def torch_path(factory, hyperparameters, start, gradients):
    import torch

    module = torch.nn.Module()
    for name, value in start.items():
        layer = torch.nn.Linear(value.shape[1], value.shape[0], bias=False)
        layer.weight = torch.nn.Parameter(torch.tensor(value))
        module.add_module(name, layer)
    optimizer = factory(module, **hyperparameters)
    for gradient in gradients:
        for name, value in gradient.items():
            module.get_parameter(f"{name}.weight").grad = torch.tensor(value)
        optimizer.step()
    return torch.cat([p.detach().flatten() for p in module.parameters()]).numpy()


@pytest.mark.parametrize("key", KEYS)
def test_every_declared_hyperparameter_reaches_the_optimizer(key):
    """A hyperparameter that changes nothing would be a keyword accepted and ignored."""
    info = OPTIMIZERS[key]
    base = path(info)
    assert np.isfinite(base).all()
    for name, parameter in info.parameters.items():
        fixed = parameter.low is not None and parameter.low == parameter.high
        inert = INERT.get(name, lambda info: False)(info)
        if name != "learning_rate" and not fixed and not inert:
            changed = path(info, **{name: other_value(name, parameter.default)})
            assert not np.array_equal(changed, base), name


# What cannot show here: there is no norm (see the transformer below), a sign survives the rounding
# of its momentum (the exact bytes above show it), a fused step is the same step and no gradient is
# non-finite (both reach STAC, as the registry's tests show), and STAM's inner knobs where
# adaptation is off.
INERT = {
    "fused": lambda info: True,
    "nonfinite": lambda info: True,
    "stat_sample": lambda info: info.defaults["adapt_strength"] == 0.0,
    "norms_on_adamw": lambda info: True,
    "sign_state_dtype": lambda info: True,
    "tau_decay": lambda info: info.defaults["adapt_strength"] == 0.0,
    "fallback_threshold": lambda info: info.defaults["adapt_strength"] == 0.0,
    "statistics": lambda info: info.defaults["adapt_strength"] == 0.0,
}
OTHER = {
    "statistics": {"published": "corrected", "corrected": "published"},
    "stat_sample": 3,
    "eps": 1e-2,
    "fallback_threshold": 1e-3,
    "last_n_layers": 2,
    "last_n_ratio": 0.7,
    "beta2_decay": -0.5,
    "warmup_steps": 10,
    "beta1_update_interval": 1,
    "weight_decay": 0.5,
    "adamw_state_dtype": "bfloat16",
}


def other_value(name, default):
    value = OTHER.get(name, default * 0.5 if isinstance(default, float) else default)
    value = value.get(default) if isinstance(value, dict) else value
    return 0.5 if value == 0.0 else value


@pytest.mark.slow
def test_norms_on_adamw_moves_the_norms_of_a_transformer():
    info = OPTIMIZERS["torch/stac"]
    spec = make_spec(info, "shakespeare-char", steps=2)
    plain = train(spec)
    moved = train(
        RunSpec(
            **{
                **spec.to_json(),
                "hyperparameters": {"learning_rate": 1e-3, "norms_on_adamw": True},
            }
        )
    )

    # Five norms of 64 entries gain a second moment and a step count each; the final one is the last
    # layer but one, so it is among them.
    assert moved.state_bytes - plain.state_bytes == 5 * (64 * 4 + 4)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("left", "right", "rate"),
    [
        (f"jax/{name}", f"torch/{name}", 1e-3)
        for name in ("lion", "adamw", "stam", "stam_lite", "stac", "stac_int8")
    ],
)
def test_an_optimizer_of_both_frameworks_takes_the_same_path(left, right, rate):
    losses = []
    for key in (left, right):
        info = OPTIMIZERS[key]
        task = WORKLOADS["diamonds-mlp"].build(info.framework, None)
        with open_session(task, info, info.validate({"learning_rate": rate})) as session:
            losses.append(session.advance([rate] * 10))

    np.testing.assert_allclose(losses[0], losses[1], rtol=1e-3)


@pytest.mark.slow
def test_muon_is_the_same_in_both_frameworks_up_to_its_bfloat16():
    """torch runs Newton–Schulz in bfloat16, which costs it a percent on these gradients."""
    start = path(OPTIMIZERS["jax/muon"], steps=0, shapes=DIFFERENT)
    left, right = (
        path(OPTIMIZERS[f"{name}/muon"], steps=3, shapes=DIFFERENT) - start
        for name in ("jax", "torch")
    )

    assert np.sqrt(np.mean((left - right) ** 2)) < 0.03 * np.sqrt(np.mean(left**2))


@pytest.mark.slow
def test_an_orthogonalized_matrix_has_singular_values_near_one():
    from optim_bench.optimizers._jax_factories import orthogonalize

    for shape in ((20, 7), (7, 20), (9, 9)):
        matrix = np.random.default_rng(1).standard_normal(shape).astype(np.float32)
        values = np.linalg.svd(np.asarray(orthogonalize(matrix)), compute_uv=False)
        assert 0.5 < values.min() <= values.max() < 1.3


def test_muon_takes_the_hidden_matrices_alone():
    shapes = {
        name: {key: value.shape for key, value in WORKLOADS[name].arrays(None).initial(0).items()}
        for name in ("digits-cnn", "shakespeare-char")
    }

    assert hidden_matrices(shapes["digits-cnn"]) == {"fc1.weight"}
    assert hidden_matrices(shapes["shakespeare-char"]) == {
        f"blocks.{i}.{layer}.weight" for i in range(2) for layer in ("qkv", "out", "up", "down")
    }


@pytest.mark.slow
def test_schedule_free_is_judged_on_its_average():
    """At a large rate the iterates jump about and the average does not."""
    info = OPTIMIZERS["jax/schedule_free_adamw"]
    task = WORKLOADS["digits-noisy"].build("jax", None)
    with open_session(task, info, info.validate({})) as session:
        session.advance([0.01] * 32)
        judged = session.evaluate("val", 32)["loss"]
        raw = task.evaluate(session.params, "val", 0, 32)["loss"]

    assert judged != pytest.approx(raw, rel=1e-3)


def test_only_schedule_free_asks_for_another_schedule():
    assert {key for key, info in OPTIMIZERS.items() if info.schedule} == {"jax/schedule_free_adamw"}


def test_our_family_is_what_the_main_job_needs():
    ours = {key for key, info in OPTIMIZERS.items() if info.family == "ours"}

    names = {"stam", "stam_lite", "stac", "stac_int8"}
    assert {f"{framework}/{name}" for framework in ("jax", "torch") for name in names} <= ours
    for key in ("jax/adamw", "torch/adamw"):
        assert OPTIMIZERS[key].family == "baseline"
    # Equal decay for every optimizer with decoupled decay, or the comparison is one of decays: but
    # for the ablation that is one.
    decays = {
        key: info.defaults["weight_decay"]
        for key, info in OPTIMIZERS.items()
        if "weight_decay" in info.parameters
    }
    assert decays.pop("torch/stac_no_decay") == 0.0
    assert set(decays.values()) == {0.01}


@pytest.mark.slow
def test_stam_settles_where_its_ablation_says():
    """adamw_b1_079 is the honest control only while STAM's beta1 really goes there."""
    info = OPTIMIZERS["jax/stam"]
    task = WORKLOADS["digits-cnn"].build("jax", None)
    with open_session(task, info, info.validate({})) as session:
        session.advance([1e-3] * 192)
        import stam_jax

        beta1 = [
            float(leaf.beta1)
            for leaf in stam_jax.diagnostics(session.state, session.params).values()
        ]

    assert resolve("adamw_b1_079", "jax").defaults["b1"] == 0.79
    assert 0.72 <= min(beta1) <= max(beta1) <= 0.9


def test_muon_takes_the_matrices_of_any_model_between_its_embeddings_and_its_output():
    import torch
    from optim_bench.optimizers._torch_factories import muon

    class Model(torch.nn.Module):
        def __init__(self, tied):
            super().__init__()
            self.z_lookup = torch.nn.Embedding(10, 4)
            self.up = torch.nn.Linear(4, 8)
            self.a_down = torch.nn.Linear(8, 4)
            self.b_out = torch.nn.Linear(4, 10, bias=False)
            if tied:
                self.b_out.weight = self.z_lookup.weight

    rest = {"momentum": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    for tied in (False, True):
        model = Model(tied)
        matrices = muon(model, learning_rate=0.1, **rest).parts[0].param_groups[0]["params"]
        assert {id(p) for p in matrices} == {id(model.up.weight), id(model.a_down.weight)}
    shapes = {"wte": (10, 4), "h.9.up": (8, 4), "h.10.up": (8, 4), "lm_head.kernel": (4, 10)}
    assert hidden_matrices(shapes) == {"h.9.up", "h.10.up"}
    del shapes["lm_head.kernel"]
    shapes["h.11.kernel"] = (4, 10)
    assert hidden_matrices({f"{k}.w": v for k, v in shapes.items()}) >= {"h.9.up.w", "h.10.up.w"}


def test_muon_takes_a_tree_of_any_kind_in_jax():
    import jax.numpy as jnp
    from optim_bench.optimizers._jax_factories import muon

    rest = {"momentum": 0.9, "b1": 0.9, "b2": 0.99, "eps": 1e-8, "weight_decay": 0.0}
    params = {
        "layers": [{"w": jnp.ones((4, 4))}, {"w": jnp.ones((4, 4))}],
        "head": jnp.ones((4, 2)),
    }
    rule = muon(learning_rate=0.1, **rest)
    updates, _ = rule.update(params, rule.init(params), params)
    assert updates["head"].shape == (4, 2)
