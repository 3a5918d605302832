"""Modules that keep more than their parameters and buffers, or load by code of their own."""

import warnings

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from torch import nn


class Counting(nn.Linear):
    """Extra state that is a tensor, whose size grows."""

    def __init__(self):
        super().__init__(2, 2)
        self.seen = [1]

    def get_extra_state(self):
        return torch.tensor(self.seen)

    def set_extra_state(self, state):
        self.seen = state.tolist()


class Cloning(nn.Linear):
    """Saves a clone of its weight, and loads it as any module does."""

    def __init__(self):
        super().__init__(2, 2)

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[f"{prefix}weight"] = self.weight.clone()


class Metric(nn.Module):
    """Persistent values that are attributes and no buffers, as torchmetrics keeps them."""

    def __init__(self):
        super().__init__()
        self.total = torch.zeros(())

    def _save_to_state_dict(self, destination, prefix, keep_vars):
        destination[f"{prefix}total"] = self.total.clone()

    def _load_from_state_dict(self, state_dict, prefix, metadata, strict, missing, *rest):
        self.total = state_dict.pop(f"{prefix}total")


class Growing(nn.Module):
    """An entry that is there only after the first use."""

    def __init__(self):
        super().__init__()
        self.register_buffer("cache", None)

    def _load_from_state_dict(self, state_dict, prefix, *rest):
        if f"{prefix}cache" in state_dict:
            self.cache = torch.empty_like(state_dict[f"{prefix}cache"])
        super()._load_from_state_dict(state_dict, prefix, *rest)


class Resized(Growing):
    """A buffer whose shape is that of the data it saw."""

    def __init__(self):
        super().__init__()
        self.cache = torch.zeros(0)


def casting():
    """A hook of the model that saves all of it in another dtype."""
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))

    def cast(module, state, prefix, metadata):
        for key in list(state):
            state[key] = state[key].to(torch.float16)

    model.register_state_dict_post_hook(cast)
    return model


def lazy():
    return nn.Sequential(nn.LazyLinear(3), nn.BatchNorm1d(3))


def built(make):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(2, 2), make())
    for module in model.modules():
        if isinstance(module, Counting):
            module.seen = [7, 8, 9]
        if isinstance(module, Metric):
            module.total = torch.tensor(6.0)
        if isinstance(module, Growing):
            module.cache = torch.arange(3.0)
    if make is lazy:
        model(torch.randn(4, 2))
    return model


KINDS = {
    "extra state that is a tensor": Counting,
    "a clone": Cloning,
    "an attribute": Metric,
    "an entry that appears": Growing,
    "a buffer of another size": Resized,
    "a hook that casts": casting,
    "a lazy module": lazy,
}


@pytest.mark.parametrize("make", KINDS.values(), ids=KINDS)
def test_a_module_that_loads_itself_is_restored(tmp_path, make):
    model = built(make)
    ckpt.save(tmp_path, 1, model=model)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(2, 2), make())
    first = other[0].weight.data_ptr()
    ckpt.restore(tmp_path, model=other)
    here, there = other.state_dict(), model.state_dict()
    assert list(here) == list(there)
    for name, value in there.items():
        assert torch.equal(here[name], value), name
    # What is plain memory is copied into, beside what is not.
    assert other[0].weight.data_ptr() == first


def test_hooks_of_a_load_run(tmp_path):
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    ckpt.save(tmp_path, 1, model=model)
    other = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    calls = []
    other[1].register_load_state_dict_pre_hook(lambda *given: calls.append("before"))
    other.register_load_state_dict_post_hook(lambda module, keys: calls.append(str(keys)))
    ckpt.restore(tmp_path, model=other)
    assert calls == ["before", "<All keys matched successfully>"]
    assert torch.equal(other[1].weight, model[1].weight)


def test_a_compiled_part_inside_a_model_with_hooks_is_restored(tmp_path):
    def build():
        model = nn.Sequential(torch.compile(nn.Linear(2, 2), backend="eager"), Metric())
        model.register_load_state_dict_post_hook(lambda module, keys: None)
        return model

    model = build()
    model[1].total = torch.tensor(3.0)
    ckpt.save(tmp_path, 1, model=model)
    other = build()
    ckpt.restore(tmp_path, model=other)
    assert torch.equal(other[0].weight, model[0].weight)
    assert other[1].total == 3.0


