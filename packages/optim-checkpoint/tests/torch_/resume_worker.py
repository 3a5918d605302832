"""Trains every case, or resumes it in a fresh process; prints the bits it ends with as JSON.

Run by path: ``resume_worker.py FOLDER`` resumes what `run("train", FOLDER)` saved in the process of
the tests. The training draws from all global generators, so a resume is equal only if they are
restored too.
"""

import hashlib
import json
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import torch
from optim_checkpoint import torch as ckpt

BEFORE, AFTER = 7, 20


class MixedAdam(torch.optim.Optimizer):
    """Adam that keeps float32 moments and a master copy beside bfloat16 parameters."""

    def __init__(self, params, lr=1e-2):
        super().__init__(params, {"lr": lr, "betas": (0.9, 0.99)})

    @torch.no_grad()
    def step(self, closure):
        """Take a step."""
        with torch.enable_grad():
            loss = closure()
        for group in self.param_groups:
            b1, b2 = group["betas"]
            for p in group["params"]:
                state = self.state[p]
                if not state:
                    state.update(step=0, master=p.float(), history=[])
                    state["moments"] = {"m": torch.zeros_like(p, dtype=torch.float32)}
                    state["moments"]["v"] = torch.zeros_like(p, dtype=torch.float32)
                state["step"] += 1
                m, v = state["moments"]["m"], state["moments"]["v"]
                g = p.grad.float()
                m.lerp_(g, 1 - b1)
                v.lerp_(g * g, 1 - b2)
                state["master"].sub_(group["lr"] * m / (v.sqrt() + 1e-8))
                state["history"] = [*state["history"][-1:], m.mean()]
                p.copy_(state["master"])
        return loss


def dense(dtype=torch.float32):
    layers = [
        torch.nn.Linear(6, 16),
        torch.nn.BatchNorm1d(16),
        torch.nn.Tanh(),
        torch.nn.Dropout(0.2),
        torch.nn.Linear(16, 3),
    ]
    return torch.nn.Sequential(*layers).to(dtype)


def matrices():
    return torch.nn.Sequential(
        torch.nn.Linear(6, 16, bias=False), torch.nn.Tanh(), torch.nn.Linear(16, 3, bias=False)
    )


class Embedded(torch.nn.Module):
    """A sparse embedding; its input is rounded to indices."""

    def __init__(self):
        super().__init__()
        self.table = torch.nn.Embedding(12, 3, sparse=True)

    def forward(self, x):
        """Look up."""
        return self.table((x * 2).long().clamp(-5, 5).add(5)).mean(1)


def plain(cls, **options):
    return lambda model, mode: cls(model.parameters(), **options)


def grouped(cls, **options):
    """Two groups with different learning rates; the second pass names nothing by position."""

    def make(model, mode):
        named = list(model.named_parameters())
        weights = [(n, p) for n, p in named if p.ndim > 1]
        others = [(n, p) for n, p in named if p.ndim <= 1]
        if mode == "resume":
            # Another order of parameters and of groups: positions mean nothing here.
            groups = [{"params": others[::-1], "lr": 3e-3}, {"params": weights[::-1]}]
        else:
            groups = [{"params": weights}, {"params": others, "lr": 3e-3}]
        return cls(groups, **options)

    return make


def split(cls, **options):
    """One group before, one group per parameter after."""

    def make(model, mode):
        if mode == "resume":
            return cls([{"params": [p]} for p in model.parameters()], **options)
        return cls(model.parameters(), **options)

    return make


def plateau(optimizer):
    return torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1, factor=0.7)


def sequential(optimizer):
    schedulers = torch.optim.lr_scheduler
    warm = schedulers.LinearLR(optimizer, 0.1, total_iters=5)
    cosine = schedulers.CosineAnnealingLR(optimizer, 30)
    return schedulers.SequentialLR(optimizer, [warm, cosine], [5])


def warm_then_stepped(optimizer):
    schedulers = torch.optim.lr_scheduler
    warm = schedulers.LinearLR(optimizer, 0.1, total_iters=9)
    # Its milestones are a Counter, of which a switch after the resume calls a method.
    return schedulers.SequentialLR(optimizer, [warm, schedulers.MultiStepLR(optimizer, [3])], [9])


def scheduled(name, **options):
    return lambda optimizer: getattr(torch.optim.lr_scheduler, name)(optimizer, **options)


