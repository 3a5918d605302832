"""Restoring without staging: into the live memory, and told where it ends midway."""

import os
import re
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import _reading
from optim_checkpoint import torch as ckpt
from optim_checkpoint._header import TensorInfo
from optim_checkpoint.torch._direct import Direct


class Net(torch.nn.Module):
    """Plain, tied, empty, strided, half and small tensors, and two buffers that overlap."""

    def __init__(self):
        super().__init__()
        self.up = torch.nn.Linear(300, 200)
        self.tied = torch.nn.Linear(300, 200, bias=False)
        self.tied.weight = self.up.weight
        self.conv = torch.nn.Conv2d(4, 8, 3).to(memory_format=torch.channels_last)
        self.low = torch.nn.Parameter(torch.zeros(70, 3, dtype=torch.bfloat16))
        self.register_buffer("none", torch.zeros(0, 3))
        self.register_buffer("across", torch.zeros(30, 40).t())
        base = torch.zeros(9)
        self.register_buffer("left", base[:6])
        self.register_buffer("right", base[3:])


def build(step):
    """Return a model and an optimizer with state that depends on the step."""
    torch.manual_seed(step)
    model = Net()
    base = model.left.untyped_storage()
    with torch.no_grad():
        for tensor in model.state_dict().values():
            if tensor.untyped_storage().data_ptr() != base.data_ptr():
                tensor.copy_(torch.randn(tensor.shape))
        model.left.copy_(torch.arange(6.0) + step)
        model.right.copy_(torch.arange(3.0, 9.0) + step)
    optimizer = torch.optim.AdamW(model.parameters(), amsgrad=True)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    return model, optimizer


def memory(model, optimizer):
    state = [v for slots in optimizer.state.values() for v in slots.values()]
    return [t.data_ptr() for t in (*model.state_dict().values(), *state)]


def bits(model, optimizer):
    """Return every value in the order of the parameters, which is that of their state."""
    tensors = list(model.state_dict().values())
    for parameter in model.parameters():
        tensors += optimizer.state[parameter].values()
    return [t.detach().contiguous().reshape(-1).view(torch.uint8).tolist() for t in tensors]


def save(folder, *steps):
    for step in steps:
        model, optimizer = build(step)
        path = ckpt.save(folder, step, model=model, optimizer=optimizer)
    return path


