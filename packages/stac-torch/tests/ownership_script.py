"""Cases of the distributed tests in which hosts shard, flatten or mix what an optimizer steps.

`distributed_script.py` runs them; each asserts on every rank and returns nothing to compare.
"""

import contextlib
import math
import re

import pytest
import torch
import torch.distributed as dist
from stac_torch import STAC, param_groups
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard
from torch.distributed.optim import ZeroRedundancyOptimizer
from torch.distributed.tensor import distribute_tensor
from torch.distributed.tensor.parallel import ColwiseParallel, parallelize_module


@contextlib.contextmanager
def counted():
    """Count the reductions that a step asks for."""
    calls, real = [], dist.all_reduce

    def all_reduce(*args, **kwargs):
        calls.append(args)
        return real(*args, **kwargs)

    dist.all_reduce = all_reduce
    try:
        yield calls
    finally:
        dist.all_reduce = real


def refused(action, error, text):
    with pytest.raises(error, match=re.escape(text)):
        action()


def bare(layers):
    torch.manual_seed(0)
    return nn.Sequential(*(nn.Linear(64, 64, bias=False) for _ in range(layers)))


def fill(model, poisoned=None):
    """Give every rank the same gradients, as a wrapper that averages them leaves them."""
    generator = torch.Generator().manual_seed(0)
    for index, p in enumerate(model.parameters()):
        p.grad = torch.randn(p.shape, generator=generator)
        if index == poisoned:
            p.grad[0, 0] = math.nan


def changed(model, before):
    return [not torch.equal(p, b) for p, b in zip(model.parameters(), before, strict=True)]


def owned(rank, world, folder, options):
    """ZeRO gives each rank parameters of its own, and some ranks none: one decision for all."""
    for layers in (2, 5):
        for given in ({}, {"nonfinite_group": dist.group.WORLD}):
            for policy in ("skip", "raise"):
                model = bare(layers)
                optimizer = ZeroRedundancyOptimizer(
                    param_groups(model), STAC, lr=0.1, nonfinite=policy, **given, **options
                )
                before = [p.clone() for p in model.parameters()]
                for poisoned in range(layers):
                    fill(model, poisoned)
                    if policy == "raise":
                        refused(optimizer.step, RuntimeError, "a gradient is not finite; nothing")
                    else:
                        optimizer.step()
                    assert not any(changed(model, before)), (rank, layers, policy, poisoned)
                expected = 0 if policy == "raise" else layers
                assert optimizer.optim.nonfinite_skipped_steps == expected
                fill(model)
                with counted() as calls:
                    optimizer.step()
                assert len(calls) == 1
                assert all(changed(model, before))


def dead(rank, world, folder, options):
    """Every rank ends a dead run at the same step."""
    model = bare(2)
    optimizer = ZeroRedundancyOptimizer(
        param_groups(model), STAC, lr=0.1, max_consecutive_nonfinite=2, **options
    )
    fill(model, 0)
    optimizer.step()
    refused(optimizer.step, RuntimeError, "the gradients of 2 steps in a row were not finite")


def sparse(rank, world, folder, options):
    """What one rank cannot step, none steps, and none waits for it."""
    model = bare(world)
    optimizer = ZeroRedundancyOptimizer(param_groups(model), STAC, lr=0.1, **options)
    before = [p.clone() for p in model.parameters()]
    fill(model)
    own = [p for group in optimizer.optim.param_groups for p in group["params"]]
    if rank == world - 1:
        own[0].grad = own[0].grad.to_sparse()
    mine = "STAC does not support sparse gradients"
    text = mine if rank == world - 1 else "another rank cannot take this step"
    refused(optimizer.step, RuntimeError, text)
    assert not any(changed(model, before))


def overlap(rank, world, folder, options):
    """Torch has no functional form of it, and says so."""
    refused(
        lambda: ZeroRedundancyOptimizer(
            bare(2).parameters(), STAC, overlap_with_ddp=True, lr=0.1, role="sign"
        ),
        ValueError,
        "functional optimizer",
    )


def replicas(rank, world, folder, options):
    """Nothing is sharded: nothing is asked."""
    model = nn.parallel.DistributedDataParallel(bare(2))
    for optimizer in (STAC(model, **options), STAC(model.parameters(), role="sign", **options)):
        model(torch.ones(2, 64)).sum().backward()
        with counted() as calls:
            optimizer.step()
        assert not calls


