"""Which generations stay beside the newest, and what is said about why."""

import json
import subprocess
import sys
import threading

import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import _pins, _proof, _retention
from optim_checkpoint._commit import commit
from optim_checkpoint._folder import GenerationName, locked, open_root
from optim_checkpoint._options import Options
from optim_checkpoint._policy import METRICS, Notes, Policy, decide, encode_metrics


def damage(folder, step):
    (folder / f"step-{step:08d}" / "manifest.json").write_bytes(b"")


@pytest.fixture
def save(memory_path, make_document):
    def saved(step, loss=None, **options):
        document = make_document(step, 3)
        if loss is not None:
            document.sections[METRICS] = encode_metrics({"loss": loss})
        commit(memory_path, document, Options(**options))
        # As a process that has just begun: nothing is known but what is in the folder.
        _proof._found.clear()
        return oc.steps(memory_path)

    return saved


def test_every_nth_step_stays(save):
    for step in range(1, 9):
        found = save(step, keep=2, keep_every=3)
    assert found == [3, 6, 7, 8]


@pytest.mark.parametrize(
    ("order", "losses", "expected"),
    [
        ("min", [5, 1, 4, 2, 3, 9], [2, 4, 6]),
        ("max", [5, 1, 4, 2, 3, 9], [1, 6]),
        ("min", [1, 1, 1, float("nan"), None, float("-inf")], [2, 3, 6]),
    ],
    ids=["min", "max", "what is no number is not best"],
)
def test_the_best_steps_stay(save, order, losses, expected):
    for step, loss in enumerate(losses, 1):
        found = save(step, loss, keep=1, keep_best=("loss", order, 2))
    assert found == expected


def test_damaged_steps_are_neither_best_nor_every_nth(save, memory_path):
    for step, loss in ((1, 0.1), (2, 0.2), (3, 0.3), (4, 0.4), (5, 0.5)):
        save(step, loss)
    damage(memory_path, 1)
    damage(memory_path, 4)
    assert save(6, 0.6, keep=1, keep_every=4, keep_best=("loss", "min", 1)) == [2, 6]


def test_abandoned_steps_never_count_and_go_when_training_has_passed_them(save, memory_path):
    for step in (10, 20, 30, 40):
        save(step, 1 / step, keep=4)
    options = {"keep": 2, "keep_every": 10, "keep_best": ("loss", "min", 1)}
    assert save(25, 9.0, **options) == [10, 20, 25, 30, 40]
    reasons = {each.step: each.reasons for each in oc.retained(memory_path)}
    assert reasons[40] == ("abandoned: newer than step 25, which was saved after it",)
    assert reasons[20] == ("one of the 2 newest", "a multiple of 10", "min 1 of loss: 0.05")
    assert save(35, 9.0, **options) == [10, 20, 25, 35, 40]
    assert save(45, 9.0, **options) == [10, 20, 35, 45]


def test_pinned_steps_stay_whatever_else_is_kept(save, memory_path):
    for step in (1, 2, 3):
        save(step)
    oc.pin(memory_path, 1, "the one in the paper")
    oc.pin(memory_path, 2, "first")
    oc.pin(memory_path, 2, "second")
    damage(memory_path, 2)
    assert save(4, keep=1) == [1, 2, 4]
    reasons = {each.step: each.reasons for each in oc.retained(memory_path)}
    assert reasons == {
        1: ("pinned: the one in the paper",),
        2: ("pinned: second",),
        4: ("one of the 1 newest",),
    }
    oc.unpin(memory_path, 1)
    assert save(5, keep=1) == [2, 5]


def test_a_pin_that_a_crash_cut_off_pins_all_the_same(save, memory_path):
    for step in (1, 2):
        save(step)
    (memory_path / ".pin-step-00000001").touch()
    (memory_path / ".pin-step-00000002.0123456789abcdef").touch()
    assert save(3, keep=1) == [1, 3]
    assert oc.retained(memory_path)[0].reasons == ("pinned: no reason",)


def test_a_pin_waits_for_the_save_that_goes_on(save, memory_path, monkeypatch):
    save(1)
    root = open_root(memory_path)
    with locked(root, memory_path):
        monkeypatch.setattr(_pins, "WAIT", 0.0)
        with pytest.raises(oc.CheckpointWriteError, match="another writer holds"):
            oc.pin(memory_path, 1, "x")
        monkeypatch.setattr(_pins, "WAIT", 60.0)
        thread = threading.Thread(target=oc.pin, args=(memory_path, 1, "x"))
        thread.start()
        thread.join(0.2)
        assert thread.is_alive()
    thread.join()
    assert oc.retained(memory_path)[0].reasons[0] == "pinned: x"


