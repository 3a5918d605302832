"""AdamW, sign momentum and SGD move between torch and optax; the next step is the same."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
import optim_checkpoint.jax
import optim_checkpoint.torch
import pytest
import torch

SHAPES = {"body": {"weight": (5, 4), "bias": (5,)}, "head": {"weight": (3, 5)}}
B = 0.9


class Lion(torch.optim.Optimizer):
    """Sign momentum with one decay: sign of the new momentum, decoupled weight decay."""

    def __init__(self, params, lr=1e-2, beta=B):
        super().__init__(params, {"lr": lr, "beta": beta})

    @torch.no_grad()
    def step(self):
        for group in self.param_groups:
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state["exp_avg"] = torch.zeros_like(p)
                state["exp_avg"].lerp_(p.grad, 1 - group["beta"])
                p.sub_(group["lr"] * state["exp_avg"].sign())


PAIRS = {
    "AdamW": (
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda: optax.adamw(1e-2, weight_decay=0.1),
    ),
    "AdamW with a schedule": (
        lambda p: torch.optim.AdamW(p, lr=1e-2, weight_decay=0.1),
        lambda: optax.adamw(optax.constant_schedule(1e-2), weight_decay=0.1),
    ),
    "Adam": (lambda p: torch.optim.Adam(p, lr=1e-2), lambda: optax.adam(1e-2)),
    "Lion": (Lion, lambda: optax.lion(1e-2, b1=B, b2=B, weight_decay=0.0)),
    "SGD": (
        lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9),
        lambda: optax.sgd(1e-2, momentum=0.9),
    ),
    "SGD without momentum": (
        lambda p: torch.optim.SGD(p, lr=1e-2),
        lambda: optax.sgd(1e-2),
    ),
}


def values(seed):
    rng = np.random.default_rng(seed)
    return jax.tree.map(
        lambda shape: rng.standard_normal(shape).astype(np.float32),
        SHAPES,
        is_leaf=lambda x: isinstance(x, tuple),
    )


def module(seed=0):
    return torch.nn.ModuleDict(
        {
            name: torch.nn.ParameterDict(
                {
                    key: torch.nn.Parameter(torch.from_numpy(array.copy()))
                    for key, array in group.items()
                }
            )
            for name, group in values(seed).items()
        }
    )


def torch_step(model, optimizer, seed):
    grads = values(seed)
    for name, group in model.items():
        for key, parameter in group.items():
            parameter.grad = torch.from_numpy(grads[name][key].copy())
    optimizer.step()


def jax_step(tx, params, state, seed):
    updates, state = tx.update(jax.tree.map(jnp.asarray, values(seed)), state, params)
    return optax.apply_updates(params, updates), state


def assert_close(model, params):
    for name, group in model.items():
        for key, parameter in group.items():
            np.testing.assert_allclose(
                parameter.detach().numpy(), np.asarray(params[name][key]), rtol=2e-6, atol=2e-7
            )


@pytest.mark.parametrize("pair", PAIRS)
def test_torch_to_optax(tmp_path, pair):
    make_torch, make_optax = PAIRS[pair]
    model = module()
    optimizer = make_torch(model.parameters())
    for seed in range(1, 6):
        torch_step(model, optimizer, seed)
    oc.torch.save(tmp_path, 5, model=model, optimizer=optimizer)
    tx = make_optax()
    template = jax.tree.map(jnp.zeros_like, values(0))
    found = oc.jax.restore(tmp_path, params=template, opt_state=tx.init(template))
    assert_close(model, found.params)
    params, state = found.params, found.opt_state
    for seed in range(6, 16):
        torch_step(model, optimizer, seed)
        params, state = jax_step(tx, params, state, seed)
    assert_close(model, params)


@pytest.mark.parametrize("pair", PAIRS)
def test_optax_to_torch(tmp_path, pair):
    make_torch, make_optax = PAIRS[pair]
    tx = make_optax()
    params = jax.tree.map(jnp.asarray, values(0))
    state = tx.init(params)
    for seed in range(1, 6):
        params, state = jax_step(tx, params, state, seed)
    oc.jax.save(tmp_path, 5, params=params, opt_state=state)
    model = module(3)
    optimizer = make_torch(model.parameters())
    oc.torch.restore(tmp_path, model=model, optimizer=optimizer)
    assert_close(model, params)
    for seed in range(6, 16):
        torch_step(model, optimizer, seed)
        params, state = jax_step(tx, params, state, seed)
    assert_close(model, params)


def saved_by_torch(folder, make):
    model = module()
    optimizer = make(model.parameters())
    torch_step(model, optimizer, 1)
    oc.torch.save(folder, 1, model=model, optimizer=optimizer)
    return model, optimizer


def test_what_is_no_pair_is_refused(tmp_path):
    saved_by_torch(tmp_path, torch.optim.RAdam)
    params = jax.tree.map(jnp.asarray, values(0))
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        oc.jax.restore(tmp_path, opt_state=optax.adam(1e-2).init(params))
    assert "exp_avg of body.bias in torch.optim.radam.RAdam has no counterpart" in str(caught.value)
    assert "opt_state 0.mu.body.bias is not in the checkpoint" in str(caught.value)


def test_amsgrad_has_no_counterpart(tmp_path):
    saved_by_torch(tmp_path, lambda p: torch.optim.AdamW(p, amsgrad=True))
    params = jax.tree.map(jnp.asarray, values(0))
    with pytest.raises(oc.IncompatibleCheckpointError, match=r"max_exp_avg_sq of body\.bias in"):
        oc.jax.restore(tmp_path, opt_state=optax.adamw(1e-2).init(params))
    folder = tmp_path / "jax"
    oc.jax.save(folder, 1, params=params, opt_state=optax.adamw(1e-2).init(params))
    model = module()
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    with pytest.raises(oc.IncompatibleCheckpointError, match="AdamW uses amsgrad"):
        oc.torch.restore(folder, model=model, optimizer=optimizer)


def test_steps_that_differ_are_no_count(tmp_path):
    model, optimizer = saved_by_torch(tmp_path, torch.optim.AdamW)
    optimizer.state[model["head"]["weight"]]["step"] += 1
    oc.torch.save(tmp_path, 2, model=model, optimizer=optimizer)
    params = jax.tree.map(jnp.asarray, values(0))
    with pytest.raises(
        oc.IncompatibleCheckpointError, match=r"0\.count is one count .*\[1\.0, 2\.0\]"
    ):
        oc.jax.restore(tmp_path, opt_state=optax.adamw(1e-2).init(params))


def test_other_names_and_shapes_are_listed(tmp_path):
    saved_by_torch(tmp_path, torch.optim.AdamW)
    template = {"body": {"kernel": jnp.zeros((4, 5)), "bias": jnp.zeros(4)}}
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        oc.jax.restore(tmp_path, params=template)
    text = str(caught.value)
    assert "params has no leaf head.weight, the checkpoint has" in text
    assert "params body.kernel is not in the checkpoint" in text
    assert "params body.bias has shape [5] in the checkpoint, [4] here" in text


def test_an_optax_state_without_counterpart_is_refused(tmp_path):
    params = jax.tree.map(jnp.asarray, values(0))
    state = optax.MultiSteps(optax.adamw(1e-2), 2).init(params)
    oc.jax.save(tmp_path, 1, params=params, opt_state=state)
    model = module()
    with pytest.raises(
        oc.IncompatibleCheckpointError, match=r"opt_state mini_step has no counterpart in .*AdamW"
    ):
        oc.torch.restore(tmp_path, optimizer=torch.optim.AdamW(model.parameters()), model=model)


def test_too_many_steps_for_torch_are_refused(tmp_path):
    params = jax.tree.map(jnp.asarray, values(0))
    adam, *rest = optax.adamw(1e-2).init(params)
    state = (adam._replace(count=jnp.array(1 << 24, jnp.int32)), *rest)
    oc.jax.save(tmp_path, 1, params=params, opt_state=state)
    model = module()
    with pytest.raises(oc.IncompatibleCheckpointError, match="16777216 steps were taken"):
        oc.torch.restore(tmp_path, optimizer=torch.optim.AdamW(model.parameters()), model=model)


def test_a_step_that_is_a_float_is_a_count(tmp_path):
    model, optimizer = saved_by_torch(tmp_path, torch.optim.AdamW)
    for slots in optimizer.state.values():
        slots["step"] = 7.0
    oc.torch.save(tmp_path, 2, model=model, optimizer=optimizer)
    params = jax.tree.map(jnp.asarray, values(0))
    state = oc.jax.restore(tmp_path, opt_state=optax.adamw(1e-2).init(params)).opt_state
    assert state[0].count == 7


def test_counts_of_a_mapped_optimizer_are_refused(tmp_path):
    params = jax.tree.map(jnp.asarray, values(0))
    adam, *rest = optax.adamw(1e-2).init(params)
    state = (adam._replace(count=jnp.zeros(3, jnp.int32)), *rest)
    oc.jax.save(tmp_path, 1, params=params, opt_state=state)
    model = module()
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        oc.torch.restore(tmp_path, optimizer=torch.optim.AdamW(model.parameters()), model=model)
    assert caught.value.differences == ("opt_state 0.count has shape [3], torch needs one number",)
