"""The optimizers of this repository resume bitwise; needs stam-jax, stac-torch and both extras."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import optax
import optim_checkpoint.jax
import optim_checkpoint.torch
import pytest
import safetensors
import stac_torch
import stam_jax
import torch

SCRIPT = Path(__file__).with_name("resume_worker.py")
# What is compared are the bits of two processes that compile alike: neither needs the fast code.
XLA_FLAGS = "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true"


def load_cases():
    spec = importlib.util.spec_from_file_location("siblings_resume_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return [*module.TORCH, *module.JAX]


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("resume")
    results = []
    for mode in ("train", "resume"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), mode, str(folder)],
            capture_output=True,
            text=True,
            env={**os.environ, "XLA_FLAGS": XLA_FLAGS},
        )
        assert done.returncode == 0, done.stderr
        results.append(json.loads(done.stdout))
    return results


@pytest.mark.parametrize("case", load_cases())
def test_a_resumed_run_is_bitwise_the_uninterrupted_one(runs, case):
    uninterrupted, resumed = (run[case] for run in runs)
    assert resumed == uninterrupted
    assert uninterrupted["end"] != uninterrupted["start"]


def test_statistics_of_stam_are_stored_per_parameter(tmp_path):
    params = {"a": jnp.ones(2), "b": jnp.ones(3)}
    state = stam_jax.scale_by_stam().init(params)
    path = optim_checkpoint.jax.save(tmp_path, 1, params=params, opt_state=state)
    with safetensors.safe_open(path / "optim" / "optim.safetensors", "np") as file:
        names = set(file.keys())
    assert {"state.a.tau", "state.b.tau", "state.a.mu", "state.a.b1_prod"} <= names


def test_stac_restores_into_groups_of_another_order(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    groups = stac_torch.param_groups(model)
    optimizer = stac_torch.STAC(groups, lr=1e-2)
    model(torch.ones(2, 3)).sum().backward()
    optimizer.step()
    optim_checkpoint.torch.save(tmp_path, 1, model=model, optimizer=optimizer)
    other = stac_torch.STAC(stac_torch.param_groups(model)[::-1], lr=5.0)
    optim_checkpoint.torch.restore(tmp_path, model=model, optimizer=other)
    assert [group["role"] for group in other.param_groups] == ["adamw", "sign"]
    assert all(group["lr"] == 1e-2 for group in other.param_groups)
    for parameter in model.parameters():
        for slot, value in optimizer.state[parameter].items():
            assert torch.equal(value, other.state[parameter][slot])


def test_stac_goes_on_as_lion_of_optax_and_back(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(4, 3), "b": torch.nn.Linear(3, 2)})
    groups = [{"params": list(model.named_parameters()), "role": "sign"}]
    optimizer = stac_torch.STAC(groups, lr=1e-2)
    generator = torch.Generator().manual_seed(0)

    def gradients():
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)

    def as_jax(attribute):
        tree = {"a": {}, "b": {}}
        for name, parameter in model.named_parameters():
            layer, key = name.split(".")
            tree[layer][key] = jnp.asarray(getattr(parameter, attribute).detach().numpy())
        return tree

    gradients()
    optimizer.step()
    optim_checkpoint.torch.save(tmp_path, 1, model=model, optimizer=optimizer)
    tx = optax.lion(1e-2, b1=0.9, b2=0.9, weight_decay=0.0)
    zeros = jax.tree.map(jnp.zeros_like, as_jax("data"))
    found = optim_checkpoint.jax.restore(tmp_path, params=zeros, opt_state=tx.init(zeros))
    gradients()
    optimizer.step()
    updates, state = tx.update(as_jax("grad"), found.opt_state, found.params)
    params = optax.apply_updates(found.params, updates)
    for ours, theirs in zip(jax.tree.leaves(as_jax("data")), jax.tree.leaves(params), strict=True):
        assert jnp.allclose(ours, theirs, rtol=1e-6, atol=1e-7)

    optim_checkpoint.jax.save(tmp_path / "back", 2, params=params, opt_state=state)
    before = [p.detach().clone() for p in model.parameters()]
    other = stac_torch.STAC([{"params": list(model.named_parameters()), "role": "sign"}], lr=1e-2)
    optim_checkpoint.torch.restore(tmp_path / "back", model=model, optimizer=other)
    for parameter, old in zip(model.parameters(), before, strict=True):
        assert torch.allclose(parameter, old, rtol=1e-6, atol=1e-7)
        moment = other.state[parameter]["exp_avg"]
        assert torch.allclose(moment, optimizer.state[parameter]["exp_avg"], rtol=1e-5, atol=1e-7)
