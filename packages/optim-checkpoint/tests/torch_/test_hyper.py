"""Hyperparameters that are tensors, that steps write, and that wrappers lose."""

import numpy as np
import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))


def in_groups(model, cls=torch.optim.AdamW, **options):
    own = options.pop("own", ({}, {}))
    groups = [{"params": model[i].parameters(), **own[i]} for i in range(2)]
    return cls(groups, **options)


def rates(optimizer, key="lr"):
    return [round(float(group[key]), 6) for group in optimizer.param_groups]


SAVED = {
    "tensors": lambda: ({"lr": torch.tensor(1e-2)}, {"lr": torch.tensor(3e-3)}),
    "numbers": lambda: ({"lr": 1e-2}, {"lr": 3e-3}),
}


@pytest.mark.parametrize("saved", SAVED.values(), ids=SAVED)
def test_a_tensor_that_groups_share_is_parted_where_their_values_are(tmp_path, saved):
    model = net()
    ckpt.save(tmp_path, 1, model=model, optimizer=in_groups(model, own=saved()))
    rate = torch.tensor(0.5)
    optimizer = in_groups(model, lr=rate)
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert rates(optimizer) == [0.01, 0.003]
    # A compiled step reads the tensor it was built with: one of them keeps it.
    assert optimizer.param_groups[0]["lr"] is rate
    assert optimizer.param_groups[1]["lr"] is not rate
    assert optimizer.param_groups[1]["lr"].dtype == torch.float32


def test_a_shared_tensor_stays_shared_where_its_values_are_equal(tmp_path):
    model = net()
    ckpt.save(tmp_path, 1, model=model, optimizer=in_groups(model, lr=torch.tensor(0.25)))
    rate = torch.tensor(0.5)
    optimizer = in_groups(model, lr=rate)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert all(group["lr"] is rate for group in optimizer.param_groups)
    assert rate == 0.25


def test_two_keys_of_one_tensor_are_parted(tmp_path):
    model = net()
    optimizer = in_groups(model, lr=0.25)
    for group in optimizer.param_groups:
        group["initial_lr"] = 0.75
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    rate = torch.tensor(0.5)
    optimizer = in_groups(model, lr=rate)
    for group in optimizer.param_groups:
        group["initial_lr"] = rate
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert (rates(optimizer), rates(optimizer, "initial_lr")) == ([0.25] * 2, [0.75] * 2)


def test_tensors_inside_a_tuple_come_back_into_those_that_are_there(tmp_path):
    def build(b1, b2):
        betas = (torch.tensor(b1), torch.tensor(b2))
        return in_groups(model, lr=torch.tensor(0.1), betas=betas, capturable=True)

    model = net()
    ckpt.save(tmp_path, 1, model=model, optimizer=build(0.75, 0.5))
    optimizer = build(0.9, 0.99)
    before = [group["betas"] for group in optimizer.param_groups]
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    for group, (b1, b2) in zip(optimizer.param_groups, before, strict=True):
        assert group["betas"][0] is b1
        assert group["betas"][1] is b2
        assert (float(b1), float(b2)) == (0.75, 0.5)


def test_a_whole_tensor_does_not_cut_a_fraction_off(tmp_path):
    model = net()
    ckpt.save(tmp_path, 1, model=model, optimizer=in_groups(model, lr=0.5))
    optimizer = in_groups(model, lr=torch.tensor(1))
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert rates(optimizer) == [0.5, 0.5]


def test_numpy_numbers_come_back(tmp_path):
    model = net()
    optimizer = in_groups(model, lr=np.float64(0.5), cls=torch.optim.SGD, momentum=np.float32(0.25))
    optimizer.state[model[0].weight]["seen"] = np.int64(7)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    optimizer = in_groups(model, lr=0.1, cls=torch.optim.SGD, momentum=0.9)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    group = optimizer.param_groups[0]
    assert (group["lr"], type(group["lr"])) == (0.5, np.float64)
    assert (group["momentum"], type(group["momentum"])) == (0.25, np.float32)
    assert optimizer.state[model[0].weight]["seen"] == 7


class Counting(torch.optim.SGD):
    """Writes keys into its groups as it steps, as most optimizers outside of torch do."""

    def step(self):
        super().step()
        for group in self.param_groups:
            group["step"] = group.get("step", 0) + 1
            group["scale"] = torch.tensor(0.5 * group["step"])


