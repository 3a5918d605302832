"""Folders that someone meddled with: refused by a typed error, or skipped for a sound one."""

import dataclasses
import os
import resource

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _fs, _generation, _place
from optim_checkpoint._commit import commit
from optim_checkpoint._folder import parse_name
from optim_checkpoint._options import Options


def replace_file(run_folder, make):
    path = run_folder / "step-00000002" / "model" / "model.safetensors"
    raw = path.read_bytes()
    path.unlink()
    make(path, raw)


def as_symlink(path, raw):
    target = path.parent.parent.parent / "elsewhere"
    target.write_bytes(raw)
    path.symlink_to(target)


ZOO = {
    "file is a symbolic link": (as_symlink, "is a symbolic link"),
    "file is a pipe": (lambda path, raw: os.mkfifo(path), "is not a regular file"),
    "file is a folder": (lambda path, raw: path.mkdir(), "is not a regular file"),
    "file is missing": (lambda path, raw: None, "cannot be opened"),
    "file is empty": (lambda path, raw: path.touch(), "has 0 bytes"),
    "file is longer": (lambda path, raw: path.write_bytes(raw + b"\0"), "bytes, .* were written"),
}


@pytest.mark.parametrize("case", ZOO)
def test_a_damaged_folder_is_skipped_for_the_one_before(case, run_folder, load, check):
    make, message = ZOO[case]
    replace_file(run_folder, make)
    with pytest.raises(oc.CorruptCheckpointError, match=message):
        oc.verify(run_folder)
    with pytest.warns(oc.CheckpointWarning, match=f"skipped a damaged checkpoint: .*{message}"):
        chosen = load(run_folder)
    check(chosen.value, 1)
    assert [item.path.name for item in chosen.skipped] == ["step-00000002"]
    assert oc.latest_step(run_folder) == 1


def test_a_linked_part_folder_is_refused(run_folder):
    part = run_folder / "step-00000002" / "model"
    part.rename(run_folder / "elsewhere")
    part.symlink_to(run_folder / "elsewhere")
    with pytest.raises(oc.CorruptCheckpointError, match="is not a folder that can be opened"):
        oc.verify(run_folder, 2)


def test_a_renamed_generation_is_refused(run_folder):
    (run_folder / "step-00000002").rename(run_folder / "step-00000009")
    with pytest.raises(oc.CorruptCheckpointError, match="is of step 2; the folder was renamed"):
        oc.verify(run_folder, 9)


def test_when_everything_is_damaged_the_newest_says_why(run_folder, load):
    for step in (1, 2):
        (run_folder / f"step-{step:08d}" / "manifest.json").write_bytes(b"{}")
    with pytest.raises(oc.CorruptCheckpointError, match=r"step-00000002/manifest\.json"):
        load(run_folder)
    assert oc.latest_step(run_folder) is None


def test_a_generation_that_is_retired_before_it_is_opened_makes_way_for_the_new_one(
    tmp_path, make_document, check, load, monkeypatch
):
    """With keep=1 a reader can list a step that is gone when it opens it."""
    commit(tmp_path, make_document(1))
    opened = _place.Generation

    def open_late(root, name):
        if name.step == 1:
            commit(tmp_path, make_document(2), Options(keep=1))
        return opened(root, name)

    monkeypatch.setattr(_place, "Generation", open_late)
    with pytest.warns(oc.CheckpointWarning, match="skipped .* step-00000001"):
        chosen = load(tmp_path)
    check(chosen.value, 2)
    assert [item.path.name for item in chosen.skipped] == ["step-00000001"]


def test_a_step_that_is_retired_before_it_is_opened_is_not_exchanged(
    tmp_path, make_document, load, monkeypatch
):
    commit(tmp_path, make_document(1))
    opened = _place.Generation

    def open_late(root, name):
        commit(tmp_path, make_document(2), Options(keep=1))
        return opened(root, name)

    monkeypatch.setattr(_place, "Generation", open_late)
    with pytest.raises(oc.CorruptCheckpointError, match="step-00000001: is not a folder"):
        load(tmp_path, 1)


