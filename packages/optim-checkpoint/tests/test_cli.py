import errno
import json
import os
import subprocess
import sys

import optim_checkpoint.cli as cli
import pytest
from optim_checkpoint import _manifest
from safetensors import safe_open


@pytest.fixture
def run(monkeypatch, capsys):
    def invoke(*arguments):
        monkeypatch.setattr("sys.argv", ["optim-checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return invoke


def damage(run_folder, step=2):
    file = run_folder / f"step-{step:08d}" / "model" / "model.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)


def test_ls_shows_every_step(run, run_folder, monkeypatch):
    (run_folder / "step-00000002" / "manifest.json").write_bytes(b"{}")
    code, out, _ = run("ls", run_folder)
    assert code == 0
    assert out.splitlines()[1].split()[:2] == ["1", "numpy"]
    assert " damaged: step-00000002/manifest.json" in out
    monkeypatch.setattr(_manifest, "VERSION", 0)
    _, out, _ = run("ls", run_folder)
    assert " not readable: step-00000001/manifest.json: needs a reader of format 1" in out


def test_one_step_and_all_steps_exclude_each_other(run, run_folder):
    code, _, err = run("verify", run_folder, "--all", "--step", 1)
    assert (code, err) == (1, "optim-checkpoint: --step and --all exclude each other\n")


def test_inspect_shows_every_tensor(run, run_folder):
    code, out, _ = run("inspect", run_folder, "--step", 1)
    assert code == 0
    assert "a.weight" in out
    assert "[100, 3]" in out
    code, out, _ = run("inspect", run_folder, "--json")
    document = json.loads(out)
    assert document["step"] == 2
    assert {"part": "model", "name": "count", "dtype": "I64", "shape": []} in document["tensors"]


def test_verify_says_which_step_is_damaged(run, run_folder):
    assert run("verify", run_folder)[:2] == (0, "step 2: sound, 7 tensors in 2 files, 5.5 KiB\n")
    damage(run_folder)
    code, out, err = run("verify", run_folder, "--all")
    assert code == 1
    assert out.startswith("step 1: sound")
    assert "step 2: DAMAGED: step-00000002/model/model.safetensors, tensor" in err


def test_export_writes_a_file_that_safetensors_opens(run, run_folder, tmp_path):
    target = tmp_path / "out.safetensors"
    assert run("export", run_folder, target, "--step", 1)[0] == 0
    with safe_open(target, "np") as file:
        assert sorted(file.keys()) == ["a.bias", "a.weight", "count", "empty", "flags", "words"]
    code, _, err = run("export", run_folder, target)
    assert (code, err) == (1, f"optim-checkpoint: {target} exists; pass --force to replace it\n")
    assert run("export", run_folder, target, "--force", "--part", "optim")[0] == 0
    with safe_open(target, "np") as file:
        assert list(file.keys()) == ["state.a.weight.mu"]


def test_export_of_a_damaged_step_leaves_nothing(run, run_folder, tmp_path):
    damage(run_folder)
    target = tmp_path / "out" / "x.safetensors"
    target.parent.mkdir()
    code, _, err = run("export", run_folder, target)
    assert code == 1
    assert "its digest is" in err
    assert list(target.parent.iterdir()) == []


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["verify", "nowhere"], "nowhere holds no checkpoint"),
        (["ls", "nowhere"], "nowhere holds no checkpoint"),
        (["inspect", "nowhere"], "nowhere is not a folder of checkpoints"),
        (["export", "nowhere", "x"], "nowhere is not a folder of checkpoints"),
        (["inspect", ".", "--step", "-1"], "step is -1; it must be an integer"),
        (["ls", "a" * 300], f"{'a' * 300}: cannot be opened: ENAMETOOLONG (File name too long)"),
    ],
)
def test_bad_input_is_one_line_and_exit_1(run, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    code, out, err = run(*arguments)
    assert code == 1
    assert out == ""
    assert err.startswith(f"optim-checkpoint: {message}")
    assert err.count("\n") == 1


def test_export_of_a_part_that_is_not_there(run, run_folder, tmp_path):
    code, _, err = run("export", run_folder, tmp_path / "x", "--part", "train")
    assert (code, err) == (1, "optim-checkpoint: step 2 has no part train\n")


def test_what_cannot_be_read_is_neither_sound_nor_damaged(run, run_folder, monkeypatch):
    def refuse(fd, buffers, offset):
        raise OSError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "preadv", refuse)
    code, out, err = run("verify", run_folder, "--all")
    assert (code, out) == (1, "")
    assert [line.split(": ")[:2] for line in err.splitlines()] == [
        [f"step {step}", "NOT READ"] for step in (1, 2)
    ]
    code, out, _ = run("ls", run_folder)
    assert out.count(" not readable: step-0000000") == 2
    assert "damaged:" not in out


def test_one_generation_is_not_taken_for_an_empty_run(run, run_folder):
    code, _, err = run("ls", run_folder / "step-00000002")
    assert code == 1
    assert err.endswith(f"pass {run_folder} and step=2\n")


@pytest.mark.parametrize("name", ["typer", "rich"])
def test_without_its_extra_the_command_line_says_what_to_install(name):
    # Of None in this table Python makes the error of a module that is not there.
    code = (
        f"import sys; sys.modules[{name!r}] = None; from optim_checkpoint.cli import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    assert done.stderr == (
        f"optim-checkpoint: the command line needs {name}, which is not installed: pip install "
        "'optim-checkpoint[cli]'\n"
    )


def test_on_windows_importing_says_what_it_needs():
    code = "import ctypes, sys; sys.platform = 'win32'; import optim_checkpoint"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1
    last = done.stderr.splitlines()[-1]
    assert last.startswith(
        "ImportError: optim-checkpoint needs Linux or macOS: Windows has neither"
    )


def test_the_library_imports_nothing_of_the_command_line():
    code = "import sys, optim_checkpoint; print({'typer', 'rich', 'safetensors'} & {*sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "set()\n"
