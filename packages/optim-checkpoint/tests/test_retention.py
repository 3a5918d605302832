"""What retention may remove: sound steps are counted, the user's own folders are not ours."""

import errno
import os
import shutil
import warnings

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _fs, _proof, _retention
from optim_checkpoint._commit import commit
from optim_checkpoint._options import Options


def names(folder):
    return sorted(path.name for path in folder.iterdir())


def flip(folder, step, file="model/model.safetensors", at=-1):
    path = folder / f"step-{step:08d}" / file
    raw = bytearray(path.read_bytes())
    raw[at] ^= 1
    path.write_bytes(raw)


@pytest.fixture
def run(memory_path, make_document):
    """The steps 10, 20 and 30; nothing is known of them, as in a new process."""
    for step in (10, 20, 30):
        commit(memory_path, make_document(step))
    _proof._found.clear()
    return memory_path


# Of a restore that passed them over this process knows; alone it finds out itself.
@pytest.mark.parametrize("restored", [True, False])
@pytest.mark.parametrize("file", ["model/model.safetensors", "manifest.json"])
def test_damaged_steps_take_no_place_of_sound_ones(run, make_document, load, restored, file):
    for step in (20, 30):
        flip(run, step, file)
    if restored:
        with pytest.warns(oc.CheckpointWarning):
            assert load(run).step == 10
    for step in (11, 12, 13):
        commit(run, make_document(step), Options(keep=3))
        sound = [s for s in oc.steps(run) if s < 20]
        assert sound == [10, 11, 12, 13][max(0, step - 12) : step - 9]
    # They go as soon as they are older than all that is kept.
    for step in (31, 32, 33):
        commit(run, make_document(step), Options(keep=3))
    assert oc.steps(run) == [31, 32, 33]


def test_a_damaged_older_step_does_not_shorten_what_can_be_restored(run, make_document):
    flip(run, 20, "optim/optim.safetensors", 12)
    commit(run, make_document(40), Options(keep=3))
    assert oc.steps(run) == [10, 20, 30, 40]
    commit(run, make_document(50), Options(keep=3))
    assert oc.steps(run) == [30, 40, 50]


def test_what_a_restore_found_damaged_is_known_to_the_next_save(run, make_document, load):
    for step in (20, 30):
        flip(run, step)
    with pytest.warns(oc.CheckpointWarning):
        assert load(run).step == 10
    commit(run, make_document(40), Options(keep=2))
    assert oc.steps(run) == [10, 20, 30, 40]


def test_a_step_that_cannot_be_read_takes_no_place_either(run, make_document, monkeypatch):
    generation = _proof.Generation

    def refuse(root, name):
        if name.step == 30:
            raise oc.CheckpointReadError(str(name), "cannot be opened", PermissionError(13, "no"))
        return generation(root, name)

    monkeypatch.setattr(_proof, "Generation", refuse)
    commit(run, make_document(40), Options(keep=2))
    assert oc.steps(run) == [20, 30, 40]


def test_of_a_step_that_was_written_again_the_sound_one_counts(run, make_document):
    commit(run, make_document(20), Options(replace=True))
    flip(run, 20)
    (run / "step-00000030" / "manifest.json").write_bytes(b"")
    commit(run, make_document(40), Options(keep=2))
    assert names(run) == [".lock", "step-00000020.g1", "step-00000030", "step-00000040"]


def test_what_is_known_is_not_read_again(run, make_document, monkeypatch):
    generation, opened = _proof.Generation, []

    def counted(root, name):
        opened.append(name.step)
        return generation(root, name)

    monkeypatch.setattr(_proof, "Generation", counted)
    for step in (40, 50, 60):
        commit(run, make_document(step), Options(keep=3))
    assert opened == [30, 20, 10]
    flip(run, 50, "manifest.json")
    commit(run, make_document(70), Options(keep=3))
    assert opened == [30, 20, 10, 50]
    assert oc.steps(run) == [40, 50, 60, 70]
    commit(run, make_document(80))
    assert opened == [30, 20, 10, 50]


class Unremovable(_fs.FileOps):
    """Some generations cannot be renamed."""

    def __init__(self, code, *steps):
        self.code, self.steps = code, [f"step-{step:08d}" for step in steps]

    def rename(self, old, new, folder):
        if old in self.steps:
            raise OSError(self.code, os.strerror(self.code))
        super().rename(old, new, folder)


@pytest.mark.parametrize("code", [errno.EXDEV, errno.EPERM, errno.EBUSY], ids=errno.errorcode.get)
def test_retention_goes_on_past_what_cannot_be_removed_and_says_so_once(
    run, make_document, monkeypatch, code
):
    monkeypatch.setattr(_fs, "ops", Unremovable(code, 10, 20))
    with pytest.warns(oc.CheckpointWarning) as caught:
        commit(run, make_document(40), Options(keep=1))
    reason = f"{errno.errorcode[code]}: {os.strerror(code)}"
    (warning,) = caught
    assert str(warning.message) == (
        "step 40 is saved, but older generations could not be removed: "
        f"step-00000020 ({reason}), step-00000010 ({reason}); every save tries again without a "
        "further word"
    )
    assert oc.steps(run) == [10, 20, 40]
    for step in (50, 60):
        commit(run, make_document(step), Options(keep=1))
    assert oc.steps(run) == [10, 20, 60]
    monkeypatch.setattr(_fs, "ops", _fs.FileOps())
    commit(run, make_document(70), Options(keep=1))
    assert oc.steps(run) == [70]