def test_what_is_not_there_is_said(tmp_path, run_folder, load):
    with pytest.raises(oc.CheckpointNotFoundError, match="has no step 7; newest steps: 1, 2"):
        load(run_folder, 7)
    with pytest.raises(oc.CheckpointNotFoundError, match="is not a folder of checkpoints"):
        load(tmp_path / "nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(oc.CheckpointNotFoundError, match="holds no checkpoint"):
        load(tmp_path / "empty")
    assert oc.steps(tmp_path / "nowhere") == []
    assert oc.latest_step(tmp_path / "nowhere") is None


def test_what_is_kept_of_an_open_generation_is_bounded_by_its_manifest(run_folder):
    """Links make thousands of files of one: their padding and metadata must not pile up."""
    with (
        _fs.opened(_fs.open_folder(run_folder)) as root,
        _generation.Generation(root, parse_name("step-00000002")) as generation,
    ):
        for stored in generation.files:
            kept = {field.name for field in dataclasses.fields(stored)}
            assert kept == {"record", "fd", "tensors", "data_start"}


def test_too_few_descriptors_are_not_taken_for_damage(run_folder, make_document, load):
    """A sound generation of many files is not passed over for an older one."""
    commit(run_folder, make_document(3), Options(max_shard_size=1))
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = [os.open(run_folder, os.O_RDONLY) for _ in range(7)]
    for fd in free:
        os.close(fd)
    resource.setrlimit(resource.RLIMIT_NOFILE, (max(free) + 1, limits[1]))
    try:
        with pytest.raises(oc.CheckpointError, match=r"Too many open files.* ulimit -n") as caught:
            load(run_folder)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert type(caught.value) is oc.CheckpointReadError
    assert load(run_folder).step == 3


@pytest.mark.parametrize(
    "read", [lambda p, load: load(p), lambda p, load: oc.steps(p), lambda p, load: oc.verify(p)]
)
@pytest.mark.parametrize("way", ["path", "link", "working folder"])
def test_one_generation_in_the_place_of_the_run_says_where_the_run_is(
    run_folder, load, monkeypatch, tmp_path, read, way
):
    given = run_folder / "step-00000002"
    if way == "link":
        (tmp_path / "latest").symlink_to(given)
        given = tmp_path / "latest"
    elif way == "working folder":
        monkeypatch.chdir(given)
        given = "."
    with pytest.raises(
        oc.CheckpointNotFoundError,
        match=rf"{given} is one generation of a run, .*: pass {run_folder.resolve()} and step=2$",
    ):
        read(given, load)


def test_nothing_is_saved_into_a_generation(run_folder, make_document):
    inside = run_folder / "step-00000002"
    with pytest.raises(oc.CheckpointWriteError, match=rf"is one generation .* to {run_folder}$"):
        commit(inside, make_document(3))
    assert sorted(path.name for path in inside.iterdir()) == ["manifest.json", "model", "optim"]


def test_a_run_may_be_called_like_a_generation(tmp_path, make_document, load, check):
    commit(tmp_path / "step-00000100", make_document(1))
    check(load(tmp_path / "step-00000100").value, 1)
    assert oc.steps(tmp_path / "step-00000100") == [1]


def test_a_step_that_was_written_again_is_listed_once(run_folder, make_document, load):
    commit(run_folder, make_document(1), Options(replace=True))
    with pytest.raises(oc.CheckpointNotFoundError, match=r"has no step 99; newest steps: 1, 2$"):
        load(run_folder, 99)


@pytest.mark.parametrize("back", [False, True])
def test_a_save_to_a_folder_that_was_moved_away_meanwhile_is_no_save(
    run_folder, make_document, monkeypatch, back
):
    class Moving(_fs.FileOps):
        def rename(self, old, new, folder):
            super().rename(old, new, folder)
            run_folder.rename(run_folder.with_name("moved"))
            if back:
                run_folder.mkdir()

    monkeypatch.setattr(_fs, "ops", Moving())
    with pytest.raises(oc.CheckpointWriteError, match="step 3 was committed, but not to what is"):
        commit(run_folder, make_document(3), Options(keep=1))
    assert oc.steps(run_folder.with_name("moved")) == [1, 2, 3]
