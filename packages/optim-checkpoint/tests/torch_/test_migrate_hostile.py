"""Files that are pickled, cut or of another kind: one line, nothing run, nothing lost."""

import contextlib
import os
import pickle
import warnings
from pathlib import Path

import optim_checkpoint
import optim_checkpoint.cli as cli
import pytest
import torch
import torch.distributed.checkpoint as dcp
from optim_checkpoint import CheckpointError, UnsupportedStateError
from optim_checkpoint import torch as ckpt
from optim_checkpoint.migrate import export_checkpoint, import_checkpoint
from torch.distributed.checkpoint.api import CheckpointException

ADAMW = "torch.optim.AdamW"


class Writes:
    """What would write a file when it is unpickled."""

    def __init__(self, marker):
        self.marker = str(marker)

    def __reduce__(self):
        return Path.touch, (Path(self.marker),)


@pytest.fixture
def run(monkeypatch, capsys):
    def invoke(*arguments):
        monkeypatch.setattr("sys.argv", ["optim-checkpoint", *map(str, arguments)])
        with pytest.raises(SystemExit) as caught:
            cli.main()
        output = capsys.readouterr()
        return caught.value.code, output.out, output.err

    return invoke


def save_dcp(state, folder):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=folder)


def in_torch(marker, place):
    torch.save({"model": {"w": torch.ones(2)}, "args": Writes(marker)}, place)


def in_old_torch(marker, place):
    torch.save({"m": Writes(marker)}, place, _use_new_zipfile_serialization=False)


def in_plain_pickle(marker, place):
    place.write_bytes(pickle.dumps(Writes(marker), protocol=2))


def in_dcp_value(marker, place):
    save_dcp({"model": {"w": torch.ones(2)}, "args": Writes(marker)}, place)


def in_dcp_metadata(marker, place):
    save_dcp({"model": {"w": torch.ones(2)}}, place)
    (place / ".metadata").write_bytes(pickle.dumps(Writes(marker)))


def in_trainer_model(marker, place):
    place.mkdir()
    (place / "trainer_state.json").write_text('{"global_step": 1}')
    torch.save({"w": Writes(marker)}, place / "pytorch_model.bin")


def in_accelerate_optimizer(marker, place):
    place.mkdir()
    torch.save({"w": torch.ones(2)}, place / "pytorch_model.bin")
    torch.save({"state": Writes(marker)}, place / "optimizer.bin")


PICKLED = [
    *(in_torch, in_old_torch, in_plain_pickle, in_dcp_value, in_dcp_metadata),
    *(in_trainer_model, in_accelerate_optimizer),
]


@pytest.mark.parametrize("write", PICKLED)
def test_pickled_code_is_not_run(write, tmp_path, run):
    marker, source = tmp_path / "marker", tmp_path / "source"
    write(marker, source)
    assert not marker.exists()
    with pytest.raises(UnsupportedStateError, match=r"holds a pickled .*; nothing was run"):
        import_checkpoint(source, tmp_path / "run", 1)
    code, out, err = run("import", source, tmp_path / "run", "--step", 1)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert not marker.exists()
    assert not (tmp_path / "run").exists()
    # It would have been, by the way that is not safe.
    if write in (in_dcp_value, in_dcp_metadata):
        with contextlib.suppress(Exception, CheckpointException), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            dcp.load({"model": {"w": torch.ones(2)}, "args": None}, checkpoint_id=source)
        assert marker.exists()
    elif write in (in_torch, in_old_torch):
        torch.load(source, weights_only=False)
        assert marker.exists()


def test_a_pickle_that_nothing_depends_on_is_listed(tmp_path):
    in_trainer_model(tmp_path / "marker", tmp_path / "x")
    torch.save({"w": torch.ones(2)}, tmp_path / "x" / "pytorch_model.bin")
    torch.save(Writes(tmp_path / "marker"), tmp_path / "x" / "sampler.bin")
    report = import_checkpoint(tmp_path / "x", tmp_path)
    assert any("sampler.bin" in line and "nothing was run" in line for line in report.left_out)
    assert report.step == 1
    assert not (tmp_path / "marker").exists()


@pytest.mark.parametrize("part", [0.0, 0.3, 0.9])
def test_a_cut_file_is_one_line(part, tmp_path, run):
    torch.save({"model": {"w": torch.ones(2000)}}, tmp_path / "x")
    save_dcp({"model": {"w": torch.ones(2000)}}, tmp_path / "d")
    for file in (tmp_path / "x", tmp_path / "d" / ".metadata", tmp_path / "d" / "__0_0.distcp"):
        whole = file.read_bytes()
        file.write_bytes(whole[: int(part * len(whole))])
        source = tmp_path / file.relative_to(tmp_path).parts[0]
        code, out, err = run("import", source, tmp_path / "run", "--step", 1)
        assert (code, out, err.count("\n")) == (1, "", 1)
        assert err.startswith("optim-checkpoint: ")
        file.write_bytes(whole)
    assert not (tmp_path / "run").exists()


def test_a_flip_in_what_describes_a_folder_of_dcp_ends_in_an_error_of_ours_or_in_none(tmp_path):
    save_dcp({"model": {"w": torch.arange(12.0).reshape(3, 4)}}, tmp_path / "d")
    file = tmp_path / "d" / ".metadata"
    whole = file.read_bytes()
    for position in range(0, len(whole), 29):
        file.write_bytes(whole[:position] + bytes([whole[position] ^ 4]) + whole[position + 1 :])
        with contextlib.suppress(CheckpointError):
            import_checkpoint(tmp_path / "d", tmp_path / f"run{position}", 1)


