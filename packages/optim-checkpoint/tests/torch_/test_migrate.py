"""From files of torch.save and folders of DCP and back: the run goes on as it would have."""

import importlib.util
import random
import warnings
from pathlib import Path

import numpy as np
import optim_checkpoint
import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoint import CheckpointExistsError, UnsupportedStateError
from optim_checkpoint import torch as ckpt
from optim_checkpoint.migrate import export_checkpoint, import_checkpoint, names_of
from torch.distributed.checkpoint.state_dict import get_state_dict, set_state_dict

_spec = importlib.util.spec_from_file_location("migrating", Path(__file__).parent / "migrating.py")
migrating = importlib.util.module_from_spec(_spec)
_spec.loader.exec_module(migrating)
Run, identical = migrating.Run, migrating.identical
ADAMW = "torch.optim.AdamW"


def generators():
    return {
        "torch": torch.get_rng_state(),
        "python": random.getstate(),
        "np": np.random.get_state(),  # noqa: NPY002 - the global generator
    }


def set_generators(states):
    torch.set_rng_state(states["torch"])
    random.setstate(states["python"])
    np.random.set_state(states.get("np") or states["numpy"])  # noqa: NPY002 - the global generator


def save_by_torch(run, file):
    parts = {name: each.state_dict() for name, each in run.objects().items()}
    torch.save({**parts, "rng": generators(), "epoch": 7}, file)


def save_by_dcp(run, folder):
    model, optimizer = get_state_dict(run.model, run.optimizer)
    state = {"net": model, "opt": optimizer, "scheduler": run.scheduler.state_dict()}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save({**state, "rng": generators(), "epoch": 7}, checkpoint_id=folder)


@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("write", [save_by_torch, save_by_dcp])
def test_an_imported_run_goes_on_as_it_would_have(write, groups, tmp_path):
    run = Run(groups=groups).train()
    write(run, tmp_path / "old")
    other = Run(groups=groups)
    names = names_of(other.optimizer, other.model)
    report = import_checkpoint(tmp_path / "old", tmp_path, 3, optimizer=ADAMW, names=names)
    restored = ckpt.restore(tmp_path, **other.objects())
    assert (restored.step, restored.extra["epoch"]) == (3, 7)
    assert report.left_out == ("generators: the source has none",)
    set_generators(restored.extra["rng"])
    resumed = other.train().outcome()
    # The first run goes on from where its generators were.
    set_generators(restored.extra["rng"])
    identical(resumed, run.train().outcome())


@pytest.mark.parametrize("groups", [False, True])
def test_a_file_for_torch_goes_on_as_it_would_have(groups, tmp_path):
    run = Run(groups=groups).train()
    ckpt.save(tmp_path, 3, **run.objects(), extra={"words": np.arange(3), "epoch": 7})
    file = tmp_path / "out.pt"
    report = export_checkpoint(tmp_path, file, format="torch")
    assert report.notes == ("extra['words']: an array of NumPy, written as a tensor",)
    expected = run.train().outcome()
    other, state = Run(groups=groups), torch.load(file, weights_only=True)
    for name, each in other.objects().items():
        each.load_state_dict(state[name])
    set_generators(state["rng"])
    identical(other.train().outcome(), expected)
    assert (state["step"], state["extra"]["epoch"]) == (3, 7)
    # It says by itself what other files of torch do not.
    report = import_checkpoint(file, tmp_path / "again")
    third = Run(groups=groups)
    ckpt.restore(tmp_path / "again", **third.objects())
    identical(third.train().outcome(), expected)
    assert (report.left_out, report.notes) == ((), ())


@pytest.mark.parametrize("groups", [False, True])
def test_a_folder_for_dcp_goes_on_as_it_would_have(groups, tmp_path):
    run = Run(groups=groups).train()
    ckpt.save(tmp_path, 3, **run.objects())
    export_checkpoint(tmp_path, tmp_path / "out", format="dcp")
    expected = run.train().outcome()
    other = Run(groups=groups)
    model, optimizer = get_state_dict(other.model, other.optimizer)
    state = {"model": model, "optimizer": optimizer, "scheduler": other.scheduler.state_dict()}
    state["rng"] = {"torch": torch.get_rng_state(), "python": 0, "numpy": 0}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.load(state, checkpoint_id=tmp_path / "out")
    set_state_dict(
        other.model,
        other.optimizer,
        model_state_dict=state["model"],
        optim_state_dict=state["optimizer"],
    )
    other.scheduler.load_state_dict(state["scheduler"])
    set_generators(state["rng"])
    identical(other.train().outcome(), expected)
    assert import_checkpoint(tmp_path / "out", tmp_path / "again").step == 3


def test_moments_keep_a_dtype_that_torch_would_cast(tmp_path):
    model = torch.nn.Linear(3, 2, dtype=torch.bfloat16)
    optimizer = torch.optim.AdamW(model.parameters())
    model(torch.ones(1, 3, dtype=torch.bfloat16)).sum().backward()
    optimizer.step()
    state = optimizer.state_dict()
    moment = torch.full((2, 3), 1 + 2**-20)
    state["state"][0]["exp_avg"] = moment
    torch.save({"model": model.state_dict(), "optimizer": state}, tmp_path / "x")
    import_checkpoint(tmp_path / "x", tmp_path, 1, optimizer=ADAMW)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert torch.equal(optimizer.state[model.weight]["exp_avg"], moment)
    # What the table of the guide says of torch and of DCP.
    optimizer.load_state_dict(state)
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.bfloat16
    _, by_name = get_state_dict(model, optimizer)
    by_name["state"]["weight"]["exp_avg"] = moment
    set_state_dict(model, optimizer, model_state_dict={}, optim_state_dict=by_name)
    assert optimizer.state[model.weight]["exp_avg"].dtype == torch.bfloat16