@pytest.mark.parametrize(
    ("work", "error", "message"),
    [
        (lambda p: oc.pin(p, 9, "x"), oc.CheckpointNotFoundError, "has no step 9 to pin"),
        (lambda p: oc.unpin(p, 1), oc.CheckpointNotFoundError, "step 1 is not pinned"),
        (lambda p: oc.pin(p, 1, " "), ValueError, "^reason is ' '; it must be a text of 1 to 1000"),
        (lambda p: oc.pin(p / "no", 1, "x"), oc.CheckpointNotFoundError, "there is no such folder"),
    ],
)
def test_pins_of_what_is_not_there_are_errors(save, memory_path, work, error, message):
    save(1)
    with pytest.raises(error, match=message):
        work(memory_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"keep": 0}, "^keep is 0; it must be None or an integer of at least 1"),
        ({"keep": 1, "keep_every": True}, "^keep_every is True; it must be None or an integer"),
        ({"keep_every": 2}, "^keep_every and keep_best say what stays beside the newest"),
        (
            {"keep": 1, "keep_best": ("loss", "least", 1)},
            r"^keep_best is \('loss', 'least', 1\); it",
        ),
        ({"keep": 1, "keep_best": "loss"}, "^keep_best is 'loss'; it must be the name of a metric"),
    ],
)
def test_a_policy_that_says_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        Policy.of(**{"keep": None, **options})


@pytest.mark.parametrize("metrics", [{"loss": "0.1"}, {"loss": None}, {1: 0.1}, {"a": 10**400}])
def test_a_metric_that_is_no_number_is_refused(metrics):
    with pytest.raises(TypeError, match="it must be a name and a number"):
        encode_metrics(metrics)


def test_metrics_without_names_are_refused():
    with pytest.raises(TypeError, match=r"^metrics is \[0.1\]; it must be a mapping of names to"):
        encode_metrics([0.1])


def test_metrics_that_lack_the_one_of_keep_best_are_a_warning(save):
    with pytest.warns(
        oc.CheckpointWarning, match="^keep_best goes by 'val_loss', and metrics has 'loss': what"
    ):
        save(1, 0.5, keep=1, keep_best=("val_loss", "min", 1))
    save(2, keep=1, keep_best=("val_loss", "min", 1))  # a save between two evaluations


def test_metrics_keep_every_bit():
    metrics = {"a": np.float32(0.1), "b": 3, "c": float("inf")}
    found = Notes.of({METRICS: json.loads(json.dumps(encode_metrics(metrics)))}).metrics
    assert found == {"a": float(np.float32(0.1)), "b": 3.0, "c": float("inf")}


def test_notes_that_are_not_as_they_are_written_say_nothing():
    sections = {
        METRICS: {"a": {"float": "zz"}, "b": {"str": "1"}, "c": {"float": "0x1.8p+0"}, "d": 1},
        "retention": {"keep": "many", "abandoned": ["step-00000001", "../x", 3]},
    }
    assert Notes.of(sections) == Notes({"c": 1.5}, Policy(), (GenerationName(1),))


def test_where_the_pins_cannot_be_read_nothing_goes(save, memory_path, monkeypatch):
    for step in (1, 2):
        save(step)

    def refuse(_):
        raise OSError(5, "no")

    monkeypatch.setattr(_retention, "pins", refuse)
    with pytest.warns(oc.CheckpointWarning, match=r"step 3 is saved, .*step-00000001 \(EIO: no\)"):
        assert save(3, keep=1) == [1, 2, 3]


def test_of_a_step_that_was_written_again_the_newest_sound_one_is_judged():
    names = [GenerationName(1), GenerationName(1, 1), GenerationName(2)]
    values = {names[0]: 0.1, names[1]: 0.3, names[2]: 0.2}
    stays = decide(
        Policy(1, None, ("loss", "min", 1)),
        names,
        GenerationName(3),
        sound=lambda _: True,
        notes=lambda name: Notes({"loss": values[name]} if name in values else {}),
        pins={},
    )
    assert stays.keys() == {names[2], GenerationName(3)}


def test_the_command_line_says_why_each_step_stays(save, memory_path):
    for step in (1, 2, 3):
        save(step)

    def run(*arguments):
        command = [sys.executable, "-m", "optim_checkpoint.cli", *map(str, arguments)]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    assert "the last save was told to keep all" in run("ls", memory_path)
    assert run("pin", memory_path, 2, "why not") == "pinned step 2\n"
    save(4, keep=1)
    assert "pinned: why not" in (lines := run("ls", memory_path).splitlines())[1]
    assert "one of the 1 newest" in lines[2]
    assert run("unpin", memory_path, 2) == "unpinned step 2\n"
    assert "goes with the next save" in run("ls", memory_path)