O = torch.optim  # noqa: E741 - a table of short rows
CASES = {
    "Adadelta": (dense, plain(O.Adadelta), None),
    "Adafactor": (dense, plain(O.Adafactor), None),
    "Adagrad": (dense, plain(O.Adagrad, lr_decay=0.1), None),
    "Adam": (dense, plain(O.Adam, amsgrad=True), None),
    "AdamW": (dense, plain(O.AdamW), sequential),
    "Adamax": (dense, plain(O.Adamax), None),
    "ASGD": (dense, plain(O.ASGD, t0=3), None),
    "LBFGS": (dense, plain(O.LBFGS, lr=0.05, max_iter=4), None),
    "Muon": (matrices, plain(O.Muon), None),
    "NAdam": (dense, plain(O.NAdam), warm_then_stepped),
    "RAdam": (dense, plain(O.RAdam), None),
    "RMSprop": (dense, plain(O.RMSprop, centered=True, momentum=0.9), None),
    "Rprop": (dense, plain(O.Rprop), None),
    "SGD": (dense, plain(O.SGD, lr=0.05), scheduled("ExponentialLR", gamma=0.97)),
    "SparseAdam": (Embedded, plain(O.SparseAdam), None),
    "SGD with momentum": (dense, plain(O.SGD, lr=0.05, momentum=0.9, nesterov=True), plateau),
    "AdamW with a tensor lr": (
        dense,
        lambda model, mode: O.AdamW(model.parameters(), lr=torch.tensor(2e-3)),
        None,
    ),
    "AdamW fused": (dense, plain(O.AdamW, fused=True), None),
    "AdamW foreach": (dense, plain(O.AdamW, foreach=True), None),
    "AdamW in other groups": (dense, grouped(O.AdamW), scheduled("StepLR", step_size=4)),
    "SGD in other groups": (
        dense,
        grouped(O.SGD, momentum=0.9),
        scheduled("LambdaLR", lr_lambda=lambda i: 0.95**i),
    ),
    "Adam split": (dense, split(O.Adam), None),
    "AdamW with OneCycleLR": (
        dense,
        plain(O.AdamW),
        scheduled("OneCycleLR", max_lr=1e-2, total_steps=60),
    ),
    "SGD with CyclicLR": (
        dense,
        plain(O.SGD, lr=0.01, momentum=0.9),
        scheduled("CyclicLR", base_lr=1e-3, max_lr=1e-2, step_size_up=4),
    ),
    "bfloat16 Adafactor": (lambda: dense(torch.bfloat16), plain(O.Adafactor), None),
    "bfloat16 with float32 moments": (lambda: dense(torch.bfloat16), plain(MixedAdam), None),
}  # fmt: skip


def build(name, mode):
    torch.manual_seed(3)
    make_model, make_optimizer, make_scheduler = CASES[name]
    model = make_model()
    if name == "AdamW":
        model[0].bias.requires_grad_(False)
    optimizer = make_optimizer(model, mode)
    scheduler = None if make_scheduler is None else make_scheduler(optimizer)
    return model, optimizer, scheduler, torch.amp.GradScaler("cpu", init_scale=8.0)


def train(model, optimizer, scheduler, scaler, steps):
    dtype = next(model.parameters()).dtype
    for _ in range(steps):
        shift = random.random() + np.random.rand()  # noqa: NPY002 - the global generator
        x = torch.randn(8, 6).add(shift).to(dtype)
        target = torch.randn(8, 3).to(dtype)

        def closure(x=x, target=target):
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            loss.backward()
            return loss

        if isinstance(optimizer, torch.optim.LBFGS | MixedAdam | torch.optim.SparseAdam):
            loss = optimizer.step(closure)
            loss = closure() if loss is None else loss
        else:
            optimizer.zero_grad()
            loss = (model(x) - target).square().mean()
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        if isinstance(scheduler, torch.optim.lr_scheduler.ReduceLROnPlateau):
            scheduler.step(loss.item())
        elif scheduler is not None:
            scheduler.step()


def bits(value, out):
    if isinstance(value, torch.Tensor):
        flat = value.detach().contiguous().reshape(-1)
        out.update(f"{value.dtype}{tuple(value.shape)}".encode())
        out.update(flat.view(torch.uint8).numpy().tobytes())
    elif isinstance(value, dict):
        for key in sorted(value, key=str):
            out.update(str(key).encode())
            bits(value[key], out)
    elif isinstance(value, list | tuple):
        for item in value:
            bits(item, out)
    else:
        out.update(repr(value).encode())


def fingerprint(model, optimizer):
    """Return digests of the parameters and of the state by parameter, whatever their order."""
    names = {id(p): name for name, p in model.named_parameters()}
    state = {names[id(p)]: slots for p, slots in optimizer.state.items()}
    rates = {
        names[id(p)]: float(group["lr"])
        for group in optimizer.param_groups
        for p in group["params"]
    }
    result = {}
    for label, value in (("model", model.state_dict()), ("state", state), ("lr", rates)):
        digest = hashlib.sha256()
        bits(value, digest)
        result[label] = digest.hexdigest()
    return result


def run(mode, root):
    """Run all cases; return their digests."""
    # GradScaler.step before the scheduler is not seen as optimizer.step by some schedulers.
    warnings.filterwarnings("ignore", message="Detected call of `lr_scheduler.step")
    torch.set_num_threads(1)
    results = {}
    for i, name in enumerate(CASES):
        folder = root / f"case{i}"
        model, optimizer, scheduler, scaler = build(name, mode)
        if mode == "train":
            random.seed(i)
            np.random.seed(i)  # noqa: NPY002 - the global generator
            train(model, optimizer, scheduler, scaler, BEFORE)
            ckpt.save(
                folder,
                BEFORE,
                model=model,
                optimizer=optimizer,
                scheduler=scheduler,
                scaler=scaler,
            )
        else:
            restored = ckpt.restore(
                folder, model=model, optimizer=optimizer, scheduler=scheduler, scaler=scaler
            )
            if restored.step != BEFORE:
                raise SystemExit(f"{name}: step {restored.step}")
        start = fingerprint(model, optimizer)
        train(model, optimizer, scheduler, scaler, AFTER)
        results[name] = {"start": start, "end": fingerprint(model, optimizer)}
    return results


if __name__ == "__main__":
    warnings.simplefilter("error")
    sys.stdout.write(json.dumps(run("resume", Path(sys.argv[1]))))
