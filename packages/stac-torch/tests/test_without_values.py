"""Steps where memory is estimated: tensors of the meta device, and FakeTensors."""

from contextlib import nullcontext

import pytest
import torch
from stac_torch import STAC, STAM, STAMLite
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

MAKERS = {
    "STAC": STAC,
    "STAC, plain": lambda model: STAC(model, foreach=False, fused=False),
    "STAC, codes": lambda model: STAC(model, sign_state_dtype="int4", adamw_state_dtype="int8"),
    "STAC, clipping": lambda model: STAC(model, max_grad_norm=1.0),
    "STAC, raise": lambda model: STAC(model, nonfinite="raise"),
    "STAM": lambda model: STAM(model.parameters()),
    "STAM, plain": lambda model: STAM(model.parameters(), foreach=False),
    "STAMLite": lambda model: STAMLite(model.parameters()),
    "STAMLite, clipping": lambda model: STAMLite(model.parameters(), max_grad_norm=1.0),
}


def stepped(make, device="cpu"):
    with torch.device(device):
        model = nn.Sequential(nn.Linear(7, 256), nn.ReLU(), nn.Linear(256, 3))
    optimizer = make(model)
    for _ in range(2):
        optimizer.zero_grad()
        model(torch.ones(2, 7, device=device)).sum().backward()
        optimizer.step()
    return model, optimizer


def shapes(optimizer):
    return [
        {key: (value.dtype, value.shape) for key, value in state.items()}
        for state in optimizer.state.values()
    ]


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
@pytest.mark.parametrize("where", ["meta", "fake"])
def test_a_step_without_values_has_the_state_of_a_real_one(make, where):
    with FakeTensorMode() if where == "fake" else nullcontext():
        _, estimated = stepped(make, "meta" if where == "meta" else "cpu")
    # Nothing made there is used here: a cache of it would end this step, or change its values.
    torch.manual_seed(0)
    model, optimizer = stepped(make)
    assert shapes(estimated) == shapes(optimizer)
    assert all(
        type(value) is torch.Tensor for s in optimizer.state.values() for value in s.values()
    )
    assert all(p.isfinite().all() for p in model.parameters())
    assert estimated.nonfinite_skipped_steps == optimizer.nonfinite_skipped_steps == 0


@pytest.mark.parametrize("make", MAKERS.values(), ids=MAKERS)
def test_a_step_without_values_takes_nothing_of_real_ones(make):
    torch.manual_seed(0)
    stepped(make)
    with FakeTensorMode():
        stepped(make)
