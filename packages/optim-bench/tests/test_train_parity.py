"""Both frameworks train the same model: same loss at the start, same path under plain SGD."""

import importlib

import numpy as np
import pytest
from optim_bench.optimizers import resolve
from optim_bench.workloads import WORKLOADS

STEPS = 20
# Learning rates at which SGD moves every model well, without chaos.
RATES = {
    "digits-cnn": 0.05,
    "diamonds-mlp": 0.02,
    "shakespeare-char": 0.1,
    "patches-denoise": 0.1,
    "permuted-digits": 0.05,
    "digits-noisy": 0.02,
    "shifted-mlp": 0.02,
    "shifted-mlp-b8": 0.02,
    "shifted-mlp-b4": 0.02,
    "rosenbrock": 1e-4,
    "ill-conditioned-quadratic": 0.1,
}


@pytest.fixture(scope="module")
def runs():
    """Losses and final parameters of `STEPS` steps of SGD, by workload and framework."""
    results = {}

    def run(name: str, framework: str):
        if (name, framework) not in results:
            workload = WORKLOADS[name]
            task = workload.task(None)
            info = resolve("sgd", framework)
            backend = importlib.import_module(f"optim_bench.train._{framework}")
            hyperparameters = info.validate({"learning_rate": RATES[name], "momentum": 0.0})
            inputs, targets = next(task.chunks(5, [STEPS]))
            with backend.session(
                workload, info, hyperparameters, task.initial(5), "cpu"
            ) as session:
                judged = session.evaluate(*task.evaluation("val", 5, 1))
                losses = session.advance(inputs, targets, [RATES[name]] * STEPS)
                params = session.params if framework == "jax" else session.module.state_dict()
                results[name, framework] = (
                    judged,
                    losses,
                    {key: np.array(value.tolist(), np.float32) for key, value in params.items()},
                )
        return results[name, framework]

    return run


names = pytest.mark.parametrize("name", RATES)


def test_every_workload_is_compared():
    carried = {name for name, workload in WORKLOADS.items() if not workload.files}

    assert set(RATES) == carried


@names
def test_same_loss_before_the_first_step(runs, name):
    (jax_loss, jax_hits), jax_losses, _ = runs(name, "jax")
    (torch_loss, torch_hits), torch_losses, _ = runs(name, "torch")

    assert jax_loss == pytest.approx(torch_loss, rel=2e-6)
    assert jax_hits == pytest.approx(torch_hits, abs=1e-6)
    assert jax_losses[0] == pytest.approx(torch_losses[0], rel=2e-6)


@names
def test_same_path_under_sgd(runs, name):
    _, jax_losses, jax_params = runs(name, "jax")
    _, torch_losses, torch_params = runs(name, "torch")
    initial = WORKLOADS[name].task(None).initial(5)

    np.testing.assert_allclose(jax_losses, torch_losses, rtol=2e-4)
    assert set(jax_params) == set(torch_params) == set(initial)
    for key, start in initial.items():
        moved = np.abs(jax_params[key] - start).max()
        difference = np.abs(jax_params[key] - torch_params[key]).max()
        assert moved > 0, key
        # Rounding alone separates them: a thousandth of the way that the parameter has gone.
        assert difference < 1e-3 * moved, (key, difference, moved)
