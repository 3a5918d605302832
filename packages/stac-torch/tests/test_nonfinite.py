"""Gradients that are not finite: the policies, their counters, and AMP."""

import copy
import math
import pickle

import pytest
import torch
import torch.distributed as dist
from stac_torch import STAC
from stac_torch._hosts import flag_device
from torch import nn
from torch.distributed.optim import ZeroRedundancyOptimizer

BAD = [math.nan, math.inf, -math.inf]


def hybrid(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    return model, STAC(model, weight_decay=0.1, **options)


def backward(model, poison=None, where=0):
    model.zero_grad()
    model(torch.ones(2, 3)).square().sum().backward()
    if poison is not None:
        list(model.parameters())[where].grad.view(-1)[-1] = poison


def snapshot(model, optimizer):
    return copy.deepcopy((model.state_dict(), optimizer.state_dict()["state"]))


def same(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0)


@pytest.mark.parametrize("where", [0, 3])
@pytest.mark.parametrize("bad", BAD)
def test_skip_leaves_everything(bad, where):
    model, optimizer = hybrid()
    backward(model)
    optimizer.step()
    before = snapshot(model, optimizer)
    backward(model, bad, where)
    optimizer.step()
    same(snapshot(model, optimizer), before)
    assert optimizer.nonfinite_skipped_steps == 1
    backward(model)
    optimizer.step()
    assert not torch.equal(model[0].weight, before[0]["0.weight"])
    assert optimizer.nonfinite_skipped_steps == 1


def test_a_first_step_that_is_skipped_creates_no_state():
    model, optimizer = hybrid()
    backward(model, math.nan)
    optimizer.step()
    assert len(optimizer.state) == 0


@pytest.mark.parametrize("options", [{"nonfinite": "raise"}, {"error_if_nonfinite": True}])
def test_raise_changes_nothing(options):
    model, optimizer = hybrid(**options)
    before = snapshot(model, optimizer)
    backward(model, math.nan, 3)
    with pytest.raises(RuntimeError, match="a gradient is not finite; nothing was changed"):
        optimizer.step()
    same(snapshot(model, optimizer), before)
    assert optimizer.nonfinite_skipped_steps == 0


@pytest.mark.parametrize("foreach", [False, True])
@pytest.mark.parametrize("momentum", [0.0, 0.9])
def test_propagate_shows(momentum, foreach):
    """sign(nan) is nan, sign(inf) is 1; an entry beside them steps as ever."""
    p = nn.Parameter(torch.zeros(4))
    optimizer = STAC(
        [p], role="sign", lr=1.0, sign_momentum=momentum, nonfinite="propagate", foreach=foreach
    )
    p.grad = torch.tensor([math.nan, math.inf, -math.inf, 1.0])
    optimizer.step()
    assert p.isnan().tolist() == [True, False, False, False]
    assert p[1:].tolist() == [-1.0, 1.0, -1.0]
    assert optimizer.nonfinite_skipped_steps == 0


def test_large_finite_gradients_are_finite():
    for dtype in (torch.float16, torch.bfloat16, torch.float32):
        p = nn.Parameter(torch.zeros(1000, dtype=dtype))
        optimizer = STAC([p], role="sign", lr=1.0, nonfinite="raise")
        p.grad = torch.full_like(p, torch.finfo(dtype).max)
        optimizer.step()
        assert p.tolist() == [-1.0] * 1000


def test_empty_and_missing_gradients():
    empty, missing = nn.Parameter(torch.zeros(0)), nn.Parameter(torch.ones(2))
    optimizer = STAC([empty, missing], role="sign")
    empty.grad = torch.zeros(0)
    optimizer.step()
    assert optimizer.nonfinite_skipped_steps == 0
    assert missing.tolist() == [1.0, 1.0]


def test_a_dead_run_is_ended():
    model, optimizer = hybrid(max_consecutive_nonfinite=3)
    for _ in range(2):
        backward(model, math.nan)
        optimizer.step()
    backward(model)
    optimizer.step()
    for _ in range(2):
        backward(model, math.nan)
        optimizer.step()
    backward(model, math.nan)
    with pytest.raises(RuntimeError, match="the gradients of 3 steps in a row were not finite"):
        optimizer.step()
    assert optimizer.nonfinite_skipped_steps == 5


def test_no_limit():
    model, optimizer = hybrid(max_consecutive_nonfinite=None)
    for _ in range(150):
        backward(model, math.nan)
        optimizer.step()
    assert optimizer.nonfinite_skipped_steps == 150


def test_counters_survive_copies():
    model, optimizer = hybrid()
    backward(model, math.nan)
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied.nonfinite_skipped_steps == 1


@pytest.mark.parametrize("role", ["sign", "adamw"])
@pytest.mark.parametrize("bad", [False, True])
def test_a_supplied_flag_replaces_the_check(role, bad):
    p = nn.Parameter(torch.ones(2))
    optimizer = STAC([p], role=role, nonfinite="raise")
    p.grad = torch.ones(2)
    optimizer.found_inf = torch.tensor(float(bad))
    optimizer.step()
    assert torch.equal(p.detach(), torch.ones(2)) is bad
    assert optimizer.nonfinite_skipped_steps == 0


def test_grad_scaler_decides_in_float16_training():
    """The scaler unscales and skips by itself; its skips are not ours."""
    model, optimizer = hybrid()
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**4)
    before = copy.deepcopy(model.state_dict())
    optimizer.zero_grad()
    loss = model(torch.ones(2, 3)).sum() * math.inf
    scaler.scale(loss).backward()
    scaler.step(optimizer)
    scaler.update()
    same(dict(model.state_dict()), dict(before))
    assert scaler.get_scale() == 8.0
    assert optimizer.nonfinite_skipped_steps == 0
    optimizer.zero_grad()
    scaler.scale(model(torch.ones(2, 3)).sum()).backward()
    scaler.step(optimizer)
    scaler.update()
    assert not torch.equal(model[0].weight, before["0.weight"])


