"""Importing to a store and exporting from one: no folder is made that is called as a URL."""

from pathlib import Path

import fsspec
import optim_checkpoint
import pytest
import torch
from optim_checkpoint import CheckpointError
from optim_checkpoint._commands import app
from optim_checkpoint.migrate import export_checkpoint, import_checkpoint
from typer.testing import CliRunner


@pytest.fixture
def url(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    torch.save({"model": torch.nn.Linear(2, 3).state_dict()}, "old.pt")
    yield "memory://migrated/run"
    fs = fsspec.filesystem("memory")
    if fs.exists("/migrated"):
        fs.rm("/migrated", recursive=True)


def local():
    return sorted(p.name for p in Path().iterdir())


def test_a_store_is_imported_to_and_exported_from(url):
    report = import_checkpoint("old.pt", url, 7)
    assert report.path == f"{url}/step-00000007"
    assert optim_checkpoint.steps(url) == [7]
    export_checkpoint(url, "new.pt", format="torch")
    old, new = torch.load("old.pt")["model"], torch.load("new.pt")["model"]
    assert all(torch.equal(old[name], new[name]) for name in old)
    assert local() == ["new.pt", "old.pt"]


def test_the_commands_take_urls(url, tmp_path):
    done = CliRunner().invoke(app, ["import", f"file://{tmp_path}/old.pt", url, "--step", "7"])
    assert done.exit_code == 0, done.output
    done = CliRunner().invoke(app, ["export", url, f"file://{tmp_path}/new.safetensors"])
    assert done.exit_code == 0, done.output
    assert local() == ["new.safetensors", "old.pt"]


def test_files_of_other_tools_are_local(url):
    import_checkpoint("old.pt", url, 7)
    with pytest.raises(CheckpointError, match="is in a store"):
        import_checkpoint("memory://migrated/old.pt", "run", 7)
    with pytest.raises(CheckpointError, match="is in a store"):
        export_checkpoint(url, "memory://migrated/new.pt", format="torch")
    assert local() == ["old.pt"]
