"""Runs in an object store: everything that works in a folder, and one sentence where it cannot."""

import subprocess
import sys
import tempfile
from pathlib import Path

import fsspec
import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _place, _stage, _store
from optim_checkpoint._options import Options
from optim_conformance.object_store import BUCKETS, Bucket


@pytest.fixture
def bucket(monkeypatch, tmp_path):
    """An empty store; its URL is `faulty://unit/run`."""
    monkeypatch.setattr(_store, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    _store._conditional.clear()
    BUCKETS["unit"] = Bucket()
    return BUCKETS["unit"]


URL = "faulty://unit/run"


@pytest.fixture(params=["faulty", "memory", "file"])
def url(request, bucket, tmp_path):
    yield {
        "faulty": URL,
        "memory": "memory://unit/run",
        "file": f"file://{tmp_path}/a/run",
    }[request.param]
    fs = fsspec.filesystem("memory")
    if fs.exists("/unit"):
        fs.rm("/unit", recursive=True)


def test_a_run_is_saved_restored_verified_and_retired(url, make_document, load, check, bucket):
    for step in range(1, 7):
        place = _place.commit(url, make_document(step), Options(keep=2, keep_every=3))
    assert str(place).endswith("run/step-00000006")
    assert oc.steps(url) == [3, 5, 6]
    assert oc.latest_step(url) == 6
    for step in (3, 5, 6):
        check(load(url, step).value, step)
    report = oc.verify(url, 5)
    assert (report.step, report.tensors, report.path) == (5, 7, _place.inside(url, "step-00000005"))
    seen = oc.inspect(url)
    assert (seen.step, len(seen.tensors), seen.nbytes) == (6, 7, oc.verify(url).nbytes)
    assert [kept.reasons for kept in oc.retained(url)] == [
        ("a multiple of 3",),
        ("one of the 2 newest",),
        ("one of the 2 newest", "a multiple of 3"),
    ]


def test_a_step_is_written_again_only_on_demand(url, make_document, load, check):
    _place.commit(url, make_document(1))
    with pytest.raises(oc.CheckpointExistsError, match="already holds step 1"):
        _place.commit(url, make_document(1))
    place = _place.commit(url, make_document(1), Options(replace=True))
    assert str(place).endswith("step-00000001.g1")
    check(load(url).value, 1)


def test_a_pinned_step_stays(url, make_document):
    _place.commit(url, make_document(1))
    oc.pin(url, 1, "the \x1b one")
    for step in (2, 3):
        _place.commit(url, make_document(step), Options(keep=1))
    assert oc.steps(url) == [1, 3]
    assert oc.retained(url)[0].reasons == (r"pinned: the \x1b one",)
    with pytest.raises(oc.CheckpointNotFoundError, match="no step 9 to pin"):
        oc.pin(url, 9, "why")
    oc.unpin(url, 1)
    with pytest.raises(oc.CheckpointNotFoundError, match="step 1 is not pinned"):
        oc.unpin(url, 1)
    _place.commit(url, make_document(4), Options(keep=1))
    assert oc.steps(url) == [4]


def test_a_metric_decides_in_a_store_too(bucket, make_document):
    for step, loss in ((1, 0.5), (2, 0.1), (3, 0.9), (4, 0.8)):
        document = make_document(step)
        document.sections["metrics"] = {"loss": {"float": loss.hex()}}
        _place.commit(URL, document, Options(keep=1, keep_best=("loss", "min", 1)))
    assert oc.steps(URL) == [2, 4]
    assert oc.retained(URL)[0].metrics == {"loss": 0.1}


@pytest.mark.parametrize(
    "damage", ["model/model.safetensors", "manifest.json"], ids=["data", "manifest"]
)
@pytest.mark.parametrize("how", ["flip", "cut", "gone"])
def test_damage_is_found_passed_over_and_not_counted(
    bucket, make_document, load, check, damage, how
):
    for step in (1, 2):
        _place.commit(URL, make_document(step))
    (key,) = [k for k in bucket.objects if "step-00000002" in k and k.endswith(damage)]
    raw = bucket.objects.pop(key)
    if how != "gone":
        bucket.objects[key] = raw[:-1] + (bytes([raw[-1] ^ 1]) if how == "flip" else b"")
    with pytest.raises(oc.CorruptCheckpointError, match="step-00000002"):
        oc.verify(URL)
    with pytest.warns(oc.CheckpointWarning, match="skipped a damaged checkpoint"):
        chosen = load(URL)
    check(chosen.value, 1)
    # The damaged one takes no place, and its step can be saved again without a word.
    _place.commit(URL, make_document(2), Options(keep=2))
    assert oc.steps(URL) == [1, 2]
    check(load(URL).value, 2)


def test_looking_copies_no_data(bucket, make_document, monkeypatch):
    _place.commit(URL, make_document(1, 3_000_000))
    read = []
    get = Bucket.get

    def counted(self, key):
        read.append(key)
        return get(self, key)

    monkeypatch.setattr(_store.Store, "download", _only_small(_store.Store.download))
    monkeypatch.setattr(Bucket, "get", counted)
    assert oc.inspect(URL).nbytes > 10_000_000
    assert oc.latest_step(URL) == 1
    assert read


def _only_small(download):
    def checked(self, key, target):
        assert key.endswith(".json")
        return download(self, key, target)

    return checked


def test_nothing_stays_in_the_local_folder(bucket, make_document, load, tmp_path):
    _place.commit(URL, make_document(1))
    load(URL)
    bucket.plan = lambda key: "lost" if "model" in key else ""
    with pytest.raises(oc.CheckpointWriteError, match="step 2 was not saved to faulty://unit/run"):
        _place.commit(URL, make_document(2))
    bucket.plan = None
    assert oc.steps(URL) == [1]
    assert list(tmp_path.iterdir()) == []
    # What a killed process left goes with the next use, what another one uses stays.
    left = tmp_path / f"{_stage.PREFIX}left"
    (left / "step-00000001").mkdir(parents=True)
    with _stage.staging() as other:
        load(URL)
        assert list(tmp_path.iterdir()) == [other]


def test_the_local_folder_is_private_and_its_room_is_checked(bucket, make_document, monkeypatch):
    with _stage.staging() as folder:
        assert folder.stat().st_mode & 0o777 == 0o700
    _place.commit(URL, make_document(1))

    class Full:
        f_bavail, f_frsize = 1, 512

    monkeypatch.setattr("os.statvfs", lambda path: Full)
    with pytest.raises(
        oc.CheckpointReadError, match=r"\d+ bytes are needed, 512 are free in .*TMPDIR"
    ):
        oc.verify(URL)
    monkeypatch.setattr("os.fstatvfs", lambda path: Full)
    with pytest.raises(
        oc.CheckpointWriteError, match="through a local folder, which TMPDIR chooses"
    ):
        _place.commit(URL, make_document(2))


@pytest.mark.parametrize("conditional", [False, None], ids=["ignores", "refuses"])
def test_a_store_without_conditional_puts_is_only_read(
    bucket, make_document, load, check, conditional
):
    _place.commit(URL, make_document(1))
    before = dict(bucket.objects)
    bucket.conditional = conditional
    _store._conditional.clear()
    with pytest.raises(
        oc.CheckpointWriteError, match=r"takes no conditional puts .*nothing was saved"
    ):
        _place.commit(URL, make_document(2))
    assert bucket.objects == before
    check(load(URL).value, 1)


def test_a_store_whose_library_only_looks_first_is_refused(bucket, make_document, monkeypatch):
    monkeypatch.setattr(_store, "_has_own_puts", lambda fs: False)
    with pytest.raises(oc.CheckpointWriteError, match="takes no conditional puts"):
        _place.commit(URL, make_document(1))
    assert not _store_has_own_puts("sftp-like")
    assert bucket.objects == {}


def _store_has_own_puts(kind):
    from fsspec.spec import AbstractFileSystem

    return type(kind, (AbstractFileSystem,), {}).pipe_file is not AbstractFileSystem.pipe_file


URLS = {
    "nope://bucket/run": "nope://bucket/run cannot be opened: ValueError: Protocol not known",
    "simplecache::memory://run": "is a chain of file systems",
    "s3:/bucket/run": "is a URL that lost a slash",
    "memory://": "^memory:// names no place in its store: .* as in memory://run$",
    "s3:///": "^s3:/// names no place in its store",
}


@pytest.mark.parametrize("place", URLS)
def test_a_url_that_cannot_be_used_is_one_sentence(place, make_document, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    for call in (
        lambda: _place.commit(place, make_document(1)),
        lambda: oc.steps(place),
        lambda: oc.verify(place),
        lambda: oc.pin(place, 1, "why"),
    ):
        with pytest.raises(oc.CheckpointError, match=URLS[place]) as caught:
            call()
        assert "\n" not in str(caught.value)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("module", ["fsspec", "fsspec.core"])
def test_without_the_extra_a_url_says_what_to_install(monkeypatch, module):
    monkeypatch.setitem(sys.modules, "fsspec.core", None)
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(oc.CheckpointError, match=r"pip install 'optim-checkpoint\[fsspec\]'"):
        oc.steps("memory://run")


def test_what_cannot_be_read_is_no_damage(bucket, make_document, load):
    for step in (1, 2):
        _place.commit(URL, make_document(step))
    bucket.refusing = 1.0
    for call in (lambda: oc.steps(URL), lambda: oc.verify(URL), lambda: load(URL)):
        with pytest.raises(oc.CheckpointReadError, match="injected"):
            call()
    with pytest.raises(oc.CheckpointError, match="injected"):
        _place.commit(URL, make_document(3))
    bucket.refusing = 0.0
    assert load(URL).step == 2


def test_a_damaged_commit_is_passed_over_with_a_word(bucket, make_document):
    for step in (1, 2):
        _place.commit(URL, make_document(step))
    newest = max(key for key in bucket.objects if "commits/" in key)
    bucket.objects[newest] = bucket.objects[newest][:-2]
    with pytest.warns(oc.CheckpointWarning, match="passed over a commit"):
        assert oc.steps(URL) == [1]
    with pytest.warns(oc.CheckpointWarning, match="passed over a commit"):
        _place.commit(URL, make_document(3))
    assert oc.steps(URL) == [1, 3]


def test_a_newer_format_is_not_passed_over(bucket, make_document):
    from optim_checkpoint import _commits

    _place.commit(URL, make_document(1))
    key = max(key for key in bucket.objects if "commits/" in key)
    body = _commits.loads(bucket.objects[key], file="", limits=_commits.LIMITS)
    del body["self_digest"]
    body["version"] = 3
    body["self_digest"] = _commits.digest(_commits.dumps(body))
    bucket.objects[key] = _commits.dumps(body)
    with pytest.raises(
        oc.CheckpointError, match="version 3, this reader has 2: update the package"
    ):
        oc.steps(URL)


@pytest.mark.parametrize(
    "edit",
    [
        lambda g: g.update(folder="../../etc"),
        lambda g: g.update(folder="step-00000009-0-0123456789abcdef"),
        lambda g: g["files"].update({"../x": 1}),
        lambda g: g["files"].update({"model/../../x": 1}),
        lambda g: g["files"].update({"manifest.json": -1}),
        lambda g: g.update(notes=None),
        lambda g: g.update(shared=None),
        lambda g: g.update(shared={"manifest.json": "../../etc/passwd"}),
        lambda g: g.update(shared={"manifest.json": 1}),
        lambda g: g.update(shared={"other.json": f"step-00000001-0-{'0' * 16}/manifest.json"}),
    ],
)
def test_a_hostile_commit_names_nothing_elsewhere(bucket, make_document, edit):
    from optim_checkpoint import _commits

    _place.commit(URL, make_document(1))
    key = max(key for key in bucket.objects if "commits/" in key)
    body = _commits.loads(bucket.objects[key], file="", limits=_commits.LIMITS)
    del body["self_digest"]
    edit(body["generations"]["step-00000001"])
    body["self_digest"] = _commits.digest(_commits.dumps(body))
    bucket.objects[key] = _commits.dumps(body)
    with pytest.warns(oc.CheckpointWarning, match="malformed"):
        assert oc.steps(URL) == []


def test_many_commits_are_found_with_few_reads(bucket, make_document):
    from optim_checkpoint import _commits

    _place.commit(URL, make_document(1))
    for number in range(200):
        oc.pin(URL, 1, str(number))
    _commits._seen.clear()
    before = bucket.calls
    assert oc.retained(URL)[0].reasons[0] == "pinned: 199"
    assert bucket.calls - before < 25
    full = [k for k, raw in bucket.objects.items() if "commits/" in k and len(raw) > 2]
    assert len(full) == 2


def test_the_command_line_takes_a_url(bucket, make_document, monkeypatch, capsys):
    from optim_checkpoint import cli

    for step in (1, 2):
        _place.commit(URL, make_document(step))
    for arguments, expected in (
        (["ls", URL], "headers sound"),
        (["verify", URL, "--all"], "step 2: sound, 7 tensors in 2 files"),
        (["pin", URL, "1", "good"], "pinned step 1"),
        (["inspect", URL, "--step", "1"], "a.weight"),
        (["export", URL, str(Path(tempfile.gettempdir()) / "out.safetensors")], "wrote 6 tensors"),
    ):
        monkeypatch.setattr(sys, "argv", ["optim-checkpoint", *arguments])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        assert ended.value.code == 0
        assert expected in capsys.readouterr().out
    monkeypatch.setattr(sys, "argv", ["optim-checkpoint", "ls", "faulty://unit/none"])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code == 1
    assert capsys.readouterr().err == "optim-checkpoint: faulty://unit/none holds no checkpoint\n"


def test_several_processes_do_not_save_to_a_store(bucket):
    from optim_checkpoint._peers import alone
    from optim_checkpoint._together import save_together

    with pytest.raises(oc.CheckpointWriteError, match="needs a folder that all processes see"):
        save_together(URL, lambda: None, alone(), Options(keep=1, replace=False, max_shard_size=1))
    assert bucket.objects == {}


def test_a_password_is_not_shown(bucket):
    with pytest.raises(oc.CheckpointError) as caught:
        oc.steps("nope://user:secret@host/run")
    assert "secret" not in str(caught.value)


def test_bytes_are_put_once(bucket, make_document):
    _place.commit(URL, make_document(1, 30_000))
    nbytes = np.prod((10_000, 3)) * 4 * 2 + 30_000 * 8
    assert nbytes < bucket.written < nbytes + 20_000


ENDING = """
import atexit, concurrent.futures, sys, time
sys.path.insert(0, sys.argv[1])
import optim_checkpoint as oc
from conftest import document_of
from optim_checkpoint._background import BackgroundCheckpointer
from optim_conformance.object_store import BUCKETS, Bucket

def library(call):
    if call == 1:
        time.sleep(0.5)  # until the main thread has ended
    concurrent.futures.ThreadPoolExecutor(1).submit(int).result()

bucket = BUCKETS["ending"] = Bucket(hook=library)
atexit.register(lambda: print(sum("manifest" in key for key in bucket.objects)))
BackgroundCheckpointer("faulty://ending/run")._submit(document_of(1))
"""


def test_a_save_in_the_background_outlasts_the_script():
    """Python ends executors, which libraries of stores use, before it waits for threads."""
    command = [sys.executable, "-c", ENDING, str(Path(__file__).parent)]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=300)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "1\n", "")
