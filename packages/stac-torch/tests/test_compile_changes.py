"""What may change between compiled steps, and how often Dynamo compiles for it."""

import pytest
import torch
import torch._dynamo.testing
from stac_torch import STAC
from torch import nn

# Dynamo says so of Python 3.13.0, and that it ignores the profiler's record of a step.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Guards may run slower"),
    pytest.mark.filterwarnings("ignore:Profiler record function"),
]


def test_a_hundred_steps_a_freeze_and_a_new_group_compile_once_each():
    """The first step creates the states; the second graph serves all others."""
    torch._dynamo.reset()
    counter = torch._dynamo.testing.CompileCounter()
    params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(2, 4))]
    optimizer = STAC(params, role="sign", lr=torch.tensor(0.01))
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, 200)
    step = torch.compile(lambda: optimizer.step(), backend=counter)

    def train(steps):
        before = [p.detach().clone() for p in params]
        for _ in range(steps):
            for p in params:
                p.grad = torch.ones_like(p) if p.requires_grad else None
            step()
            schedule.step()
        assert [torch.equal(p, q) for p, q in zip(params, before, strict=True)] == [
            not p.requires_grad for p in params
        ]
        return counter.frame_count

    compiled = train(100)
    assert compiled <= 2
    params[0].requires_grad_(False)
    frozen = train(5)
    assert frozen <= compiled + 1
    params.append(nn.Parameter(torch.ones(5)))
    optimizer.add_param_group({"params": [params[-1]], "role": "sign"})
    # Its state is created in a step of its own.
    assert train(5) <= frozen + 2
