"""A schedule reaches every optimizer, wherever it keeps its learning rate, or is refused."""

import gc
import math
import weakref
from dataclasses import dataclass, field

import numpy as np
import optax
import pytest
import torch
from optim_bench.executors.train import open_session, train
from optim_bench.optimizers import OPTIMIZERS, OptimizerInfo, learning_rate
from optim_bench.records import RunSpec
from optim_bench.report.timing import TimingRequest, measure_times
from optim_bench.tasks.built_in import get

SOURCE = '''
from dataclasses import dataclass

import jax.numpy as jnp
import optax
import torch


def plain(learning_rate):
    return optax.sgd(learning_rate)


def injected(learning_rate):
    return optax.inject_hyperparams(optax.sgd)(learning_rate=learning_rate)


def chained(learning_rate):
    return optax.chain(optax.clip_by_global_norm(1e9), injected(learning_rate))


def accumulated(learning_rate):
    return optax.MultiSteps(injected(learning_rate), every_k_schedule=1)


def partitioned(learning_rate):
    rates = {"a": injected(learning_rate), "b": injected(learning_rate)}
    labels = lambda p: {k: "a" if "weight" in k else "b" for k in p}
    return optax.transforms.partition(rates, labels)


def decayed(learning_rate):
    return optax.inject_hyperparams(optax.adamw)(learning_rate, weight_decay=learning_rate / 10)


def decayed_plainly(learning_rate):
    return optax.adamw(learning_rate, weight_decay=learning_rate / 10)


def scheduled(learning_rate):
    schedule = optax.linear_schedule(learning_rate, learning_rate, 10)
    return optax.inject_hyperparams(optax.sgd)(learning_rate=schedule)


def remembers(learning_rate):
    def init(params):
        return {"size": jnp.asarray(learning_rate)}

    def update(grads, state, params=None):
        scaled = {k: -state["size"] * g for k, g in grads.items()}
        return scaled, {"size": 0.9 * state["size"]}

    return optax.GradientTransformation(init, update)


def looks(learning_rate):
    if learning_rate <= 0:
        raise ValueError
    return optax.sgd(learning_rate)


class Wrapper(torch.optim.Optimizer):
    """Keeps groups of its own: what is written there is not what the inner one reads."""

    def __init__(self, inner):
        self.inner = inner
        super().__init__([{**g} for g in inner.param_groups], {})

    def step(self, closure=None):
        return self.inner.step(closure)


def deaf(module, learning_rate):
    return Wrapper(torch.optim.SGD(module.parameters(), lr=learning_rate))


def shared(module, learning_rate):
    wrapper = deaf(module, learning_rate)
    wrapper.param_groups = wrapper.inner.param_groups
    return wrapper


def rateless(module, learning_rate):
    optimizer = torch.optim.SGD(module.parameters(), lr=learning_rate)
    optimizer.param_groups[0]["rate"] = optimizer.param_groups[0].pop("lr")
    return optimizer


def torch_plain(module, learning_rate):
    return torch.optim.SGD(module.parameters(), lr=learning_rate)


@dataclass
class JaxScaled:
    scale: float = 1.0

    def __call__(self, learning_rate):
        return optax.sgd(self.scale * learning_rate)


@dataclass
class TorchScaled:
    scale: float = 1.0

    def __call__(self, module, learning_rate):
        return torch.optim.SGD(module.parameters(), lr=self.scale * learning_rate)


@dataclass
class TorchDeaf:
    scale: float = 1.0

    def __call__(self, module, learning_rate):
        return deaf(module, learning_rate)


jax_unhashable = JaxScaled()
torch_unhashable = TorchScaled()
torch_deaf = TorchDeaf()
'''


@pytest.fixture(autouse=True)
def module(tmp_path, monkeypatch):
    (tmp_path / "rated_optimizers.py").write_text(SOURCE)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))


def run(name: str, framework: str = "jax", rate: float = 0.05, **changes):
    settings = {"learning_rate": rate, **changes}
    name = f"rated_optimizers:{name}" if "_" in name or name.isalpha() else name
    return train(RunSpec("digits-noisy", 1, framework, name, settings, 0, 24, "cosine"))


@pytest.mark.parametrize(
    ("name", "equal"),
    [
        ("injected", "plain"),
        ("chained", "plain"),
        ("accumulated", "plain"),
        ("partitioned", "plain"),
        ("scheduled", "plain"),
        ("decayed", "decayed_plainly"),
    ],
)
def test_a_rate_in_the_state_follows_the_schedule(name, equal):
    found, expected = run(name), run(equal)
    assert found.error is None
    assert found.metrics["val_loss"] == pytest.approx(expected.metrics["val_loss"], rel=1e-4)
    assert run(name, rate=1e-4).metrics["val_loss"] != found.metrics["val_loss"]


def test_a_memory_that_begins_with_the_rate_is_refused():
    record = run("remembers")
    assert record.status == "failed"
    assert record.error.startswith(
        "ValueError: jax/rated_optimizers:remembers: ['size'] of its state starts from the "
        "learning rate and is then changed by its own steps, so that it cannot follow a schedule"
    )


