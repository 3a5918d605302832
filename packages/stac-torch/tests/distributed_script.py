"""One rank of the distributed tests; `test_distributed.py` starts as many as the largest world.

    python distributed_script.py RANK FOLDER STATES WORLD:CASES ...

The worlds are formed one after the other by the first ranks, which meet at a file in FOLDER, and
rank 0 writes CASE-WORLD-STATE.pt there.
"""

import copy
import math
import sys
from pathlib import Path

import ownership_script
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from stac_torch import STAC, STAM, STAMLite, _units, param_groups
from torch import nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_optimizer_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import DTensor

OPTIONS = {"lr": 0.01, "weight_decay": 0.1}


def build():
    torch.manual_seed(0)
    # 66 and 70 rows do not divide by 4.
    return nn.Sequential(nn.Linear(70, 66), nn.LayerNorm(66), nn.Linear(66, 70), nn.Linear(70, 3))


def batch(step):
    return torch.randn(8, 70, generator=torch.Generator().manual_seed(step))


def backward(model, x):
    model.zero_grad()
    model(x).square().mean().backward()


def full(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def result(model, optimizer):
    """Return parameters and states, whole, under bare names."""
    named = dict(model.named_parameters())
    states = {
        name: {k: full(v).clone() for k, v in optimizer.state.get(p, {}).items()}
        for name, p in named.items()
    }
    params = {name: full(p.detach()).clone() for name, p in named.items()}
    strip = "module."
    return (
        {n.removeprefix(strip): p for n, p in params.items()},
        {n.removeprefix(strip): s for n, s in states.items()},
    )


def sharded(model, world):
    mesh = init_device_mesh("cpu", (world,))
    for layer in model:
        if isinstance(layer, nn.Linear):
            fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def single(rank, world, folder, options):
    model = build()
    optimizer = STAC(model, **OPTIONS, **options)
    for step in range(5):
        backward(model, batch(step))
        optimizer.step()
    return result(model, optimizer)


def ddp(rank, world, folder, options):
    model = nn.parallel.DistributedDataParallel(build())
    optimizer = STAC(model, **OPTIONS, **options)
    assert optimizer.partition.adamw_layer_names == ("3",)
    for step in range(5):
        backward(model, batch(step).chunk(world)[rank])
        optimizer.step()
    gathered = [None] * world
    dist.all_gather_object(gathered, model.module[0].weight.detach())
    assert all(torch.equal(w, gathered[0]) for w in gathered)
    return result(model, optimizer)


def fsdp(rank, world, folder, options):
    model = sharded(build(), world)
    optimizer = STAC(model, **OPTIONS, **options)
    for step in range(5):
        backward(model, batch(step).chunk(world)[rank])
        optimizer.step()
    return result(model, optimizer)


def fsdp_nan(rank, world, folder, options):
    """A nan in the shard of one rank: every rank leaves the step out, and counts it."""
    model = sharded(build(), world)
    optimizer = STAC(model, **OPTIONS, **options)
    for step in range(5):
        backward(model, batch(step).chunk(world)[rank])
        if step == 2 and rank == world - 1:
            model[0].weight.grad.to_local()[0, 0] = math.nan
        before = copy.deepcopy(result(model, optimizer))
        optimizer.step()
        if step == 2:
            after = result(model, optimizer)
            torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert optimizer.nonfinite_skipped_steps == 1
    return result(model, optimizer)


def group_nan(rank, world, folder, options):
    """Without DTensor a process group says where to look."""
    model = build()
    optimizer = STAC(model, nonfinite_group=dist.group.WORLD, **OPTIONS, **options)
    backward(model, batch(0))
    if rank == world - 1:
        model[0].weight.grad[0, 0] = math.nan
    optimizer.step()
    assert optimizer.nonfinite_skipped_steps == 1
    assert not optimizer.state
    return result(model, optimizer)


def zero(rank, world, folder, options):
    model = nn.parallel.DistributedDataParallel(build())
    groups = param_groups(model, weight_decay=OPTIONS["weight_decay"])
    optimizer = ZeroRedundancyOptimizer(groups, optimizer_class=STAC, lr=OPTIONS["lr"], **options)
    for step in range(5):
        backward(model, batch(step).chunk(world)[rank])
        optimizer.step()
    optimizer.consolidate_state_dict(to=0)
    if rank == 0:
        assert len(optimizer.state_dict()["state"]) == len(list(model.parameters()))
    return result(model, optimizer)


def save(rank, world, folder, options):
    """Write a checkpoint, plain and flattened, and return what was saved."""
    model = sharded(build(), world)
    optimizer = STAC(model, **OPTIONS, **options)
    for step in range(5):
        backward(model, batch(step).chunk(world)[rank])
        optimizer.step()
    for flat in (False, True):
        state = get_optimizer_state_dict(
            model, optimizer, options=StateDictOptions(flatten_optimizer_state_dict=flat)
        )
        dcp.save(
            {"optim": state, "model": model.state_dict()}, checkpoint_id=folder / f"dcp-{flat}"
        )
    return result(model, optimizer)


def load(rank, world, folder, options):
    """Read both checkpoints on another number of ranks; both must be what was saved."""
    results = []
    for flat in (False, True):
        model = build()
        if world > 1:
            model = sharded(model, world)
        optimizer = STAC(model, lr=7.0, **options)
        how = StateDictOptions(flatten_optimizer_state_dict=flat)
        state = get_optimizer_state_dict(model, optimizer, options=how)
        untouched = copy.deepcopy(model.state_dict())
        torch.testing.assert_close(dict(model.state_dict()), dict(untouched), rtol=0, atol=0)
        target = {"optim": state, "model": model.state_dict()}
        dcp.load(target, checkpoint_id=folder / f"dcp-{flat}")
        model.load_state_dict(target["model"])
        set_optimizer_state_dict(model, optimizer, target["optim"], options=how)
        assert [g["lr"] for g in optimizer.param_groups] == [OPTIONS["lr"]] * 2
        results.append(result(model, optimizer))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    return results[0]


def stam(rank, world, folder, options, mesh=None):
    """Means are those of whole tensors: some ranks hold a row more than others, and some none.

    Of four ranks the last one holds few enough entries of the matrices to take them with the rest.
    """
    _units.PACKED_ENTRIES = 1100
    results = []
    for cls in (STAM, STAMLite):
        model = build()
        if world > 1:
            mesh = mesh or init_device_mesh("cpu", (world,))
            for layer in model:
                fully_shard(layer, mesh=mesh)
            fully_shard(model, mesh=mesh)
        optimizer = cls(model, lr=0.01)
        for step in range(5):
            backward(model, batch(step).chunk(world)[rank])
            optimizer.step()
        results.append(result(model, optimizer))
    if world > 1:
        refuse = "stat_sample=64 samples whole tensors, and of a parameter of shape"
        ownership_script.refused(lambda: STAM(model, stat_sample=64), ValueError, refuse)
    return results


def stam_replicated(rank, world, folder, options):
    """What several ranks hold alike counts once."""
    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    return stam(rank, world, folder, options, mesh)


CASES = {
    f.__name__: f
    for f in (stam, stam_replicated, single, ddp, fsdp, fsdp_nan, group_nan, zero, save, load)
}
CASES |= ownership_script.CASES


def main(rank, folder, states, plan):
    torch.set_num_threads(1)
    for world, names in plan:
        if rank < world:
            meeting = f"file://{folder}/meet-{world}"
            dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=world)
            for state in states:
                run(rank, world, folder, state, names)
            dist.destroy_process_group()


def run(rank, world, folder, state, names):
    options = {} if state == "none" else {"sign_state_dtype": state}
    for name in names:
        found = CASES[name](rank, world, folder / state, options)
        if rank == 0:
            torch.save(found, folder / f"{name}-{world}-{state}.pt")
        dist.barrier()


if __name__ == "__main__":
    worlds = (world.split(":") for world in sys.argv[4:])
    main(
        int(sys.argv[1]),
        Path(sys.argv[2]),
        sys.argv[3].split(","),
        [(int(size), names.split(",")) for size, names in worlds],
    )
