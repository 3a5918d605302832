"""torch.compile of the step: one graph, no recompilation, the same steps."""

import math

import pytest
import torch
import torch._dynamo.testing
from stac_torch import STAC, STAM, STAMLite
from torch import nn

# Dynamo says so of Python 3.13.0, and that it ignores the profiler's record of a step.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Guards may run slower"),
    pytest.mark.filterwarnings("ignore:Profiler record function"),
]

OPTIONS = [
    {},
    {"sign_state_dtype": "bf16", "weight_decay": 0.1},
    {"sign_state_dtype": "int8", "foreach": False},
    {"last_n_layers": 0, "sign_momentum": 0.0},
    {"last_n_layers": 2, "amsgrad": True, "maximize": True},
]
# The same, in one optimizer: Dynamo takes as long for each group as for a whole optimizer.
GROUPS = [
    {"role": "sign"},
    {"role": "sign", "sign_state_dtype": "bf16", "weight_decay": 0.1},
    {"role": "sign", "sign_state_dtype": "int8", "foreach": False},
    {"role": "sign", "sign_momentum": 0.0},
    {"role": "adamw", "weight_decay": 0.1},
    {"role": "adamw", "amsgrad": True, "maximize": True},
]


@pytest.fixture(autouse=True)
def _fresh():
    torch._dynamo.reset()


def two_layers():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 2))


def a_layer_for_each_group():
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in GROUPS))


def compare(model, build, backend):
    """Take eight steps eagerly and compiled; the lr is a tensor that changes with each."""
    models = model(), model()
    rates = torch.tensor(0.01), torch.tensor(0.01)
    optimizers = [build(m, lr) for m, lr in zip(models, rates, strict=True)]
    held = [[group["lr"] for group in optimizer.param_groups] for optimizer in optimizers]
    steps = [
        optimizers[0].step,
        torch.compile(lambda: optimizers[1].step(), fullgraph=True, backend=backend),
    ]
    for number in range(8):
        for each, optimizer, step, lrs in zip(models, optimizers, steps, held, strict=True):
            optimizer.zero_grad()
            each(torch.full((3, 64), 0.1 * number)).square().sum().backward()
            if number == 4:
                each[0].weight.grad[0, 0] = math.nan
            step()
            # Groups that STAC made have a tensor each, those of the caller may share one.
            for lr in {id(lr): lr for lr in lrs}.values():
                lr.mul_(0.9)
        for p, q in zip(models[0].parameters(), models[1].parameters(), strict=True):
            torch.testing.assert_close(p, q)
    assert [o.nonfinite_skipped_steps for o in optimizers] == [1, 1]
    assert all(
        group["lr"] is lr for group, lr in zip(optimizers[1].param_groups, held[1], strict=True)
    )


def test_one_graph_for_all_steps():
    """The first step creates the states, the second graph serves all others."""
    counter = torch._dynamo.testing.CompileCounter()

    def build(model, lr):
        groups = [
            {"params": list(layer.parameters()), **group}
            for layer, group in zip(model, GROUPS, strict=True)
        ]
        return STAC(groups, lr=lr)

    compare(a_layer_for_each_group, build, counter)
    assert counter.frame_count <= 2


@pytest.mark.slow
@pytest.mark.parametrize("options", OPTIONS)
def test_one_graph_for_a_model(options):
    counter = torch._dynamo.testing.CompileCounter()
    compare(two_layers, lambda model, lr: STAC(model, lr=lr, **options), counter)
    assert counter.frame_count <= 2


@pytest.mark.parametrize("cls", [STAM, STAMLite])
def test_one_graph_for_statistics(cls):
    counter = torch._dynamo.testing.CompileCounter()
    compare(two_layers, lambda model, lr: cls(model, lr=lr, exp_avg_dtype="bf16"), counter)
    assert counter.frame_count <= 2


@pytest.mark.slow
def test_inductor_fuses_statistics():
    compare(two_layers, lambda model, lr: STAM(model, lr=lr, weight_decay=0.1), "inductor")


@pytest.mark.slow
def test_inductor():
    """Compiles C++: needs a compiler, and takes a while."""
    compare(two_layers, lambda model, lr: STAC(model, lr=lr, weight_decay=0.1), "inductor")


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
