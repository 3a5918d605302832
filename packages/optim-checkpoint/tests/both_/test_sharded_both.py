"""DTensors across frameworks: a JAX checkpoint into FSDP2 and back."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint.jax
import optim_checkpoint.torch
import pytest
import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor


@pytest.fixture
def group(tmp_path):
    store = dist.FileStore(str(tmp_path / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def test_a_state_of_optax_goes_into_dtensors_and_back(tmp_path, group):
    rng = np.random.default_rng(0)
    params = {
        "weight": jnp.asarray(rng.standard_normal((3, 5)), jnp.float32),
        "bias": jnp.asarray(rng.standard_normal(3), jnp.float32),
    }
    tx = optax.adamw(1e-2)
    state = tx.init(params)
    for _ in range(3):
        updates, state = tx.update(jax.tree.map(lambda p: p * 0.5, params), state, params)
        params = optax.apply_updates(params, updates)
    optim_checkpoint.jax.save(tmp_path / "a", 3, params=params, opt_state=state)

    model = torch.nn.Linear(5, 3)
    fully_shard(model, mesh=init_device_mesh("cpu", (1,)))
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    optim_checkpoint.torch.restore(tmp_path / "a", model=model, optimizer=optimizer)
    for name, parameter in model.named_parameters():
        slots = optimizer.state[parameter]
        assert all(isinstance(t, DTensor) for t in (parameter, slots["exp_avg"]))
        assert (slots["exp_avg"].full_tensor().numpy() == np.asarray(state[0].mu[name])).all()
        assert slots["step"] == 3
    model(torch.ones(2, 5)).sum().backward()
    optimizer.step()

    optim_checkpoint.torch.save(tmp_path / "b", 4, model=model, optimizer=optimizer)
    back = optim_checkpoint.jax.restore(tmp_path / "b", params=params, opt_state=state)
    assert back.opt_state[0].count == 4
    for name, parameter in model.named_parameters():
        moment = optimizer.state[parameter]["exp_avg_sq"].full_tensor().numpy()
        assert (np.asarray(back.opt_state[0].nu[name]) == moment).all()
        whole = parameter.detach().full_tensor().numpy()
        assert (np.asarray(back.params[name]) == whole).all()
