"""torch.compile of the step: one graph, no recompilation, the same steps."""

import math

import pytest
import torch
import torch._dynamo.testing
from stac_torch import STAC
from torch import nn

# Dynamo says so of Python 3.13.0, and that it ignores the profiler's record of a step.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Guards may run slower"),
    pytest.mark.filterwarnings("ignore:Profiler record function"),
    # Torch 2.10 says so of itself when dynamo is imported.
    pytest.mark.filterwarnings("ignore:`torch.jit.script_method` is deprecated"),
]

OPTIONS = [
    {},
    {"sign_state_dtype": "bf16", "weight_decay": 0.1},
    {"sign_state_dtype": "int8", "foreach": False},
    {"last_n_layers": 0, "sign_momentum": 0.0},
    {"last_n_layers": 3, "amsgrad": True, "maximize": True},
]


def problem():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 8), nn.Linear(8, 2))


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def compare(options, backend, lr):
    models = problem(), problem()
    optimizers = [STAC(m, lr=lr.clone(), **options) for m in models]
    steps = [
        optimizers[0].step,
        torch.compile(lambda: optimizers[1].step(), fullgraph=True, backend=backend),
    ]
    for number in range(8):
        for model, optimizer, step in zip(models, optimizers, steps, strict=True):
            optimizer.zero_grad()
            model(torch.full((3, 64), 0.1 * number)).square().sum().backward()
            if number == 4:
                model[0].weight.grad[0, 0] = math.nan
            step()
            for group in optimizer.param_groups:
                group["lr"].mul_(0.9)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert [o.nonfinite_skipped_steps for o in optimizers] == [1, 1]


@pytest.mark.parametrize("options", OPTIONS)
def test_one_graph_for_all_steps(options):
    """With a tensor lr: the first step creates the states, the second graph serves all others."""
    counter = torch._dynamo.testing.CompileCounter()
    compare(options, counter, torch.tensor(0.01))
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_inductor():
    """Compiles C++: needs a compiler, and takes a while."""
    compare({"weight_decay": 0.1}, "inductor", torch.tensor(0.01))


def test_the_flag_on_the_device_counts_and_ends_dead_runs():
    """What capturable does on CUDA, on the sign section of the CPU."""
    p = nn.Parameter(torch.ones(4))
    optimizer = STAC([p], role="sign", capturable=True, max_consecutive_nonfinite=3)
    p.grad = torch.ones(4)
    optimizer.step()
    moved = p.detach().clone()
    moment = optimizer.state[p]["exp_avg"].clone()
    p.grad = torch.full((4,), math.inf)
    # The counter is read at every third step: at the third, 2 bad ones; at the sixth, 5.
    for _ in range(4):
        optimizer.step()
    with pytest.raises(RuntimeError, match="the gradients of 5 steps in a row were not finite"):
        optimizer.step()
    assert torch.equal(p.detach(), moved)
    assert torch.equal(optimizer.state[p]["exp_avg"], moment)
    assert optimizer.nonfinite_skipped_steps == 5


@pytest.mark.parametrize("options", [{}, {"sign_state_dtype": "int8"}, {"sign_momentum": 0.0}])
@pytest.mark.parametrize("foreach", [False, True])
def test_a_flag_that_is_false_changes_nothing(options, foreach):
    results = []
    for capturable in (False, True):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(64, 64))
        optimizer = STAC(
            [p], role="sign", weight_decay=0.1, capturable=capturable, foreach=foreach, **options
        )
        for _ in range(4):
            p.grad = torch.randn(64, 64)
            optimizer.step()
        results.append(p.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
