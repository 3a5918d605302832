"""Tensors that have no memory are refused by name, and nothing is written or changed."""

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch._subclasses.functional_tensor import FunctionalTensor, FunctionalTensorMode


class Hollow(torch.Tensor):
    """A wrapper with a shape and no memory, as libraries make them."""

    @staticmethod
    def __new__(cls, shape):
        return torch.Tensor._make_wrapper_subclass(cls, shape)

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return Hollow(args[0].shape)


def fake():
    with FakeTensorMode():
        return torch.ones(2, 3)


def functional_subclass():
    with FunctionalTensorMode():
        return FunctionalTensor.to_functional(torch.ones(2, 3))


def resized(nbytes):
    tensor = torch.ones(2, 3)
    tensor.untyped_storage().resize_(nbytes)
    return tensor


def batched():
    kept = []
    torch.func.vmap(lambda x: kept.append(x) or x)(torch.ones(4, 2, 3))
    return kept[0]


KINDS = {
    "FakeTensor": (fake, "a FakeTensor, which has no data"),
    "functional": (
        lambda: torch._to_functional_tensor(torch.ones(2, 3)),
        "a functional tensor, which has no memory",
    ),
    "FunctionalTensor": (functional_subclass, "a FunctionalTensor"),
    "vmap": (batched, "belongs to a transformation of torch.func"),
    "freed": (lambda: resized(0), "needs 24 bytes of memory and has 0"),
    "cut": (lambda: resized(8), "needs 24 bytes of memory and has 8"),
    "zeros": (lambda: torch._efficientzerotensor((2, 3)), "a Tensor without memory of its own"),
    "wrapper": (lambda: Hollow((2, 3)), "a Hollow"),
}
each_kind = pytest.mark.parametrize(("make", "message"), KINDS.values(), ids=KINDS)


class Holder(nn.Module):
    def __init__(self, weight):
        super().__init__()
        self.register_buffer("weight", weight)


def in_model(tensor):
    return {"model": Holder(tensor)}


def in_optimizer(tensor):
    model = nn.Linear(3, 2)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    optimizer.state[model.weight]["momentum_buffer"] = tensor
    return {"model": model, "optimizer": optimizer}


def in_extra(tensor):
    return {"extra": {"weight": tensor}}


@each_kind
@pytest.mark.parametrize("place", [in_model, in_optimizer, in_extra])
def test_a_save_refuses_it(tmp_path, make, message, place):
    run = tmp_path / "run"
    state = place(make())
    with pytest.raises(oc.UnsupportedStateError, match=f"weight.*{message}"):
        ckpt.save(run, 1, **state)
    with (
        pytest.raises(oc.UnsupportedStateError, match=f"weight.*{message}"),
        ckpt.AsyncCheckpointer(run) as checkpointer,
    ):
        checkpointer.save(1, **state)
    assert not run.exists()


@each_kind
@pytest.mark.parametrize("staging", [True, False])
def test_a_restore_into_it_is_refused(tmp_path, make, message, staging):
    saved = Holder(torch.zeros(2, 3))
    saved.register_buffer("other", torch.zeros(4))
    ckpt.save(tmp_path, 1, model=saved)
    model = Holder(make())
    model.register_buffer("other", torch.ones(4))
    with pytest.raises(oc.CheckpointError, match=f"model (entry )?weight:? (is )?{message}"):
        ckpt.restore(tmp_path, model=model, staging=staging)
    assert model.other.tolist() == [1] * 4


def test_memory_that_was_freed_can_be_assigned(tmp_path):
    ckpt.save(tmp_path, 1, model=Holder(torch.arange(6.0).reshape(2, 3)))
    model = Holder(resized(0))
    ckpt.restore(tmp_path, model=model, assign=True)
    assert model.weight.flatten().tolist() == list(range(6))


def test_optimizer_state_that_was_freed_gets_new_memory(tmp_path):
    given = in_optimizer(torch.arange(6.0).reshape(2, 3))
    ckpt.save(tmp_path, 1, **given)
    state = given["optimizer"].state[given["model"].weight]
    for staging in (True, False):
        state["momentum_buffer"] = resized(0)
        ckpt.restore(tmp_path, **given, staging=staging)
        state = given["optimizer"].state[given["model"].weight]
        assert state["momentum_buffer"].flatten().tolist() == list(range(6))


def in_fake_mode(act):
    with FakeTensorMode():
        act()


def in_functionalize(act):
    torch.func.functionalize(lambda x: act() or x)(torch.ones(1))


@pytest.mark.parametrize(
    ("inside", "message"),
    [(in_fake_mode, "is a FakeTensor"), (in_functionalize, "belongs to a transformation")],
)
def test_where_no_real_tensors_are_made_nothing_is_saved_or_restored(tmp_path, inside, message):
    model = Holder(torch.ones(2, 3))
    ckpt.save(tmp_path, 1, model=model)
    with pytest.raises(oc.UnsupportedStateError, match=f"save: a tensor made here {message}"):
        inside(lambda: ckpt.save(tmp_path, 2, model=model))
    with pytest.raises(oc.UnsupportedStateError, match=f"restore: a tensor made here {message}"):
        inside(lambda: ckpt.restore(tmp_path, model=model))
    assert oc.steps(tmp_path) == [1]
