"""What the processes of a mesh and `test_sharded.py` share: a model, its training, what they tell.

Every process gets the same batch: the mean of equal gradients over 1, 2 or 4 processes is exact, so
training on any of these meshes has to give the same bits.
"""

import hashlib

import optim_checkpoint as oc
import torch
import torch.distributed as dist
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

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
