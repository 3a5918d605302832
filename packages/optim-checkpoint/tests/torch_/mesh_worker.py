"""Processes of a gloo group that save, restore and fail; `test_sharded.py` starts them.

Run by path: ``mesh_worker.py WORLD FOLDER``. The processes are forked from one that has imported
torch, meet at a file in FOLDER, and end by themselves after two minutes. Process 0 prints what was
found as JSON.

Every process gets the same batch: the mean of equal gradients over 1, 2 or 4 processes is exact, so
training on any of these meshes has to give the same bits.
"""

import hashlib
import json
import os
import signal
import sys
import traceback
import warnings
from pathlib import Path

import optim_checkpoint as oc
import torch
import torch.distributed as dist
import torch.distributed.checkpoint as dcp
from optim_checkpoint import _fs
from optim_checkpoint import torch as ckpt
from torch import nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor
from torch.distributed.tensor.parallel import (
    ColwiseParallel,
    RowwiseParallel,
    parallelize_module,
)

STEPS = 3


class Net(nn.Module):
    """Uneven rows, a tied weight, a layer of one row, a buffer and a frozen parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 6)
        self.up = nn.Linear(6, 10)
        self.norm = nn.LayerNorm(10)
        self.down = nn.Linear(10, 6)
        self.head = nn.Linear(6, 7, bias=False)
        self.head.weight = self.embed.weight
        self.last = nn.Linear(7, 1)
        self.frozen = nn.Parameter(torch.randn(3), requires_grad=False)
        self.register_buffer("scale", torch.full((2,), 0.5))

    def forward(self, tokens):
        x = self.down(self.norm(torch.tanh(self.up(self.embed(tokens)))))
        return self.last(self.head(x) * self.scale[0])


CASES = ["AdamW torch.float32", "AdamW amsgrad torch.bfloat16", "SGD torch.float32"]
OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=1e-2),
    "AdamW amsgrad": lambda p: torch.optim.AdamW(p, lr=1e-2, amsgrad=True, foreach=False),
    "SGD": lambda p: torch.optim.SGD(p, lr=1e-2, momentum=0.9, nesterov=True),
}


def build(case="AdamW torch.float32"):
    """Return a model and a function that makes its optimizer once it is sharded."""
    torch.manual_seed(0)
    name, _, dtype = case.rpartition(" torch.")
    model = Net().to(getattr(torch, dtype))

    def optimizer():
        decayed = [p for p in model.parameters() if p.ndim > 1 and p.requires_grad]
        rest = [p for p in model.parameters() if p.ndim == 1 and p.requires_grad]
        return OPTIMIZERS[name]([{"params": decayed}, {"params": rest, "weight_decay": 0.0}])

    return model, optimizer


def shard(model, mesh):
    """Shard two layers on their own and the rest together."""
    for layer in (model.up, model.down):
        fully_shard(layer, mesh=mesh)
    return fully_shard(model, mesh=mesh)


def train(model, optimizer, first, count=STEPS, scheduler=None):
    for step in range(first, first + count):
        tokens = torch.randint(7, (8,), generator=torch.Generator().manual_seed(step))
        optimizer.zero_grad()
        model(tokens).float().square().mean().backward()
        optimizer.step()
        if scheduler is not None:
            scheduler.step()


def whole(tensor):
    tensor = tensor.detach()
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def fingerprint(model, optimizer):
    """Return digests of every whole tensor of a run; all processes have to call it."""
    found = {}

    def note(name, tensor):
        raw = whole(tensor).contiguous().reshape(-1).view(torch.uint8).numpy().tobytes()
        text = f"{tensor.dtype}{tuple(tensor.shape)}"
        found[name] = f"{text} {hashlib.sha256(raw).hexdigest()[:16]}"

    for name, tensor in model.state_dict().items():
        note(name, tensor)
    for name, parameter in model.named_parameters():
        for slot, value in optimizer.state.get(parameter, {}).items():
            note(f"{name}.{slot}", value)
    return found


def layouts(optimizer):
    """Return what kind of tensor each slot is."""
    return sorted(
        {
            (slot, type(value).__name__)
            for slots in optimizer.state.values()
            for slot, value in slots.items()
        }
    )


def error_of(work):
    """Return class and text of the error that `work` raises."""
    try:
        work()
    except oc.CheckpointError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


def gathered(value):
    """Return what every process has."""
    values = [None] * dist.get_world_size()
    dist.all_gather_object(values, value)
    return values


def left(folder):
    return sorted(path.name for path in folder.iterdir())


# --- two processes ------------------------------------------------------------------------------


def two_save(folder):
    mesh = init_device_mesh("cpu", (2,))
    result = {}
    for number, case in enumerate(CASES):
        run = folder / f"run{number}"
        model, make = build(case)
        shard(model, mesh)
        optimizer = make()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        train(model, optimizer, 0, scheduler=scheduler)
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        path = ckpt.save(run, STEPS, **state, rng=False, extra={"case": case})
        result[case] = {
            "run": str(run),
            "path": str(path),
            "start": fingerprint(model, optimizer),
            "kinds": layouts(optimizer),
        }
        for name, first in (("middle", STEPS), ("end", 2 * STEPS)):
            train(model, optimizer, first, scheduler=scheduler)
            result[case][name] = fingerprint(model, optimizer)
    return result


def two_generators(folder):
    """Each process gets its own generators back, and what comes after is the same."""
    mesh = init_device_mesh("cpu", (2,))
    model, _ = build()
    shard(model, mesh)
    torch.manual_seed(100 + dist.get_rank())
    ckpt.save(folder / "rng", 1, model=model)
    drawn = torch.rand(3)
    ckpt.restore(folder / "rng", model=model)
    again = torch.rand(3)
    draws = gathered(drawn.tolist())
    return {"equal": gathered(torch.equal(drawn, again)), "distinct": draws[0] != draws[1]}


def two_replicas(folder):
    """Without DTensors, a group given makes the processes save together: one copy is stored."""
    model, make = build()
    optimizer = make()
    train(model, optimizer, 0)
    group = dist.group.WORLD
    state = {"model": model, "optimizer": optimizer}
    torch.manual_seed(dist.get_rank())
    path = ckpt.save(folder / "replicas", 1, process_group=group, **state)
    drawn = torch.rand(3)
    ckpt.restore(folder / "replicas", process_group=group, **state)
    files = sorted(str(p.relative_to(path)) for p in path.rglob("*") if p.is_file())
    return {"files": files, "equal": gathered(torch.equal(drawn, torch.rand(3)))}


def two_reader(folder, run):
    """Torch's own reader loads the optimizer folder into DTensors of this mesh."""
    mesh = init_device_mesh("cpu", (2,))
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    ckpt.restore(run, model=model, optimizer=optimizer, rng=False)
    names = {id(p): name for name, p in model.named_parameters()}
    state = {
        f"state.{names[id(p)]}.{slot}": torch.zeros_like(value)
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    }
    folders = sorted(Path(run).glob("step-*/optim"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, storage_reader=dcp.HuggingFaceStorageReader(str(folders[-1])))
    equal = [
        torch.equal(whole(state[f"state.{names[id(p)]}.{slot}"]), whole(value))
        for p, slots in optimizer.state.items()
        for slot, value in slots.items()
    ]
    return {"equal": all(equal), "count": len(equal)}


class Failing(_fs.FileOps):
    """Fails from the n-th write on, or kills the process there."""

    def __init__(self, number, *, kill=False):
        self.left = number
        self.kill = kill

    def write(self, fd, data):
        self.left -= 1
        if self.left < 0:
            if self.kill:
                os.kill(os.getpid(), signal.SIGKILL)
            raise OSError(28, "No space left on device")
        return super().write(fd, data)


def two_failures(folder):
    """What goes wrong in one process is an error in both, and nothing is committed."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    run = folder / "failures"
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    state = {"model": model, "optimizer": optimizer}
    ckpt.save(run, 1, **state)
    result = {}

    def attempt(name, **changes):
        result[name] = gathered(error_of(lambda: ckpt.save(run, 2, **{**state, **changes})))

    attempt("unsupported", extra={"f": print} if rank else {"f": 1})
    attempt("differing", extra={"epoch": rank})
    result["exists"] = gathered(error_of(lambda: ckpt.save(run, 1, **state)))
    result["steps"] = gathered(error_of(lambda: ckpt.save(run, 2 + rank, **state)))
    model.scale.fill_(rank)
    attempt("replica")
    model.scale.fill_(0.5)
    if rank:
        _fs.ops = Failing(1)
    attempt("full disk of process 1")
    _fs.ops = Failing(1) if rank == 0 else _fs.FileOps()
    attempt("full disk of process 0")
    _fs.ops = _fs.FileOps()
    elsewhere = folder / "elsewhere" if rank else run
    result["elsewhere"] = gathered(error_of(lambda: ckpt.save(elsewhere, 2, **state)))
    partial = distribute_tensor(torch.ones(2), mesh, [Shard(0)])
    one = DTensor.from_local(partial.to_local(), mesh, [Replicate()])
    attempt("replicas that differ", extra={"t": one * (1 + rank)})
    checkpointer = ckpt.AsyncCheckpointer(run)

    def background():
        checkpointer.save(2, **state)
        checkpointer.wait()

    result["background"] = gathered(error_of(background))
    result["left"] = left(run)
    return result


def two_damage(folder):
    """Both processes take the older generation where one finds damage in the newer."""
    rank = dist.get_rank()
    mesh = init_device_mesh("cpu", (2,))
    run = folder / "damage"
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    state = {"model": model, "optimizer": optimizer}
    ckpt.save(run, 1, **state, rng=False)
    before = fingerprint(model, optimizer)
    train(model, optimizer, STEPS)
    path = ckpt.save(run, 2, **state, rng=False)
    dist.barrier()
    if rank == 0:
        # The last byte of a file that process 1 needs.
        victim = sorted((path / "optim").iterdir())[-1]
        raw = bytearray(victim.read_bytes())
        raw[-1] ^= 1
        victim.write_bytes(raw)
    dist.barrier()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = ckpt.restore(run, **state)
    result = {
        "step": gathered(found.step),
        "warnings": gathered([str(w.message) for w in caught]),
        "equal": gathered(fingerprint(model, optimizer) == before),
    }
    result["asked for"] = gathered(error_of(lambda: ckpt.restore(run, 2, **state)))
    changed, make = build()
    changed.down = nn.Linear(10, 5)
    changed.scale = torch.zeros(3)
    shard(changed, mesh)
    untouched = fingerprint(changed, make())
    result["mismatch"] = gathered(
        error_of(lambda: ckpt.restore(run, 1, model=changed, optimizer=make()))
    )
    result["untouched"] = fingerprint(changed, make()) == untouched

    class Picky:
        def state_dict(self):
            return {"a": 1}

        def load_state_dict(self, state):
            if rank and state["a"] == 2:
                raise RuntimeError("no")

    ckpt.save(folder / "picky", 1, **state, scheduler=Saved(2), rng=False)
    train(model, optimizer, STEPS)
    before = fingerprint(model, optimizer)
    try:
        ckpt.restore(folder / "picky", **state, scheduler=Picky())
    except Exception as error:  # noqa: BLE001 - its class is what is reported
        result["refused"] = gathered([type(error).__name__, str(error)])
    result["rolled back"] = gathered(fingerprint(model, optimizer) == before)
    return result


class Saved:
    def __init__(self, value):
        self.value = value

    def state_dict(self):
        return {"a": self.value}

    def load_state_dict(self, state):
        self.value = state["a"]


def two_killed(folder):
    """Process 1 is killed while it writes; process 0 raises and the step before stays."""
    run = folder / "failures"
    mesh = init_device_mesh("cpu", (2,))
    model, make = build()
    shard(model, mesh)
    optimizer = make()
    train(model, optimizer, 0)
    if dist.get_rank() == 1:
        _fs.ops = Failing(2, kill=True)
    error = error_of(lambda: ckpt.save(run, 2, model=model, optimizer=optimizer))
    return {"error": error, "left": left(run)}


def two(folder):
    result = {"save": two_save(folder)}
    result["generators"] = two_generators(folder)
    result["replicas"] = two_replicas(folder)
    result["reader"] = two_reader(folder, result["save"]["AdamW torch.float32"]["run"])
    result["failures"] = two_failures(folder)
    result["damage"] = two_damage(folder)
    result["killed"] = two_killed(folder)
    return result


# --- four processes -----------------------------------------------------------------------------


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


def main(world, folder, rank):
    """Run what `world` processes do."""
    signal.alarm(120)
    torch.set_num_threads(1)
    store = dist.FileStore(str(folder / f"store{world}"), world)
    dist.init_process_group("gloo", store=store, rank=rank, world_size=world)
    result = {2: two, 4: four}[world](folder)
    if rank == 0:
        (folder / f"result{world}.json").write_text(json.dumps(result))
    if world == 4:
        dist.destroy_process_group()


def start(world, folder):
    """Fork the processes; return how each ended."""
    children = []
    for rank in range(world):
        pid = os.fork()
        if pid == 0:
            code = 1
            try:
                main(world, folder, rank)
                code = 0
            except BaseException:  # noqa: BLE001 - a child must not return into the parent's code
                traceback.print_exc()
            sys.stderr.flush()
            os._exit(code)
        children.append(pid)
    return [os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) for pid in children]


if __name__ == "__main__":
    warnings.simplefilter("error")
    print(json.dumps(start(int(sys.argv[1]), Path(sys.argv[2]))))  # noqa: T201 - the answer to the test