def test_dcp_makes_text_of_numbers(tmp_path):
    state = {"model": {"w": torch.ones(1)}, "table": {4: torch.ones(1)}}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=tmp_path / "x")
    import_checkpoint(tmp_path / "x", tmp_path, 1, keys={"model": "model"})
    assert list(ckpt.restore(tmp_path).extra["table"]) == ["4"]


def shared():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[1].weight = model[0].weight
    return model


def frozen():
    model = torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.Linear(3, 3))
    model[0].requires_grad_(False)
    return model


def buffers():
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))


@pytest.mark.parametrize(
    ("build", "reason"),
    [
        (shared, "so that some are buffers, frozen or tied"),
        (frozen, "so that some are buffers, frozen or tied"),
        (buffers, "so that some are buffers, frozen or tied"),
    ],
)
def test_names_that_are_not_certain_are_asked_for(build, reason, tmp_path):
    def optimizer_of(model):
        trained = [p for p in model.parameters() if p.requires_grad]
        return torch.optim.AdamW(trained, lr=0.01)

    def step(model, optimizer):
        model(torch.arange(6.0).reshape(2, 3)).square().sum().backward()
        optimizer.step()

    model = build()
    optimizer = optimizer_of(model)
    step(model, optimizer)
    file = tmp_path / "x.pt"
    torch.save({"model": model.state_dict(), "optimizer": optimizer.state_dict()}, file)
    with pytest.raises(UnsupportedStateError, match=reason):
        import_checkpoint(file, tmp_path, 1, optimizer=ADAMW)
    assert optim_checkpoint.steps(tmp_path) == []
    other = build()
    import_checkpoint(file, tmp_path, 1, optimizer=ADAMW, model=other)
    resumed = optimizer_of(other)
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    for here, there in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(here, there)
        assert all(
            torch.equal(v, resumed.state[there][k]) for k, v in optimizer.state[here].items()
        )


def test_names_in_another_order_are_refused(tmp_path):
    run = Run(buffers=False).train()
    save_by_torch(run, tmp_path / "x")
    names = names_of(run.optimizer, run.model)[0]
    with pytest.raises(UnsupportedStateError, match="the names are in another order"):
        import_checkpoint(tmp_path / "x", tmp_path, 3, optimizer=ADAMW, names=names[::-1])
    with pytest.raises(UnsupportedStateError, match=r"names are for \[3\]"):
        import_checkpoint(tmp_path / "x", tmp_path, 3, optimizer=ADAMW, names=names[:3])
    with pytest.raises(UnsupportedStateError, match=r"that the model has not: 9\.weight"):
        import_checkpoint(
            tmp_path / "x", tmp_path, 3, optimizer=ADAMW, names=["9.weight", *names[1:]]
        )


def test_several_models_and_optimizers_keep_their_keys(tmp_path):
    def build():
        model = {"gen": torch.nn.Linear(2, 2), "disc": torch.nn.Linear(2, 2)}
        kinds = {"gen": torch.optim.AdamW, "disc": torch.optim.SGD}
        return model, {f"opt_{n}": kinds[n](m.parameters(), lr=0.1) for n, m in model.items()}

    model, optimizer = build()
    for name, each in model.items():
        each(torch.ones(1, 2)).sum().backward()
        optimizer[f"opt_{name}"].step()
    parts = {n: each.state_dict() for n, each in {**model, **optimizer}.items()}
    torch.save(parts, tmp_path / "x")
    with pytest.raises(UnsupportedStateError, match="gen, disc all look like one"):
        import_checkpoint(tmp_path / "x", tmp_path, 1, optimizer=ADAMW)
    import_checkpoint(
        tmp_path / "x",
        tmp_path,
        1,
        keys={"model": ["gen", "disc"]},
        optimizer={"opt_gen": ADAMW, "opt_disc": "torch.optim.SGD"},
        names={f"opt_{n}": [f"{n}.weight", f"{n}.bias"] for n in model},
    )
    others, resumed = build()
    ckpt.restore(tmp_path, model=others, optimizer=resumed)
    assert all(torch.equal(model[n].weight, others[n].weight) for n in model)
    saved = optimizer["opt_gen"].state_dict()["state"][0]
    assert torch.equal(saved["exp_avg"], resumed["opt_gen"].state_dict()["state"][0]["exp_avg"])


def test_an_existing_step_and_an_existing_target_stay(tmp_path):
    run = Run(buffers=False).train()
    save_by_torch(run, tmp_path / "x")
    path = ckpt.save(tmp_path / "run", 3, model=run.model)
    before = (path / "manifest.json").read_bytes()
    with pytest.raises(CheckpointExistsError, match="already holds step 3; pass replace=True"):
        import_checkpoint(tmp_path / "x", tmp_path / "run", 3, optimizer=ADAMW)
    assert (path / "manifest.json").read_bytes() == before
    for form in ("torch", "dcp"):
        with pytest.raises(CheckpointExistsError, match="exists"):
            export_checkpoint(tmp_path / "run", tmp_path / "x", format=form)
    report = import_checkpoint(
        tmp_path / "x", tmp_path / "run", 3, optimizer=ADAMW, leave_out=["epoch"], replace=True
    )
    assert "epoch: was to be left out" in report.left_out
    assert {each.name for each in (tmp_path / "run").iterdir()} >= {path.name, report.path.name}
