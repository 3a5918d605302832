from pathlib import Path

import torch
from optim_checkpoint import torch as ckpt

GOLDEN = Path(__file__).parent.parent / "golden" / "v1-torch"


def test_format_1_is_restored():
    model = torch.nn.Linear(2, 2)
    optimizer = torch.optim.AdamW(model.parameters(), lr=9.0)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 5)
    found = ckpt.restore(GOLDEN, model=model, optimizer=optimizer, scheduler=scheduler)
    assert found.step == 1
    assert (found.extra["epoch"], found.extra["inf"]) == (1, float("inf"))
    assert found.extra["t"].tolist() == [0, 1, 2]
    assert model.weight.tolist() == [[1.0, 2.0], [3.0, 4.0]]
    assert model.bias.tolist() == [5.0, 6.0]
    assert optimizer.param_groups[0]["lr"] == 0.5
    assert optimizer.state[model.bias]["exp_avg"].tolist() == [1.25, 1.25]
    assert optimizer.state[model.bias]["step"] == 1
    assert (scheduler.step_size, scheduler.last_epoch) == (3, 1)