def test_a_factory_that_looks_at_the_rate_is_told_so():
    assert run("looks").error == (
        "FactoryError: rated_optimizers:looks: the factory looks at the value of learning_rate, "
        "which is traced here because it changes every step; leave the check or conversion away"
    )


@pytest.mark.parametrize(
    "name", [info.name for info in OPTIMIZERS.values() if info.framework == "jax"]
)
def test_no_optimizer_of_ours_holds_its_rate(name):
    info = OPTIMIZERS[f"jax/{name}"]
    task = get("rosenbrock").build("jax", None)
    states = []
    for rate in (1e-3, 1e-1):
        settings = info.validate({"learning_rate": rate})
        with open_session(task, info, settings) as session:
            states.append(session.state)
    left, right = map(_leaves, states)
    assert all(np.array_equal(a, b) for a, b in zip(left, right, strict=True))


def _leaves(state):
    import jax

    return [np.asarray(leaf) for leaf in jax.tree.leaves(state)]


def test_a_wrapper_that_does_not_listen_is_refused():
    record = run("deaf", "torch")
    assert record.error == (
        "ValueError: torch/rated_optimizers:deaf does not listen to the 'lr' of its param_groups: "
        "it steps at the rate it was built with, whatever the schedule says; let its param_groups "
        "be those of the optimizer that it wraps"
    )


def test_a_wrapper_that_shares_its_groups_trains_as_what_it_wraps():
    assert run("shared", "torch").metrics == run("torch_plain", "torch").metrics


@pytest.mark.parametrize(
    ("name", "equal", "framework"),
    [("torch_unhashable", "torch_plain", "torch"), ("jax_unhashable", "plain", "jax")],
)
def test_a_factory_need_not_have_a_hash(name, equal, framework):
    found = run(name, framework)
    assert found.error is None
    assert found.metrics == run(equal, framework).metrics


def test_a_factory_without_a_hash_is_looked_at_too():
    assert "torch_deaf does not listen to the 'lr'" in run("torch_deaf", "torch").error


def given(factory, framework):
    rate = {"learning_rate": learning_rate(0.05)}
    return OptimizerInfo("given", framework, "Given", "third-party", factory, rate)


def first_losses(info):
    task = get("digits-noisy").build(info.framework, None)
    settings = info.validate({})
    with open_session(task, info, settings) as session:
        return list(session.advance([0.05] * 4))


def test_equal_factories_are_not_taken_for_one_another():
    @dataclass(frozen=True)
    class Scaled:
        scale: float = field(compare=False)

        def __call__(self, learning_rate):
            return optax.sgd(self.scale * learning_rate)

    one, other = Scaled(1.0), Scaled(2.0)
    assert one == other
    assert first_losses(given(one, "jax")) != first_losses(given(other, "jax"))


def test_a_factory_is_looked_at_and_compiled_once_however_it_is_reached():
    class Maker:
        def __init__(self):
            self.calls = 0

        def jax(self, learning_rate):
            self.calls += 1
            return optax.sgd(learning_rate)

        def torch(self, module, learning_rate):
            self.calls += 1
            return torch.optim.SGD(module.parameters(), lr=learning_rate)

    for framework, again in (("jax", 0), ("torch", 1)):
        maker = Maker()
        first_losses(given(getattr(maker, framework), framework))
        before = maker.calls
        first_losses(given(getattr(maker, framework), framework))
        assert maker.calls == before + again


def test_factories_no_longer_in_use_are_let_go():
    @dataclass
    class Plain:
        def __call__(self, module, learning_rate):
            return torch.optim.SGD(module.parameters(), lr=learning_rate)

    kept, factory = [], None
    for _ in range(20):
        factory = Plain()
        kept.append(weakref.ref(factory))
        first_losses(given(factory, "torch"))
    del factory
    gc.collect()
    assert [ref() is None for ref in kept] == [True] * 4 + [False] * 16


def test_groups_without_a_rate_are_named():
    assert run("rateless", "torch").error == (
        "FactoryError: group 0 of SGD has no 'lr'; the benchmark sets it before every step, so "
        "each of param_groups needs one"
    )


def test_a_timed_step_is_at_the_rate_of_the_timing():
    # At the rate of its state, 1e30, the second step's loss would not be finite.
    from optim_bench.optimizers import resolve

    info = resolve("rated_optimizers:injected", "jax")
    task = get("digits-noisy").build(info.framework, None)
    settings = info.validate({"learning_rate": 1e30})
    with open_session(task, info, settings) as session:
        losses = session.advance([1e-6] * 4)
    assert all(map(math.isfinite, losses))


def test_the_timing_of_an_injected_rate_runs():
    names = [("adamw", "adamw", {}), ("mine", "rated_optimizers:injected", {})]
    found = measure_times(TimingRequest("digits-noisy", "jax", names, 2, 0.001))
    assert {"adamw", "mine", "A/A"} == set(found["seconds"])