def test_sparse_gradients_are_refused_before_anything_changes():
    embedding = nn.Embedding(5, 2, sparse=True)
    model = nn.Sequential(embedding, nn.Linear(2, 2))
    optimizer = STAC(model)
    before = copy.deepcopy(model.state_dict())
    model(torch.tensor([1, 2])).sum().backward()
    with pytest.raises(RuntimeError, match=r"STAC does not support sparse gradients, got one of"):
        optimizer.step()
    same(dict(model.state_dict()), dict(before))


def test_a_copy_decides_with_the_same_ranks():
    group = object()
    copied = copy.deepcopy(hybrid(nonfinite_group=group)[1])
    assert copied._guard.deciders.group is group
    assert pickle.loads(pickle.dumps(copied))._guard.deciders.group is None


def test_the_owners_of_shards_are_found(tmp_path):
    """ZeRO builds the optimizer itself, in a process group of its own choice."""
    meet = f"file://{tmp_path}/meet"
    dist.init_process_group("gloo", init_method=meet, rank=0, world_size=1)
    try:
        group = dist.new_group([0])
        model = nn.Linear(2, 2)
        groups = [{"params": list(model.parameters()), "role": "sign"}]
        sharded = ZeroRedundancyOptimizer(groups, STAC, process_group=group, lr=0.1)
        deciders = sharded.optim._guard.deciders
        assert (deciders.group, deciders.device) == (group, torch.device("cpu"))
        assert STAC(model)._guard.deciders.group is None
        own = STAC(model, nonfinite_group=group)._guard.deciders
        assert (own.group, flag_device([], own)) == (group, torch.device("cpu"))
    finally:
        dist.destroy_process_group()
    assert STAC(model)._guard.deciders.group is None


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({"betas": (torch.tensor(0.9), torch.tensor(0.999))}, r"betas\[0\]"),
        ({"weight_decay": torch.tensor(0.1)}, "weight_decay"),
    ],
)
def test_only_lr_may_be_a_tensor(options, name):
    with pytest.raises(TypeError, match=f"{name} must be a number, got a tensor: only lr may be"):
        STAC([nn.Parameter(torch.ones(2))], role="adamw", **options)


def test_a_pickle_of_the_first_release_goes_on():
    model, optimizer = hybrid()
    guard = optimizer._guard
    old = {**guard.__getstate__(), "group": None}
    del old["deciders"]
    fresh = object.__new__(type(guard))
    fresh.__setstate__(old)
    optimizer._guard = fresh
    backward(model, math.nan)
    optimizer.step()
    assert optimizer.nonfinite_skipped_steps == 1
