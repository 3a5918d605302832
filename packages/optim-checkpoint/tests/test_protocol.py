"""The order of the calls, held to a model of what a power cut may leave behind.

The model is the weakest that POSIX allows: data survives only if the file was synced after the last
write, a name only if its folder was synced after the change, and a rename may reach the disk at any
time from its call on. Every sync of the protocol is then taken away in turn, and the model must
object to each.
"""

import errno
from pathlib import Path

import pytest
from optim_checkpoint import _commit, _fs
from optim_checkpoint._commit import commit
from optim_checkpoint._options import Options


class Recorder(_fs.FileOps):
    """Does the calls and records them with real paths."""

    def __init__(self):
        self.calls = []

    @staticmethod
    def _path(fd, name=""):
        return str(Path(f"/proc/self/fd/{fd}").readlink() / name)

    def make_folder(self, name, folder):
        super().make_folder(name, folder)
        self.calls.append(("make", self._path(folder, name)))

    def create(self, name, folder):
        self.calls.append(("make", self._path(folder, name)))
        return super().create(name, folder)

    def link(self, old, old_folder, new, new_folder):
        super().link(old, old_folder, new, new_folder)
        self.calls.append(("make", self._path(new_folder, new)))

    def write(self, fd, data):
        self.calls.append(("write", self._path(fd)))
        return super().write(fd, data)

    def sync(self, fd):
        self.calls.append(("sync", self._path(fd)))
        super().sync(fd)

    def rename(self, old, new, folder):
        self.calls.append(("rename", self._path(folder, old), self._path(folder, new)))
        super().rename(old, new, folder)

    def remove(self, name, folder):
        self.calls.append(("remove", self._path(folder, name)))
        super().remove(name, folder)

    def remove_folder(self, name, folder):
        self.calls.append(("remove", self._path(folder, name)))
        super().remove_folder(name, folder)


def parent(path):
    return path.rpartition("/")[0]


def objections(calls):
    """Return what a power cut could destroy, given the calls of a save that returned."""
    dirty, loose, found = set(), set(), []
    committed = False
    for call, path, *rest in calls:
        if call in ("make", "write") and "/step-" in path.replace("/.tmp-step-", "/"):
            found.append(f"{path} was written where readers look")
        if call == "make":
            loose.add(path)
        elif call == "write":
            dirty.add(path)
        elif call == "sync":
            dirty.discard(path)
            loose = {name for name in loose if parent(name) != path}
        elif call == "rename":
            (target,) = rest
            if "/.trash-" in target:
                if not committed or any("/step-" in name for name in loose):
                    found.append(f"{path} retired before the new generation was durable")
            else:
                inside = [name for name in dirty | loose if name.startswith(path + "/")]
                found += [f"{name} was not synced before the commit" for name in inside]
                dirty = {name.replace(path, target) for name in dirty}
                loose = {name.replace(path, target) for name in loose - {path}}
                committed = True
            loose.add(target)
        elif call == "remove" and any("/.trash-" in name for name in loose):
            found.append(f"{path} removed before its retirement was durable")
    if not committed:
        found.append("nothing was committed")
    found += [f"{name} may be gone after the save returned" for name in loose if "step-" in name]
    found += [f"{name} was created and never synced" for name in loose if "/new" in name]
    return found


def record(folder, make_document, monkeypatch, steps=(1, 2, 3), *, incremental=False):
    """Return the calls of the last of a few saves with retention."""
    calls = []
    for step in steps:
        recorder = Recorder()
        monkeypatch.setattr(_fs, "ops", recorder)
        commit(folder, make_document(step), Options(keep=1, incremental=incremental))
        calls = recorder.calls
    return calls


pytestmark = pytest.mark.skipif(
    not Path("/proc/self/fd").exists(), reason="paths of descriptors are read from /proc"
)


def test_the_protocol_survives_every_power_cut_of_the_model(tmp_path, make_document, monkeypatch):
    assert objections(record(tmp_path / "run", make_document, monkeypatch)) == []
    assert objections(record(tmp_path / "new" / "new", make_document, monkeypatch, [1])) == []
    calls = record(tmp_path / "links", make_document, monkeypatch, incremental=True)
    assert objections(calls) == []


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("steps", [(1,), (1, 2, 3)])
def test_every_sync_is_needed(tmp_path, make_document, monkeypatch, steps, incremental, tally):
    folder = tmp_path / "new" / "new"
    calls = record(folder, make_document, monkeypatch, steps, incremental=incremental)
    syncs = [i for i, call in enumerate(calls) if call[0] == "sync"]
    assert len(syncs) >= 8
    for i in syncs:
        assert objections(calls[:i] + calls[i + 1 :]) != [], calls[i]
    tally("sync, rename or order taken out of the protocol", trials=len(syncs))


MUTANTS = {
    "no rename": (
        "    _fs.ops.rename(temporary, str(target), root)\n",
        "    pass\n",
    ),
    "rename before the manifest": (
        "            seal(folder, files, records",
        """\
            _fs.ops.rename(temporary, str(target), root)
            return seal(folder, files, records""",
    ),
    "retire before the commit is durable": (
        "            _write(root, target, files, document)\n",
        """\
            try_retire(root, target, present, policy, document.sections)
            _write(root, target, files, document)
""",
    ),
    "files in the final folder": (
        '    temporary = f"{TEMPORARY}{target}-{secrets.token_hex(8)}"\n',
        "    temporary = str(target)\n",
    ),
}


@pytest.mark.filterwarnings("ignore:step . is saved")
@pytest.mark.parametrize("name", MUTANTS)
def test_mutants_of_the_protocol_are_caught(tmp_path, make_document, monkeypatch, name, tally):
    old, new = MUTANTS[name]
    source = Path(_commit.__file__).read_text()
    assert source.count(old) == 1
    mutant = dict(vars(_commit))
    exec(compile(source.replace(old, new), "mutant", "exec"), mutant)
    calls = []
    for step in (1, 2, 3):
        recorder = Recorder()
        monkeypatch.setattr(_fs, "ops", recorder)
        mutant["commit"](tmp_path, make_document(step), Options(keep=1))
        calls = recorder.calls
    assert objections(calls) != []
    tally("sync, rename or order taken out of the protocol", trials=1)


def test_a_failed_sync_of_the_root_takes_the_commit_back(run_folder, make_document, monkeypatch):
    class NoRootSync(_fs.FileOps):
        renamed = False

        def rename(self, old, new, folder):
            super().rename(old, new, folder)
            self.renamed = True

        def sync(self, fd):
            if self.renamed:
                raise OSError(errno.EIO, "broken")
            super().sync(fd)

    monkeypatch.setattr(_fs, "ops", NoRootSync())
    with pytest.raises(Exception, match="step 3 was not saved"):
        commit(run_folder, make_document(3))
    assert sorted(path.name for path in run_folder.iterdir()) == [
        ".lock",
        "step-00000001",
        "step-00000002",
    ]