def test_of_a_retired_step_everything_goes_that_can(run, make_document, monkeypatch):
    class Stuck(_fs.FileOps):
        def remove(self, name, folder):
            if name == "manifest.json":
                raise OSError(errno.EPERM, "no")
            super().remove(name, folder)

    monkeypatch.setattr(_fs, "ops", Stuck())
    with pytest.warns(oc.CheckpointWarning, match=r"step-00000010 \(EPERM: no\)"):
        commit(run, make_document(40), Options(keep=1))
    left = [path.relative_to(run) for path in run.rglob("*") if ".trash-" in str(path)]
    assert {path.name for path in left if len(path.parts) > 1} == {"manifest.json"}
    monkeypatch.setattr(_fs, "ops", _fs.FileOps())
    commit(run, make_document(50), Options(keep=1))
    assert names(run) == [".lock", "step-00000050"]


def test_a_file_that_is_called_like_a_step_is_none(run, make_document):
    (run / "step-00000005").write_text("mine")
    (run / "step-00000040").write_text("mine")
    assert oc.steps(run) == [10, 20, 30]
    assert commit(run, make_document(40), Options(keep=1)).name == "step-00000040.g1"
    assert names(run) == [".lock", "step-00000005", "step-00000040", "step-00000040.g1"]
    assert oc.latest_step(run) == 40


def test_a_folder_of_the_user_that_is_called_like_a_step_stays(run, make_document):
    mine = run / "step-00000005"
    mine.mkdir()
    (mine / "data").write_text("mine")
    with pytest.warns(oc.CheckpointWarning, match=r"step-00000005 \(EPERM: without a manifest it"):
        commit(run, make_document(40), Options(keep=1))
    commit(run, make_document(50), Options(keep=1))
    assert (mine / "data").read_text() == "mine"
    assert oc.steps(run) == [5, 50]


OTHERS = [
    ".tmp-scratch",
    ".tmp-",
    ".tmp-step-00000001",
    ".tmp-step-00000001-aa",
    ".tmp-step-00000001-0123456789abcdeg",
    ".tmp-step-00000001-0123456789ABCDEF",
    ".tmp-step-00000001-0123456789abcdef0",
    ".tmp-step-1-0123456789abcdef",
    ".tmp-step-00000001.g0-0123456789abcdef",
    ".tmp-step-00000001-0123456789abcdef.bak",
    ".tmp-step-00000001-0123456789abcdef\n",
    "x.tmp-step-00000001-0123456789abcdef",
    ".trash-old-results",
    ".trash-2024",
    ".trash-step-00000001-backup",
    ".Trash-1000",
]


def test_folders_of_the_user_are_not_swept(tmp_path, make_document):
    for name in OTHERS:
        (tmp_path / name / "deep").mkdir(parents=True)
        (tmp_path / name / "deep" / "data").write_text("mine")
    for step in (1, 2, 3):
        commit(tmp_path, make_document(step), Options(keep=1))
    for name in OTHERS:
        assert (tmp_path / name / "deep" / "data").read_text() == "mine"


def test_a_link_that_is_called_like_a_leftover_is_not_followed(tmp_path, make_document):
    target = tmp_path / "elsewhere"
    target.mkdir()
    (target / "data").write_text("mine")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / ".tmp-step-00000001-0123456789abcdef").symlink_to(target)
    commit(tmp_path / "run", make_document(1))
    assert (target / "data").read_text() == "mine"


def test_a_folder_that_vanishes_during_a_look_is_no_failure(run, make_document, monkeypatch):
    look = _proof.examine

    def vanish(root, name):
        shutil.rmtree(run / str(name), ignore_errors=True)
        return look(root, name)

    monkeypatch.setattr(_retention, "examine", vanish)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oc.CheckpointWarning)
        commit(run, make_document(40), Options(keep=2))
    assert oc.steps(run) == [40]


def test_a_save_looks_at_each_step_that_it_keeps_once(run, make_document, monkeypatch):
    commit(run, make_document(40), Options(keep=4, keep_best=("loss", "min", 2)))
    looked, marks = [], _proof.marks
    monkeypatch.setattr(_proof, "marks", lambda *args: (looked.append(args[0]), marks(*args))[1])
    commit(run, make_document(50), Options(keep=4, keep_best=("loss", "min", 2)))
    assert oc.steps(run) == [20, 30, 40, 50]
    before = sorted(name for name in looked if name != "step-00000050")
    assert before == ["step-00000010", "step-00000020", "step-00000030", "step-00000040"]
