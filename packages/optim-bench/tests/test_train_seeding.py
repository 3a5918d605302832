"""What an optimizer draws comes from the run's seed, and the caller's generators are untouched."""

import random

import numpy as np
import pytest
from optim_bench.executors.train import train
from optim_bench.records import RunSpec

torch = pytest.importorskip("torch")

SOURCE = """
import random

import jax
import jax.numpy as jnp
import numpy as np
import optax
import torch


class Noisy(torch.optim.SGD):
    source = "torch"

    @torch.no_grad()
    def step(self, closure=None):
        for group in self.param_groups:
            for p in group["params"]:
                if self.source == "torch":
                    noise = torch.randn_like(p)
                elif self.source == "numpy":
                    noise = torch.from_numpy(np.random.standard_normal(p.shape)).to(p)
                else:
                    noise = random.gauss(0, 1)
                p.grad.add_(0.05 * noise)
        return super().step(closure)


def _noisy(source):
    def factory(module, learning_rate):
        optimizer = Noisy(module.parameters(), lr=learning_rate)
        optimizer.source = source
        return optimizer

    return factory


by_torch, by_numpy, by_random = map(_noisy, ("torch", "numpy", "random"))


def by_callback(learning_rate):
    def update(grads, state, params=None):
        def draw():
            return np.float32(np.random.standard_normal())

        noise = jax.pure_callback(draw, jax.ShapeDtypeStruct((), jnp.float32))
        return {k: -learning_rate * (g + 0.05 * noise) for k, g in grads.items()}, state

    return optax.GradientTransformation(lambda params: (), update)


def when_built(learning_rate):
    return optax.sgd(learning_rate * np.random.uniform(0.5, 1.5))
"""
CASES = [
    ("torch", "by_torch"),
    ("torch", "by_numpy"),
    ("torch", "by_random"),
    ("jax", "by_callback"),
]


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "noisy_optimizers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)


def run(framework: str, name: str, seed: int = 0):
    rate = {"learning_rate": 0.1}
    name = f"noisy_optimizers:{name}"
    record = train(RunSpec("digits-noisy", 1, framework, name, rate, seed, 12, "cosine"))
    assert record.error is None
    return record.metrics


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_noise_is_that_of_the_seed(framework, name):
    first = run(framework, name)
    random.random()
    np.random.random()  # noqa: NPY002
    torch.rand(1)
    run(framework, name, seed=1)
    assert run(framework, name) == first


def test_the_noise_of_two_seeds_differs(monkeypatch):
    drawn = []
    draw = torch.randn_like
    monkeypatch.setattr(torch, "randn_like", lambda p: drawn.append(draw(p)) or drawn[-1])
    for seed in (0, 1):
        run("torch", "by_torch", seed)
    # Both frameworks' first look at a new optimizer draws, too, but the same.
    assert not torch.equal(drawn[-1], drawn[len(drawn) // 2 - 1])


def test_what_a_program_draws_when_it_is_built_does_not_depend_on_who_came_first():
    from optim_bench.executors.train import _jax

    first = run("jax", "when_built", seed=3)
    _jax._PROGRAMS.clear()
    run("jax", "when_built", seed=5)
    assert run("jax", "when_built", seed=3) == first


@pytest.mark.parametrize(("framework", "name"), CASES)
def test_the_generators_of_the_caller_go_on_where_they_were(framework, name):
    def state():
        numpys = np.random.get_state()  # noqa: NPY002
        return (random.getstate(), str(numpys), torch.get_rng_state().tolist())

    before = state()
    run(framework, name)
    assert state() == before


@pytest.mark.gpu
def test_a_run_on_a_device_draws_from_its_seed_and_gives_its_generator_back():
    rate = {"learning_rate": 0.1}
    spec = RunSpec("digits-noisy", 1, "torch", "noisy_optimizers:by_torch", rate, 0, 12, "cosine")
    before = torch.cuda.get_rng_state()
    first = train(spec, device="cuda").metrics
    assert torch.equal(torch.cuda.get_rng_state(), before)
    torch.rand(1, device="cuda")
    assert train(spec, device="cuda").metrics == first
