"""Incremental saves of a torch training: frozen backbones, tied weights, and other readers."""

import json

import optim_checkpoint as oc
import pytest
import safetensors.torch
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoint import _fs
from optim_checkpoint import torch as ckpt
from optim_checkpoint._export import export
from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader


class Counting(_fs.FileOps):
    written = links = 0

    def write(self, fd, data):
        count = super().write(fd, data)
        self.written += count
        return count

    def link(self, *arguments):
        self.links += 1
        super().link(*arguments)


@pytest.fixture
def ops(monkeypatch):
    counting = Counting()
    monkeypatch.setattr(_fs, "ops", counting)
    return counting


class Adapted(torch.nn.Module):
    """A frozen layer with a trained adapter of low rank."""

    def __init__(self):
        super().__init__()
        self.base = torch.nn.Linear(256, 256).requires_grad_(False)
        self.down = torch.nn.Linear(256, 1, bias=False)
        self.up = torch.nn.Linear(1, 256, bias=False)

    def forward(self, x):
        return self.base(x) + self.up(self.down(x))


def build(seed=0):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Embedding(256, 256), *(Adapted() for _ in range(6)))
    model[0].requires_grad_(False)
    model.append(torch.nn.Linear(256, 256, bias=False))
    model[-1].weight = model[0].weight
    trained = [p for p in model.parameters() if p.requires_grad]
    return model, torch.optim.AdamW(trained, lr=1e-2)


def train(model, optimizer):
    model(torch.arange(8)).square().mean().backward()
    optimizer.step()
    optimizer.zero_grad()


def assert_same(one, other):
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


@pytest.mark.parametrize("background", [False, True])
def test_of_a_frozen_model_the_adapters_are_written(memory_path, ops, background):
    model, optimizer = build()
    total = sum(p.nbytes for p in model.parameters())
    states = {}
    written = []
    with ckpt.AsyncCheckpointer(memory_path, keep=2, incremental=True) as checkpointer:
        for step in range(1, 5):
            train(model, optimizer)
            before = ops.written
            if background:
                checkpointer.save(step, model=model, optimizer=optimizer)
                checkpointer.wait()
            else:
                ckpt.save(
                    memory_path, step, model=model, optimizer=optimizer, keep=2, incremental=True
                )
            written.append(ops.written - before)
            states[step] = {k: v.clone() for k, v in model.state_dict().items()}
    assert written[0] > total
    assert max(written[2:]) < total / 20
    assert oc.steps(memory_path) == [3, 4]
    for step in (3, 4):
        for staging in (True, False):
            fresh, its_optimizer = build(1)
            r = ckpt.restore(
                memory_path, step=step, model=fresh, optimizer=its_optimizer, staging=staging
            )
            assert r.step == step
            assert_same(fresh.state_dict(), states[step])
            assert fresh[-1].weight is fresh[0].weight
    train(model, optimizer)
    train(fresh, its_optimizer)
    assert_same(fresh.state_dict(), model.state_dict())


@pytest.fixture
def saved(memory_path):
    """The last of three steps, which shares files with the second."""
    model, optimizer = build()
    for step in (1, 2, 3):
        train(model, optimizer)
        path = ckpt.save(
            memory_path, step, model=model, optimizer=optimizer, keep=2, incremental=True
        )
    assert any(file.stat().st_nlink > 1 for file in path.glob("model/*.safetensors"))
    return memory_path, path, model


def test_a_part_of_it_is_restored(saved):
    run, _, model = saved
    fresh, _ = build(1)
    r = ckpt.restore(run, model=fresh, only=["1.*"])
    assert set(r.report["model"].loaded) == {k for k in model.state_dict() if k.startswith("1.")}
    assert_same(fresh[1].state_dict(), model[1].state_dict())


def test_it_is_exported(saved, tmp_path):
    run, _, model = saved
    export(run, tmp_path / "model.safetensors")
    found = safetensors.torch.load_file(tmp_path / "model.safetensors")
    live = model.state_dict()
    assert all(torch.equal(found[name], live[name]) for name in live)
    assert found.keys() == live.keys()


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled")
def test_other_readers_find_every_tensor_once(saved):
    _, path, model = saved
    live = model.state_dict()
    weights = json.loads((path / "model" / "model.safetensors.index.json").read_text())
    weights = weights["weight_map"]
    found = path.glob("model/*.safetensors")
    files = {file.name: safetensors.torch.load_file(file) for file in found}
    assert weights == {key: name for name, tensors in files.items() for key in tensors}
    assert sum(map(len, files.values())) == len(live) - 1
    wanted = {name: torch.zeros_like(live[name]) for name in weights}
    dcp.load(wanted, storage_reader=HuggingFaceStorageReader(str(path / "model")), no_dist=True)
    assert_same(wanted, {name: live[name] for name in wanted})