class Refusing(Counting):
    """Changes itself, then refuses."""

    refuses = False

    def set_extra_state(self, state):
        super().set_extra_state(state)
        if self.refuses and self.seen == [7, 8, 9]:
            raise ValueError("no room")


class Forgetting(Counting):
    """Takes its extra state and does nothing with it."""

    def set_extra_state(self, state):
        pass


class Scaling(Cloning):
    """Holds something else than it was given."""

    def _load_from_state_dict(self, *given):
        super()._load_from_state_dict(*given)
        self.weight.data.mul_(2)


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Refusing, r"load_state_dict\(\) of the Refusing raised ValueError: no room"),
        (Forgetting, r"1\._extra_state was given to set_extra_state\(\), which changed nothing"),
        (Scaling, r"entry 1\.weight is not what its module's load_state_dict\(\) was given"),
    ],
)
def test_a_module_that_does_not_take_it_is_put_back_with_all_else(tmp_path, make, said):
    model = built(make)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    torch.manual_seed(5)
    other = nn.Sequential(nn.Linear(2, 2), make())
    other[1].refuses = True
    before = {name: value.clone() for name, value in other.state_dict().items()}
    weight, optimizer = other[1].weight, torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, model=other, optimizer=optimizer)
    assert other[1].weight is weight
    assert optimizer.param_groups[0]["lr"] == 0.1
    for name, value in other.state_dict().items():
        assert torch.equal(value, before[name]), name


def test_a_lazy_module_stays_lazy_where_the_restore_fails(tmp_path):
    ckpt.save(tmp_path, 1, model=nn.Sequential(built(lazy), built(Forgetting)))
    other = nn.Sequential(
        nn.Sequential(nn.Linear(2, 2), lazy()), nn.Sequential(nn.Linear(2, 2), Forgetting())
    )
    with pytest.raises(oc.IncompatibleCheckpointError, match="changed nothing"):
        ckpt.restore(tmp_path, model=other)
    parameter = other[0][1][0].weight
    assert isinstance(parameter, nn.UninitializedParameter)
    assert other[0](torch.randn(4, 2)).shape == (4, 3)


def test_an_optimizer_of_parameters_without_shape_is_refused(tmp_path):
    model = built(lazy)
    ckpt.save(tmp_path, 1, model=model, optimizer=torch.optim.SGD(model.parameters(), lr=0.5))
    other = nn.Sequential(nn.Linear(2, 2), lazy())
    optimizer = torch.optim.SGD(other.parameters(), lr=0.5)
    with pytest.raises(oc.IncompatibleCheckpointError, match=r"1\.0\.weight has no shape yet: run"):
        ckpt.restore(tmp_path, model=other, optimizer=optimizer)


class Clock(Counting):
    """Extra state that is never the same twice."""

    ticks = 0

    def get_extra_state(self):
        type(self).ticks += 1
        return {"seen": self.seen, "tick": self.ticks}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_extra_state_that_changes_by_itself_is_only_said(tmp_path):
    ckpt.save(tmp_path, 1, model=built(Clock))
    other = Clock()
    with pytest.warns(oc.CheckpointWarning, match="_extra_state is another one than was given"):
        ckpt.restore(tmp_path, model=nn.Sequential(nn.Linear(2, 2), other))
    assert other.seen == [7, 8, 9]


def weight_normed():
    return nn.utils.parametrizations.weight_norm(nn.Linear(2, 2))


def spectral():
    return nn.utils.parametrizations.spectral_norm(nn.Linear(2, 2))


def old_spectral():
    return nn.utils.spectral_norm(nn.Linear(2, 2))


def averaged():
    model = torch.optim.swa_utils.AveragedModel(nn.BatchNorm1d(2))
    model.update_parameters(nn.BatchNorm1d(2))
    return model


@pytest.mark.filterwarnings("ignore:`torch.nn.utils.spectral_norm:FutureWarning")
@pytest.mark.parametrize("make", [weight_normed, spectral, old_spectral, averaged])
def test_what_torch_wraps_is_copied_into_as_it_is(tmp_path, make):
    torch.manual_seed(0)
    model = make()
    ckpt.save(tmp_path, 1, model=model)
    torch.manual_seed(1)
    other = make()
    memory = {name: tensor.data_ptr() for name, tensor in other.state_dict().items()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ckpt.restore(tmp_path, model=other)
    for name, tensor in model.state_dict().items():
        assert torch.equal(other.state_dict()[name], tensor), name
        assert other.state_dict()[name].data_ptr() == memory[name]