def meshes(rank, world, folder, options):
    """Parameters on two meshes at once, one of them a part of the other; a nan on any rank."""
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("dp", "tp"))
    torch.manual_seed(0)
    model = nn.Sequential(nn.LayerNorm(64), nn.Linear(64, 64), nn.LayerNorm(64))
    parallelize_module(model[1], mesh["tp"], ColwiseParallel(use_local_output=False))
    for layer in model:
        fully_shard(layer, mesh=mesh["dp"])
    optimizer = STAC(model, lr=0.1, **options)
    params = list(model.parameters())
    assert len({p.device_mesh for p in params}) == 2
    shards = [p.to_local() for p in params]
    before = [shard.clone() for shard in shards]
    cases = [(index, owner) for index in range(len(params)) for owner in range(world)]
    for index, owner in cases:
        for p in params:
            p.grad = torch.ones_like(p)
        if rank == owner:
            params[index].grad.to_local().view(-1)[0] = math.nan
        optimizer.step()
        assert all(torch.equal(a, b) for a, b in zip(shards, before, strict=True)), (index, owner)
    assert optimizer.nonfinite_skipped_steps == len(cases)
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer.step()
    assert not any(torch.equal(a, b) for a, b in zip(shards, before, strict=True))


def clipped(rank, world, folder, options):
    """The norm is that of all entries, each counted once, however they are divided."""
    reference = bare(5)
    fill(reference)
    expected = torch.nn.utils.clip_grad_norm_(reference.parameters(), 2.0)
    plain = STAC(reference, lr=0.1, **options)
    plain.step()

    zero = bare(5)
    fill(zero)
    optimizer = ZeroRedundancyOptimizer(
        param_groups(zero), STAC, lr=0.1, max_grad_norm=2.0, **options
    )
    with counted() as calls:
        optimizer.step()
    assert len(calls) == 1
    found = [(zero, optimizer.optim)]

    mesh = init_device_mesh("cpu", (2, world // 2), mesh_dim_names=("replicate", "shard"))
    for chosen in (init_device_mesh("cpu", (world,)), mesh):
        model = bare(5)
        fill(model)
        whole = [p.grad for p in model.parameters()]
        fully_shard(model, mesh=chosen)
        for p, grad in zip(model.parameters(), whole, strict=True):
            p.grad = distribute_tensor(grad, p.device_mesh, p.placements)
        optimizer = STAC(model, lr=0.1, max_grad_norm=2.0, **options)
        optimizer.step()
        found.append((model, optimizer))
    for model, optimizer in found:
        torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-5, atol=0)
        for p, q in zip(model.parameters(), reference.parameters(), strict=True):
            p = p.full_tensor() if hasattr(p, "full_tensor") else p
            torch.testing.assert_close(p, q, rtol=0, atol=1e-6)

    # One rank's nan, and one rank that cannot step.
    before = [p.clone() for p in model.parameters()]
    if rank == world - 1:
        next(model.parameters()).grad.to_local()[0, 0] = math.nan
    optimizer.step()
    assert not any(changed(model, before))
    assert optimizer.nonfinite_skipped_steps == 1


def clipped_sparse(rank, world, folder, options):
    """What one rank cannot step, none steps, whether or not it looks at its gradients."""
    for policy in ("skip", "propagate"):
        sparse(rank, world, folder, {**options, "max_grad_norm": 1.0, "nonfinite": policy})


def clipped_meshes(rank, world, folder, options):
    """Of entries on two meshes none says how often each counts."""
    model = bare(2)
    mesh = init_device_mesh("cpu", (world // 2, 2), mesh_dim_names=("a", "b"))
    for layer, name in zip(model, "ab", strict=True):
        fully_shard(layer, mesh=mesh[name])
    optimizer = STAC(model, max_grad_norm=1.0, **options)
    before = [p.to_local().clone() for p in model.parameters()]
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    refused(optimizer.step, RuntimeError, "max_grad_norm needs one norm over all parameters")
    shards = [p.to_local() for p in model.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(shards, before, strict=True))


def flat(rank, world, folder, options):
    """FSDP1 is refused in both forms, however its parameters come, and when it comes later."""
    for original in (False, True):

        def wrap(model, original=original):
            return FullyShardedDataParallel(
                model, use_orig_params=original, device_id=torch.device("cpu")
            )

        model = wrap(bare(2))
        for build in (
            lambda m: STAC(m, **options),
            lambda m: STAC(m.named_parameters(), **options),
            lambda m: STAC(m.parameters(), role="sign", **options),
        ):
            refused(lambda b=build, m=model: b(m), ValueError, "torch.distributed.fsdp.fully_shard")
    model = bare(2)
    optimizer = STAC(model, **options)
    wrapped = wrap(model)
    before = [p.detach().clone() for p in wrapped.parameters()]
    wrapped(torch.ones(2, 64)).square().mean().backward()
    refused(optimizer.step, ValueError, "torch.distributed.fsdp.fully_shard")
    assert not any(changed(wrapped, before))


_CLIPPED = (clipped, clipped_sparse, clipped_meshes)
CASES = {f.__name__: f for f in (owned, dead, sparse, overlap, replicas, meshes, flat, *_CLIPPED)}
