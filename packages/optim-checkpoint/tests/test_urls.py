"""A path that names no folder is refused by every function and command."""

import sys
from pathlib import Path

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint._export import export
from optim_checkpoint.cli import main

BLANK = ["", "  ", "\t\n", "file://", "local:// "]
MESSAGE = 'names no folder; pass "." for the current one'

CALLS = {
    "steps": oc.steps,
    "latest_step": oc.latest_step,
    "retained": oc.retained,
    "verify": oc.verify,
    "inspect": oc.inspect,
    "pin": lambda path: oc.pin(path, 1, "why"),
    "unpin": lambda path: oc.unpin(path, 1),
    "export": lambda path: export(path, "out"),
    "export to": lambda path: export("run", path),
}


@pytest.fixture(autouse=True)
def empty_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    yield
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("path", BLANK)
@pytest.mark.parametrize("call", CALLS.values(), ids=CALLS)
def test_a_blank_path_is_refused(call, path):
    with pytest.raises(ValueError, match=MESSAGE):
        call(path)


@pytest.mark.parametrize("path", BLANK)
def test_torch_refuses_a_blank_path(path):
    torch = pytest.importorskip("torch")
    from optim_checkpoint import migrate
    from optim_checkpoint import torch as ckpt

    model = torch.nn.Linear(2, 2)
    for call in (
        lambda: ckpt.save(path, 1, model=model),
        lambda: ckpt.restore(path, model=model),
        lambda: ckpt.AsyncCheckpointer(path),
        lambda: migrate.import_checkpoint(path, "run", 1),
        lambda: migrate.export_checkpoint(path, "out", format="torch"),
        lambda: migrate.export_checkpoint("run", path, format="torch"),
    ):
        with pytest.raises(ValueError, match=MESSAGE):
            call()


@pytest.mark.parametrize("path", BLANK)
def test_jax_refuses_a_blank_path(path):
    pytest.importorskip("jax")
    from optim_checkpoint import jax as ckpt

    params = {"w": np.ones(2)}
    for call in (
        lambda: ckpt.save(path, 1, params=params),
        lambda: ckpt.restore(path, params=params),
        lambda: ckpt.AsyncCheckpointer(path),
    ):
        with pytest.raises(ValueError, match=MESSAGE):
            call()


@pytest.mark.parametrize(
    "command",
    [["ls"], ["inspect"], ["verify"], ["verify", "--all"], ["pin", "1", "why"], ["unpin", "1"]],
    ids=" ".join,
)
def test_a_command_refuses_a_blank_path(command, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["optim-checkpoint", command[0], "", *command[1:]])
    with pytest.raises(SystemExit) as ended:
        main()
    assert ended.value.code == 1
    assert MESSAGE in capsys.readouterr().err


def test_a_point_and_an_empty_path_object_are_the_current_folder():
    assert oc.steps(".") == oc.steps(Path()) == []
