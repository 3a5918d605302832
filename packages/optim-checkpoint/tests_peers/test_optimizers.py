"""Every optimizer of two packages that are not ours: how many resume exactly.

The counts are in `benchmarks/peers.json`; `OPTIM_CHECKPOINT_PEERS=write` writes them again. Run by
`uv run --all-packages --all-groups --with pytorch_optimizer==4.1.0,prodigyopt==1.1.2 pytest
packages/optim-checkpoint/tests_peers`.
"""

import json
import os
import warnings
from importlib.metadata import version
from pathlib import Path

import optim_checkpoint as oc
import prodigyopt
import pytest
import pytorch_optimizer
import torch
from optim_checkpoint import torch as ckpt

RESULT = Path(__file__).parent.parent / "benchmarks" / "peers.json"
# Outcomes, from the best to those that say nothing about checkpoints.
EXACT, REFUSED, SAME, OTHER = "exact", "refused", "as torch", "differs"


def net():
    torch.manual_seed(0)
    return torch.nn.Sequential(torch.nn.Linear(8, 8), torch.nn.Linear(8, 8))


def train(model, optimizer, steps):
    for _ in range(steps):
        optimizer.zero_grad()
        model(torch.ones(2, 8)).square().mean().backward()
        optimizer.step()


def factories():
    named = {
        f"pytorch_optimizer {name}": pytorch_optimizer.load_optimizer(name)
        for name in pytorch_optimizer.get_supported_optimizers()
    }
    return named | {"prodigyopt Prodigy": prodigyopt.Prodigy}


def resumed_by_torch(make, state):
    model = net()
    model.load_state_dict(state["model"])
    optimizer = make(model.parameters(), lr=1e-3)
    optimizer.load_state_dict(state["optimizer"])
    torch.set_rng_state(state["rng"])
    train(model, optimizer, 2)
    return model


def equal(one, two):
    return all(torch.equal(a, b) for a, b in zip(one.parameters(), two.parameters(), strict=True))


def outcome(make, folder):
    """Return the outcome of one optimizer and why; None where it cannot be tried plainly."""
    try:
        model = net()
        optimizer = make(model.parameters(), lr=1e-3)
        train(model, optimizer, 2)
        file = folder / "torch.pt"
        state = {
            "model": model.state_dict(),
            "optimizer": optimizer.state_dict(),
            "rng": torch.get_rng_state(),
        }
        torch.save(state, file)
        by_torch = resumed_by_torch(make, torch.load(file, weights_only=False))
        torch.set_rng_state(state["rng"])
    except Exception:  # noqa: BLE001 - it wants a closure, other arguments, a GPU, another package
        return None
    try:
        ckpt.save(folder, 2, model=model, optimizer=optimizer)
        other = net()
        again = make(other.parameters(), lr=1e-3)
        ckpt.restore(folder, model=other, optimizer=again)
    except oc.CheckpointError as error:
        return REFUSED, str(error)
    train(other, again, 2)
    torch.set_rng_state(state["rng"])
    train(model, optimizer, 2)
    if equal(model, other):
        return EXACT, ""
    return (SAME if equal(by_torch, other) else OTHER), ""


def measured(tmp_path):
    found = {kind: {} for kind in (EXACT, REFUSED, SAME, OTHER)}
    untried = []
    for number, (name, make) in enumerate(factories().items()):
        folder = tmp_path / str(number)
        folder.mkdir()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            result = outcome(make, folder)
        if result is None:
            untried.append(name)
        else:
            found[result[0]][name] = result[1].splitlines()[0] if result[1] else ""
    return {
        "versions": {name: version(name) for name in ("prodigyopt", "pytorch_optimizer", "torch")},
        "counts": {kind: len(names) for kind, names in found.items()},
        "not tried": untried,
        **{kind: names for kind, names in found.items() if kind != EXACT},
    }


@pytest.mark.timeout(1800)
def test_the_committed_counts_are_those_of_this_build(tmp_path):
    result = measured(tmp_path)
    if os.environ.get("OPTIM_CHECKPOINT_PEERS") == "write":
        RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    committed = json.loads(RESULT.read_text(encoding="utf-8"))
    assert committed.pop("versions").keys() == result.pop("versions").keys()
    assert committed == result
    # torch's own load takes all of these, and nothing may come back as something else.
    assert result["counts"][OTHER] == 0