def stepped(cls, times=3):
    model = net()
    optimizer = cls(model.parameters(), lr=0.1, momentum=0.9)
    for _ in range(times):
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()
    return model, optimizer


def test_what_steps_write_into_groups_is_state(tmp_path):
    model, optimizer = stepped(Counting)
    ckpt.save(tmp_path, 3, model=model, optimizer=optimizer)
    other, resumed = stepped(Counting, 0)
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    assert resumed.param_groups[0]["step"] == 3
    assert resumed.param_groups[0]["scale"] == 1.5


class Moved(Counting):
    """The same class in another module of its package."""


Moved.__qualname__, Moved.__module__ = Counting.__qualname__, f"{Counting.__module__}._moved"


class Stranger(Counting):
    """A class of the same name from elsewhere."""


Stranger.__qualname__, Stranger.__module__ = Counting.__qualname__, "elsewhere"


def test_what_steps_write_is_known_by_package_and_class(tmp_path):
    model, optimizer = stepped(Counting)
    ckpt.save(tmp_path, 3, model=model, optimizer=optimizer)
    other, resumed = stepped(Moved, 0)
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    assert resumed.param_groups[0]["step"] == 3
    for cls, said in ((Stranger, "group 0 has no hyperparameter 'step'"), (torch.optim.SGD, "SGD")):
        other, resumed = stepped(cls, 0)
        with pytest.raises(oc.IncompatibleCheckpointError, match=said):
            ckpt.restore(tmp_path, model=other, optimizer=resumed)


def test_what_steps_wrote_does_not_outlive_a_restore_of_the_start(tmp_path):
    model, optimizer = stepped(Counting, 0)
    ckpt.save(tmp_path, 0, model=model, optimizer=optimizer)
    other, resumed = stepped(Counting)
    with pytest.raises(oc.IncompatibleCheckpointError, match="group 0 has 'step', the checkpoint"):
        ckpt.restore(tmp_path, model=other, optimizer=resumed)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)


class Wrapper:
    """Keeps the list of groups that its optimizer had when it was made."""

    def __init__(self, inner):
        self.inner = inner
        self.param_groups = inner.param_groups

    @property
    def state(self):
        return self.inner.state

    def state_dict(self):
        return self.inner.state_dict()

    def load_state_dict(self, state_dict):
        self.inner.load_state_dict(state_dict)


@pytest.mark.parametrize("rate", [0.5, 0.1], ids=["another rate", "the same rate"])
def test_a_wrapper_that_loses_the_groups_is_refused_and_put_back(tmp_path, rate):
    model, inner = stepped(torch.optim.SGD)
    inner.param_groups[0]["lr"] = rate
    ckpt.save(tmp_path, 3, model=model, optimizer=Wrapper(inner))
    other, inner = stepped(torch.optim.SGD, 1)
    state = {key: dict(slots) for key, slots in inner.state.items()}
    groups = inner.param_groups
    with pytest.raises(oc.IncompatibleCheckpointError, match="SGD inside it other param_groups"):
        ckpt.restore(tmp_path, model=other, optimizer=Wrapper(inner))
    assert inner.param_groups is groups
    assert groups[0]["lr"] == 0.1
    assert {key: dict(slots) for key, slots in inner.state.items()} == state


class Deaf(torch.optim.SGD):
    """Loads its state and keeps its own rate."""

    def load_state_dict(self, state_dict):
        rate = self.param_groups[0]["lr"]
        super().load_state_dict(state_dict)
        self.param_groups[0]["lr"] = rate


def test_hyperparameters_are_read_back(tmp_path):
    model, optimizer = stepped(Deaf)
    optimizer.param_groups[0]["lr"] = 0.5
    ckpt.save(tmp_path, 3, model=model, optimizer=optimizer)
    other, resumed = stepped(Deaf, 0)
    said = r"group 0: lr was loaded as 0\.5, param_groups has 0\.1"
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, model=other, optimizer=resumed)
    assert not resumed.state


class Nested(torch.optim.SGD):
    """A state dict of another form."""

    def state_dict(self):
        return {"base": super().state_dict()}


def test_a_state_dict_of_another_form_is_refused(tmp_path):
    model, optimizer = stepped(Nested)
    said = r"Nested: its state_dict\(\) has \['base'\] and no 'param_groups': save the optimizer"
    with pytest.raises(oc.UnsupportedStateError, match=said):
        ckpt.save(tmp_path, 3, model=model, optimizer=optimizer)