def damage(path, file="model/model.safetensors"):
    # A bit of the largest tensor, in the middle of the file.
    raw = bytearray((path / file).read_bytes())
    raw[len(raw) // 2] ^= 1
    (path / file).write_bytes(raw)


def restore(folder, live, **options):
    model, optimizer = live
    return ckpt.restore(folder, model=model, optimizer=optimizer, staging=False, **options)


def test_the_live_memory_gets_every_bit(tmp_path):
    save(tmp_path, 1)
    live = build(2)
    where = memory(*live)
    strided = live[0].conv.weight.stride()
    version = live[0].up.weight._version
    restore(tmp_path, live)
    assert bits(*live) == bits(*build(1))
    # What is strided or of no element is not read into.
    moved = [i for i, (a, b) in enumerate(zip(where, memory(*live), strict=True)) if a != b]
    assert len(moved) == 3, moved
    assert live[0].conv.weight.stride() == strided
    assert live[0].up.weight._version > version


def test_nothing_of_size_is_allocated(tmp_path, monkeypatch):
    save(tmp_path, 1)
    live = build(2)
    sizes = []

    def recorded(function):
        def call(*arguments, **options):
            made = function(*arguments, **options)
            sizes.append(made.nbytes)
            return made

        return call

    monkeypatch.setattr(np, "empty", recorded(np.empty))
    monkeypatch.setattr(torch, "empty", recorded(torch.empty))
    restore(tmp_path, live)
    most = max(sizes)
    sizes.clear()
    ckpt.restore(tmp_path, model=live[0], optimizer=live[1])
    assert most < 20_000 < 240_000 <= max(sizes)


def test_an_older_generation_is_read_over_a_damaged_one(tmp_path):
    damage(save(tmp_path, 1, 2))
    live = build(3)
    with pytest.warns(oc.CheckpointWarning, match="skipped a damaged checkpoint: step-00000002"):
        assert restore(tmp_path, live).step == 1
    assert bits(*live) == bits(*build(1))


@pytest.mark.parametrize("file", ["model/model.safetensors", "optim/optim.safetensors"])
def test_damage_with_nothing_older_says_that_the_live_tensors_are_torn(tmp_path, file):
    damage(save(tmp_path, 1), file)
    live = build(2)
    with pytest.raises(oc.TornRestoreError, match=rf"live tensors .* \(step-00000001/{file}") as e:
        restore(tmp_path, live)
    assert isinstance(e.value.__cause__, oc.CorruptCheckpointError)
    # With staging nothing changes, and there is nothing to say.
    live = build(2)
    with pytest.raises(oc.CorruptCheckpointError):
        ckpt.restore(tmp_path, model=live[0], optimizer=live[1])
    assert bits(*live) == bits(*build(2))


def test_a_read_that_fails_says_so_too(tmp_path, monkeypatch):
    save(tmp_path, 1)
    read, calls = os.preadv, []

    def preadv(fd, buffers, offset):
        calls.append(len(buffers[0]))
        # The header and the manifest are read before.
        if len(buffers[0]) >= 100_000:
            raise OSError(13, "no luck")
        return read(fd, buffers, offset)

    monkeypatch.setattr(_reading.os, "preadv", preadv)
    with pytest.raises(oc.TornRestoreError, match="EACCES") as caught:
        restore(tmp_path, build(2))
    assert isinstance(caught.value.__cause__, oc.CheckpointReadError)
    assert max(calls) >= 100_000


def test_what_does_not_fit_changes_nothing(tmp_path):
    save(tmp_path, 1)
    live = build(2)
    live[0].up.bias = torch.nn.Parameter(torch.zeros(7))
    before = [t.clone() for t in live[0].state_dict().values()]
    with pytest.raises(oc.IncompatibleCheckpointError, match=re.escape("up.bias has shape [200]")):
        ckpt.restore(tmp_path, model=live[0], staging=False)
    assert all(map(torch.equal, before, live[0].state_dict().values()))


def test_an_older_generation_that_has_less_leaves_the_rest_torn(tmp_path):
    model = Net()
    ckpt.save(tmp_path, 1, model=model.up)
    damage(save(tmp_path, 2))
    holder = torch.nn.Module()
    holder.up = model.up
    ckpt.save(tmp_path, 1, model=holder, replace=True)
    with (
        pytest.warns(oc.CheckpointWarning, match="skipped"),
        pytest.raises(oc.TornRestoreError, match="step 1 was restored after a damaged one"),
    ):
        ckpt.restore(tmp_path, model=Net(), strict=False, staging=False)


def test_a_scheduler_that_refuses_comes_too_late(tmp_path):
    class Refusing:
        def __init__(self, refuses):
            self.refuses = refuses

        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            if self.refuses:
                raise KeyError("mine")

    model, optimizer = build(1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer, scheduler=Refusing(False))
    with pytest.raises(oc.TornRestoreError, match="mine"):
        restore(tmp_path, build(2), scheduler=Refusing(True))


def test_an_optimizer_that_loads_itself_is_staged(tmp_path):
    class Own(torch.optim.SGD):
        def load_state_dict(self, state):
            # What it is given must not be what it has.
            for slots in self.state.values():
                for value in slots.values():
                    value.zero_()
            super().load_state_dict(state)

    def made(step):
        torch.manual_seed(step)
        model = torch.nn.Linear(30, 20)
        optimizer = Own(model.parameters(), lr=0.1, momentum=0.9)
        model(torch.randn(5, 30)).sum().backward()
        optimizer.step()
        return model, optimizer

    model, optimizer = made(1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    live = made(2)
    restore(tmp_path, live)
    assert bits(*live) == bits(model, optimizer)


def test_two_that_overlap_are_not_both_read_into():
    base, direct = torch.zeros(9), Direct()
    assert direct.take(base[:6], TensorInfo("F32", (6,), 0, 24))
    assert not direct.take(base[3:], TensorInfo("F32", (6,), 0, 24))
    assert not direct.take(base[:1], TensorInfo("F32", (1,), 0, 4))
    assert direct.take(base[6:], TensorInfo("F32", (3,), 0, 12))


def test_an_expanded_tensor_is_refused_before_anything_changes(tmp_path):
    model = torch.nn.Module()
    model.register_buffer("wide", torch.arange(6.0))
    model.register_buffer("plain", torch.ones(300, 300))
    ckpt.save(tmp_path, 1, model=model)
    live = torch.nn.Module()
    live.register_buffer("wide", torch.zeros(1).expand(6))
    live.register_buffer("plain", torch.zeros(300, 300))
    with pytest.raises(
        oc.IncompatibleCheckpointError, match=r"wide has elements that share memory"
    ):
        ckpt.restore(tmp_path, model=live, staging=False)
    assert not live.plain.any()


def test_models_are_restored_side_by_side(tmp_path):
    save(tmp_path, 1)
    lives = [build(step) for step in range(2, 6)]
    with ThreadPoolExecutor(len(lives)) as pool:
        for restored in pool.map(lambda live: restore(tmp_path, live), lives):
            assert restored.step == 1
    for live in lives:
        assert bits(*live) == bits(*build(1))
