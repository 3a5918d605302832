"""Torch's own tools read the files without knowing of this package."""

import optim_checkpoint as oc
import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoint import torch as ckpt


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_the_hugging_face_reader_of_dcp_loads_the_optimizer_folder(tmp_path):
    model = torch.nn.Linear(3, 2)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    path = ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    state = {
        f"state.{name}.{slot}": torch.full_like(value, 7)
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state[parameter].items()
    }
    reader = dcp.HuggingFaceStorageReader(str(path / "optim"))
    dcp.load(state, storage_reader=reader, no_dist=True)
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state[parameter].items():
            assert torch.equal(state[f"state.{name}.{slot}"], value)


def test_a_tensor_of_two_is_refused_with_its_name(tmp_path):
    from torch.testing._internal.two_tensor import TwoTensor

    double = TwoTensor(torch.ones(4, 4), torch.ones(4, 4))
    with pytest.raises(
        oc.UnsupportedStateError, match=r"^extra\['t'\]: a TwoTensor is a tensor sub"
    ):
        ckpt.save(tmp_path, 1, extra={"t": double})
    model = torch.nn.Linear(4, 4)
    ckpt.save(tmp_path, 1, model=model)
    other = torch.nn.Linear(4, 4)
    other.weight = torch.nn.Parameter(double)
    bias = other.bias.detach().clone()
    with pytest.raises(
        oc.IncompatibleCheckpointError,
        match="model entry weight is a TwoTensor: restore before quantizing",
    ):
        ckpt.restore(tmp_path, model=other)
    assert torch.equal(other.bias, bias)


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::FutureWarning")
def test_a_split_optimizer_folder_loads_too(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(9, 8), torch.nn.Linear(8, 7))
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 9)).sum().backward()
    optimizer.step()
    state = {"model": model, "optimizer": optimizer}
    path = ckpt.save(tmp_path, 1, **state, max_shard_size=300)
    files = sorted((path / "optim").glob("*.safetensors"))
    assert len(files) > 3
    named = dict(model.named_parameters())
    wanted = {
        f"state.{name}.{slot}": torch.full_like(value, 7)
        for name, parameter in named.items()
        for slot, value in optimizer.state[parameter].items()
    }
    dcp.load(wanted, storage_reader=dcp.HuggingFaceStorageReader(str(path / "optim")), no_dist=True)
    before = {
        f"state.{name}.{slot}": value.clone()
        for name, parameter in named.items()
        for slot, value in optimizer.state[parameter].items()
    }
    assert all(torch.equal(wanted[key], value) for key, value in before.items())
    optimizer.step()
    ckpt.restore(tmp_path, **state)
    for name, parameter in named.items():
        for slot, value in optimizer.state[parameter].items():
            assert torch.equal(before[f"state.{name}.{slot}"], value)
    with pytest.raises(
        ValueError, match="max_shard_size is 0; it must be an integer of at least 1"
    ):
        ckpt.save(tmp_path, 2, **state, max_shard_size=0)
