"""What four processes of `mesh_worker.py` do: go on from one, and two-dimensional meshes."""

import json
import warnings

import torch
import torch.distributed as dist
from mesh_training import STEPS, build, error_of, fingerprint, gathered, layouts, shard, train
from optim_checkpoint import torch as ckpt
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)


def four_resume(folder):
    """Restore what one process saved and go on."""
    mesh = init_device_mesh("cpu", (4,))
    result = {}
    for run in sorted(folder.glob("run*")):
        case = json.loads((run / "case.json").read_text())
        model, make = build(case)
        shard(model, mesh)
        optimizer = make()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        ckpt.restore(run, 2 * STEPS, **state, rng=False)
        start = fingerprint(model, optimizer)
        kinds = layouts(optimizer)
        train(model, optimizer, 2 * STEPS, scheduler=scheduler)
        result[case] = {
            "start": start,
            "end": fingerprint(model, optimizer),
            "kinds": kinds,
        }
    return result


def plan_of(model, mesh):
    """Tensor parallel inside, FSDP2 outside: `_StridedShard` and `Shard` on one dimension."""
    torch.manual_seed(0)
    parallelize_module(model, mesh["tp"], {"0": ColwiseParallel(), "2": RowwiseParallel()})
    return fully_shard(model, mesh=mesh["dp"])


def four_meshes(folder):
    """Two-dimensional meshes, saved and restored into each other and into one process."""
    grid = init_device_mesh("cpu", (2, 2), mesh_dim_names=("dp", "tp"))
    result = {}

    def make():
        torch.manual_seed(1)
        return nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 6))

    def run(model, optimizer):
        for step in range(STEPS):
            optimizer.zero_grad()
            x = torch.randn(4, 6, generator=torch.Generator().manual_seed(step))
            model(x).square().mean().backward()
            optimizer.step()

    for name, place in (
        ("hybrid", lambda model: fully_shard(model, mesh=grid)),
        ("tensor parallel", lambda model: plan_of(model, grid)),
    ):
        # It says that the output is a view, which nothing here changes in place.
        warnings.filterwarnings("ignore", "FSDP2-wrapped module", UserWarning)
        model = make()
        place(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2, foreach=False)
        run(model, optimizer)
        before = fingerprint(model, optimizer)
        path = ckpt.save(folder / name, 1, model=model, optimizer=optimizer, rng=False)
        placements = sorted({str(p.placements) for p in model.parameters()})
        other = make()
        place(other)
        adam = torch.optim.AdamW(other.parameters(), lr=1e-2, foreach=False)
        ckpt.restore(path.parent, model=other, optimizer=adam)
        same = fingerprint(other, adam) == before
        flat = make()
        fully_shard(flat, mesh=init_device_mesh("cpu", (4,)))
        adam = torch.optim.AdamW(flat.parameters(), lr=1e-2, foreach=False)
        ckpt.restore(path.parent, model=flat, optimizer=adam)
        result[name] = {
            "fingerprint": before,
            "same mesh": same,
            "flat mesh": fingerprint(flat, adam) == before,
            "placements": placements,
            "files": len(list(path.rglob("*.safetensors"))),
        }
    mesh = init_device_mesh("cpu", (4,))
    values = torch.arange(30.0).reshape(5, 6)
    for name, placements in (("columns", [Shard(1)]), ("rows", [Shard(0)])):
        extra = {"t": distribute_tensor(values, mesh, placements)}
        ckpt.save(folder / name, 1, extra=extra, rng=False)
    square = distribute_tensor(values, grid, [Shard(1), Shard(0)])
    again = distribute_tensor(values, grid, [Shard(0), Shard(0)])
    ckpt.save(folder / "square", 1, extra={"t": square, "u": again}, rng=False)
    result["plain"] = gathered(
        [
            torch.equal(ckpt.restore(folder / name).extra["t"], values)
            for name in ("columns", "rows", "square")
        ]
    )
    partial = DTensor.from_local(torch.ones(3), mesh, [dist.tensor.Partial()])
    result["partial"] = gathered(
        error_of(lambda: ckpt.save(folder / "partial", 1, extra={"t": partial}))
    )
    return result


def four(folder):
    return {"resume": four_resume(folder), "meshes": four_meshes(folder)}
