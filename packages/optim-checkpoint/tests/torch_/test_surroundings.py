"""What surrounds a restore: the default device, the generators, parameters without memory."""

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from optim_checkpoint.torch._layout import overlaps
from torch import nn


def stepped(**options):
    torch.manual_seed(0)
    model = nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last)
    optimizer = torch.optim.AdamW(model.parameters(), **options)
    model(torch.ones(1, 3, 4, 4)).sum().backward()
    optimizer.step()
    return model, optimizer


def test_the_default_device_is_not_that_of_what_is_read(tmp_path):
    model, optimizer = stepped(lr=torch.tensor(0.25))
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2)
    # Strides that only a count of all places tells apart from overlapping ones.
    woven = torch.arange(8.0).as_strided((2, 3), (3, 2))
    extra = {"t": torch.arange(6.0).reshape(2, 3).t(), "p": nn.Parameter(torch.ones(2))}
    given = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
    other, resumed = stepped(lr=torch.tensor(0.5))
    later = torch.optim.lr_scheduler.StepLR(resumed, 3)
    with torch.no_grad():
        for tensor in (*other.parameters(), *resumed.state[other.weight].values()):
            tensor.zero_()
    with torch.device("meta"):
        assert not overlaps(woven)
        ckpt.save(tmp_path, 1, **given, extra=extra)
        found = ckpt.restore(tmp_path, model=other, optimizer=resumed, scheduler=later)
    for name, value in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], value), name
    for parameter, same in zip(model.parameters(), other.parameters(), strict=True):
        for slot, value in optimizer.state[parameter].items():
            assert torch.equal(resumed.state[same][slot], value), slot
    assert resumed.param_groups[0]["lr"] == 0.25
    assert later.step_size == 2
    assert torch.equal(found.extra["t"], extra["t"])
    assert torch.equal(found.extra["p"], extra["p"])


class Drawing(nn.Module):
    """Builds a layer when it gets its extra state, which draws its values."""

    def __init__(self):
        super().__init__()
        self.seen, self.refuses = 1, False

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.head = [nn.Linear(2, 2)]
        if self.refuses and state["seen"] == 5:
            raise ValueError("no")
        self.seen = state["seen"]


def test_a_module_that_draws_while_it_loads_does_not_move_the_generators(tmp_path):
    model = Drawing()
    model.seen = 5
    torch.manual_seed(7)
    ckpt.save(tmp_path, 1, model=model)
    expected = torch.rand(1)
    other = Drawing()
    ckpt.restore(tmp_path, model=other)
    assert (other.seen, torch.rand(1)) == (5, expected)


@pytest.mark.parametrize("rng", [True, False])
def test_a_refused_restore_leaves_the_generators(tmp_path, rng):
    model = Drawing()
    model.seen = 5
    ckpt.save(tmp_path, 1, model=model)
    other = Drawing()
    other.refuses = True
    torch.manual_seed(9)
    expected = torch.rand(1)
    torch.manual_seed(9)
    with pytest.raises(oc.IncompatibleCheckpointError, match="raised ValueError: no"):
        ckpt.restore(tmp_path, model=other, rng=rng)
    assert torch.rand(1) == expected


def test_an_optimizer_of_parameters_without_memory_is_refused(tmp_path):
    model, optimizer = stepped()
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    with torch.device("meta"):
        other = nn.Conv2d(3, 4, 3)
    resumed = torch.optim.AdamW(other.named_parameters())
    said = "optimizer parameter weight is on the meta device: give it memory first"
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, optimizer=resumed)
    assert not resumed.state
