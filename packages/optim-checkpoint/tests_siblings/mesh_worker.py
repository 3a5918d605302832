"""STAC under FSDP2 on 2 or 4 gloo processes; `test_sharded_siblings.py` starts them.

Run by path: ``mesh_worker.py WORLD FOLDER``. Two processes train and save; four restore what one
saved and go on. Every process gets the same batch, so the mean of their gradients is exact.
"""

import hashlib
import json
import multiprocessing
import signal
import sys
import warnings
from pathlib import Path

import stac_torch
import torch
import torch.distributed as dist
from optim_checkpoint import torch as ckpt
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS = 3
CASES = {
    "float32": (torch.float32, {}),
    "int8 state": (torch.float32, {"sign_state_dtype": "int8"}),
    "int4 state": (torch.float32, {"sign_state_dtype": "int4"}),
    "float32 state of bfloat16": (
        torch.bfloat16,
        {"sign_state_dtype": torch.float32, "adamw_state_dtype": torch.float32},
    ),
}


def build(case):
    """Return a model and a function that makes its optimizer once it is sharded."""
    torch.manual_seed(0)
    dtype, options = CASES[case]
    # 66 and 70 rows do not divide by 4, and 3 leave one of four processes without any.
    model = torch.nn.Sequential(
        torch.nn.Linear(70, 66),
        torch.nn.LayerNorm(66),
        torch.nn.Linear(66, 70),
        torch.nn.Linear(70, 3),
    ).to(dtype)
    return model, lambda: stac_torch.STAC(model, lr=1e-2, weight_decay=0.1, **options)


def shard(model, world):
    mesh = init_device_mesh("cpu", (world,))
    for layer in model:
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, optimizer, first):
    for step in range(first, first + STEPS):
        x = torch.randn(8, 70, generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(x.to(model[0].weight.dtype)).float().square().mean().backward()
        optimizer.step()


def fingerprint(model, optimizer):
    """Return digests of every whole tensor of a run; all processes have to call it."""
    found = {}
    for name, parameter in model.named_parameters():
        for slot, value in {"": parameter, **optimizer.state.get(parameter, {})}.items():
            tensor = value.detach()
            tensor = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
            raw = tensor.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
            text = f"{tensor.dtype}{tuple(tensor.shape)}"
            found[f"{name}.{slot}"] = f"{text} {hashlib.sha256(raw).hexdigest()[:16]}"
    return found


def run(world, folder):
    """Return what was found."""
    result = {}
    for number, case in enumerate(CASES):
        model, make = build(case)
        shard(model, world)
        optimizer = make()
        state = {"model": model, "optimizer": optimizer}
        if world == 2:
            train(model, optimizer, 0)
            ckpt.save(folder / str(number), STEPS, **state, rng=False)
            result[case] = {"start": fingerprint(model, optimizer)}
            for name, first in (("middle", STEPS), ("end", 2 * STEPS)):
                train(model, optimizer, first)
                result[case][name] = fingerprint(model, optimizer)
        else:
            ckpt.restore(folder / str(number), 2 * STEPS, **state, rng=False)
            result[case] = {"start": fingerprint(model, optimizer)}
            train(model, optimizer, 2 * STEPS)
            result[case]["end"] = fingerprint(model, optimizer)
        result[case]["kinds"] = sorted(
            {
                (slot, type(value).__name__, str(value.dtype))
                for slots in optimizer.state.values()
                for slot, value in slots.items()
            }
        )
    return result


def main(world, folder, rank):
    """Run one process."""
    signal.alarm(120)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    result = run(world, folder)
    if rank == 0:
        (folder / f"result{world}.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def start(world, folder):
    """Fork the processes; return how each ended."""
    fork = multiprocessing.get_context("fork")
    processes = [fork.Process(target=main, args=(world, folder, rank)) for rank in range(world)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    return [process.exitcode for process in processes]


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.exit(max(map(abs, start(int(sys.argv[1]), Path(sys.argv[2])))))
