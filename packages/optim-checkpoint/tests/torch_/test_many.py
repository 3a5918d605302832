"""Optimizers of very many parameters, names that files reserve, and modules with odd names."""

import gc

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt


class Slots(torch.optim.Optimizer):
    """Many tensors of state for each parameter.

    torch looks each tensor that it loads up in the list of all parameters: of as many in AdamW's
    two slots that would take minutes.
    """

    def __init__(self, params):
        super().__init__(params, {"lr": 0.1})


def make(count):
    model = torch.nn.ParameterList(torch.zeros(1) for _ in range(count))
    return model, Slots(model.parameters())


@pytest.mark.parametrize("count", [20, pytest.param(6_200, marks=pytest.mark.slow)])
def test_an_optimizer_of_many_tensors_is_restored(memory_path, count):
    model, optimizer = make(count)
    for i, parameter in enumerate(model):
        parameter.data.fill_(i)
        slots = enumerate(torch.randn(30, 1))
        optimizer.state[parameter] = {f"slot_{j}": value.clone() for j, value in slots}
    ckpt.save(memory_path, 1, model=model, optimizer=optimizer)
    other, restored = make(count)
    ckpt.restore(memory_path, model=other, optimizer=restored)
    for before, after in zip(model, other, strict=True):
        assert torch.equal(before, after)
        assert len(optimizer.state[before]) == len(restored.state[after]) == 30
        for slot, value in optimizer.state[before].items():
            assert torch.equal(restored.state[after][slot], value)


@pytest.mark.slow
def test_100_000_tensors_go_to_a_store_and_come_back():
    url = "memory://many/run"
    model = torch.nn.ParameterList(torch.full((1,), float(i)) for i in range(100_000))
    ckpt.save(url, 1, model=model, rng=False, incremental=True)
    with torch.no_grad():
        model[7].fill_(-1)
    ckpt.save(url, 2, model=model, rng=False, incremental=True, keep=1)
    other = torch.nn.ParameterList(torch.zeros(1) for _ in range(100_000))
    assert ckpt.restore(url, model=other).step == 2
    assert torch.equal(torch.cat([*model]), torch.cat([*other]))


@pytest.mark.parametrize("enabled", [True, False])
def test_the_collector_is_left_as_it_was(tmp_path, enabled):
    model = torch.nn.Linear(2, 2)
    ckpt.save(tmp_path, 1, model=model)
    was = gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        ckpt.restore(tmp_path, model=model)
        assert gc.isenabled() is enabled
        with pytest.raises(oc.IncompatibleCheckpointError):
            ckpt.restore(tmp_path, model=torch.nn.Linear(3, 2))
        assert gc.isenabled() is enabled
    finally:
        (gc.enable if was else gc.disable)()


def test_a_reserved_name_is_refused_as_such(tmp_path):
    model = torch.nn.Module()
    model.register_parameter("__metadata__", torch.nn.Parameter(torch.zeros(2)))
    with pytest.raises(oc.UnsupportedStateError, match=r"^__metadata__: .* safetensors reserves"):
        ckpt.save(tmp_path, 1, model=model)
    assert oc.steps(tmp_path) == []


@pytest.mark.parametrize("name", ["x" * 2000, "a\nb", "\x9b"], ids=["long", "line", "c1"])
def test_a_name_that_no_file_takes_is_kept_all_the_same(tmp_path, name):
    model = torch.nn.Module()
    model.register_parameter(name, torch.nn.Parameter(torch.randn(2)))
    optimizer = torch.optim.SGD(model.parameters(), 0.1, momentum=0.9)
    getattr(model, name).grad = torch.ones(2)
    optimizer.step()
    expected = getattr(model, name).detach().clone()
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    with torch.no_grad():
        getattr(model, name).zero_()
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert torch.equal(getattr(model, name), expected)