def trainer_without_model(place):
    place.mkdir()
    (place / "trainer_state.json").write_text('{"global_step": 1}')


def other_folder(place):
    place.mkdir()
    (place / "readme.txt").write_text("x")


def own_folder(place):
    place.mkdir()
    (place / "manifest.json").write_text("{}")


def only_an_optimizer(place):
    torch.save(torch.optim.SGD([torch.ones(1)], lr=0.1).state_dict(), place)


def no_model(place):
    torch.save({"a": 1, "b": torch.ones(1)}, place)


def a_list(place):
    torch.save([1, 2], place)


def optimizer_unnamed(place):
    weight = torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=0.1)
    torch.save({"model": {"w": weight}, "optimizer": optimizer.state_dict()}, place)


@pytest.mark.parametrize(
    ("write", "options", "message"),
    [
        (None, [], "is not there"),
        (trainer_without_model, [], "has no model.safetensors, nor pytorch_model.bin"),
        (other_folder, [], "is no folder of transformers' Trainer, Accelerate, DCP or Orbax"),
        (own_folder, [], "is of optim-checkpoint already"),
        (only_an_optimizer, ["--step", 1], "holds the state of one optimizer and no model"),
        (no_model, ["--step", 1], "does not say which part is the model: it has a, b"),
        (no_model, ["--step", 1, "--key", "model=c"], "has no 'c' for the model; it has a, b"),
        (no_model, ["--step", 1, "--key", "modl=a"], "keys has 'modl'; it may have model"),
        (no_model, ["--step", 1, "--key", "a"], "--key is 'a'; it must be NAME=VALUE"),
        (no_model, ["--step", 1, "--format", "x"], "format is 'x'; it must be one of torch"),
        (no_model, ["--step", 1, "--format", "dcp"], "is no folder, not dcp"),
        (a_list, ["--step", 1], "holds a list, not a dict"),
        (optimizer_unnamed, ["--optimizer", ADAMW], "does not say which step it is of"),
        (optimizer_unnamed, ["--step", 1], "has no class in the source: give optimizer="),
        (optimizer_unnamed, ["--step", 1, "--optimizer", "x y"], "the dotted name of a class"),
        (optimizer_unnamed, ["--step", 1, "--leave-out", "q"], "there is model, optimizer"),
    ],
)
def test_what_cannot_be_imported_is_one_line(write, options, message, tmp_path, run):
    source = tmp_path / "source"
    if write is not None:
        write(source)
    code, out, err = run("import", source, tmp_path / "run", *options)
    assert (code, out, err.count("\n")) == (1, "", 1)
    assert message in err
    assert not (tmp_path / "run").exists()


def test_the_command_line_tells_what_came_along(tmp_path, run):
    optimizer_unnamed(tmp_path / "x")
    arguments = ("import", tmp_path / "x", tmp_path / "run", "--step", 4)
    code, out, err = run(*arguments, "--optimizer", "torch.optim.SGD")
    assert (code, err) == (0, "")
    assert [line.strip() for line in out.splitlines()[1:]] == [
        "model: 1 entries",
        "optimizer: state of 0 of 1 parameters in 1 groups",
        "note: optimizer: named in the order of the model's state dict",
        "left out: generators: the source has none",
    ]
    assert optim_checkpoint.steps(tmp_path / "run") == [4]
    for form in ("torch", "dcp"):
        code, out, err = run("export", tmp_path / "run", tmp_path / form, "--format", form)
        assert (code, err) == (0, "")
        assert out.startswith(f"exported step 4 ({form})")


def test_what_cannot_be_exported_leaves_nothing(tmp_path):
    optimizer_unnamed(tmp_path / "x")
    import_checkpoint(tmp_path / "x", tmp_path / "run", 4, optimizer="torch.optim.SGD")
    (tmp_path / "out").mkdir()
    with pytest.raises(UnsupportedStateError, match="without its loops"):
        export_checkpoint(tmp_path / "run", tmp_path / "out" / "y", format="lightning")
    with pytest.raises(ValueError, match="must be one of torch, lightning, dcp"):
        export_checkpoint(tmp_path / "run", tmp_path / "out" / "y", format="orbax")
    file = next((tmp_path / "run").glob("step-*/model/*.safetensors"))
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 1
    file.write_bytes(raw)
    with pytest.raises(optim_checkpoint.CorruptCheckpointError):
        export_checkpoint(tmp_path / "run", tmp_path / "out" / "y", format="torch")
    assert list((tmp_path / "out").iterdir()) == []


def test_an_export_is_durable_before_it_has_its_name(tmp_path, monkeypatch):
    model = torch.nn.Linear(2, 1)
    ckpt.save(tmp_path / "run", 1, model=model)
    calls = []
    sync, rename = os.fsync, Path.rename

    def synced(descriptor):
        calls.append(("sync", os.fstat(descriptor).st_ino))
        sync(descriptor)

    def renamed(path, target):
        calls.append(("rename", path.stat().st_ino))
        return rename(path, target)

    monkeypatch.setattr(os, "fsync", synced)
    monkeypatch.setattr(Path, "rename", renamed)
    target = tmp_path / "model.pt"
    export_checkpoint(tmp_path / "run", target, format="torch")
    file = target.stat().st_ino
    assert calls == [("sync", file), ("rename", file), ("sync", tmp_path.stat().st_ino)]
