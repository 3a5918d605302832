"""A store that loses, delays, repeats and cuts off: nothing torn, nothing acknowledged and lost."""

import contextlib
import itertools
import random
import tempfile
import warnings
from pathlib import Path

import optim_checkpoint as oc
import pytest
from optim_checkpoint import _commits, _place, _remote, _store
from optim_checkpoint._options import Options
from optim_conformance.object_store import BUCKETS, CALL_FAULTS, PUT_FAULTS, Bucket, KilledError

_numbers = itertools.count()


@pytest.fixture
def quick(monkeypatch, memory_path):
    """Wait for nothing, and stage in memory."""
    monkeypatch.setattr(_store, "PAUSES", (0, 0, 0))
    monkeypatch.setattr(tempfile, "tempdir", str(memory_path))


def new_bucket(**options):
    name = f"b{next(_numbers)}"
    BUCKETS[name] = Bucket(**options)
    return BUCKETS[name], f"faulty://{name}/run"


def forget():
    """Know as little as a new process."""
    _commits._seen.clear()
    _remote._sound.clear()
    _remote._suspect.clear()
    _remote._saved.clear()
    _store._conditional.clear()


class Run:
    """A run of saves into a faulty store, which remembers what was acknowledged."""

    def __init__(self, make_document, load, check, *, incremental=False, **options):
        self.incremental = incremental
        self.shared = 0
        self.bucket, self.url = new_bucket(**options)
        self.make, self.load, self.check = make_document, load, check
        self.acknowledged: list[int] = []
        self.seen: set[int] = set()

    def save(self, step, **options):
        try:
            made = self.make(step, 30)
            _place.commit(self.url, made, Options(incremental=self.incremental, **options))
        except (oc.CheckpointError, KilledError):
            return False
        self.acknowledged.append(step)
        with self.bucket.sound():
            assert step in self.steps()
        return True

    def steps(self):
        found = {name.step for name in _place.present(self.url)}
        self.seen |= found
        return found

    def look(self):
        """See that every generation is whole, and that none of the newest is missing.

        What was acknowledged may be gone for two newer ones, or because an older step was saved
        after it. Of those some may not have been acknowledged: a put that failed may have arrived.
        """
        with self.bucket.sound():
            steps = self.steps()
            names = _place.present(self.url)
            for step in self.acknowledged:
                left = step % 2 and step - 1 in self.seen
                assert step in steps or left or sum(other > step for other in steps) >= 2
            for name in names:
                oc.verify(self.url, name.step)
            head = _commits.newest(_store.open_store(self.url))
            self.shared += sum(len(stored.shared) for stored in head.generations.values())
            if names:
                chosen = self.load(self.url)
                self.check(chosen.value, names[-1].step, 30)
                assert chosen.skipped == ()


def campaign(run, faults):
    """Save until so many faults were injected, beside other writers and kills."""
    rng, bucket = random.Random(run.bucket.seed), run.bucket
    step = 0
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", oc.CheckpointWarning)
        while bucket.injected.total() - bucket.injected["old listing"] < faults:
            step += 2
            call = bucket.calls + rng.randint(1, 25)
            kind = rng.choice(("alone", "alone", "killed", "second writer", "pins"))
            if kind == "killed":
                bucket.kill_at = rng.choice((call, -call))
            elif kind != "alone":
                bucket.hook = beside(run, kind, call, step + 1)
            run.save(step, keep=2)
            bucket.hook = bucket.kill_at = None
            if rng.random() < 0.5:
                forget()
            if rng.random() < 0.1:
                bucket.settle()
            if step % 6 == 0:
                run.look()
        bucket.settle()
        run.look()
    # Most saves get through: what is never acknowledged is never lost.
    assert len(run.acknowledged) > step / 8


def beside(run, kind, at, step):
    """Return what is done before call number `at` of another writer."""

    def hook(call):
        if call != at:
            return
        run.bucket.hook = None
        if kind == "second writer":
            run.save(step, keep=2)
        elif run.acknowledged:
            with contextlib.suppress(oc.CheckpointError):
                oc.pin(run.url, run.acknowledged[-1], "meanwhile")
                oc.unpin(run.url, run.acknowledged[-1])

    return hook


def new_run(make_document, load, check, seed, *, incremental=False):
    forget()
    faults = {"chance": 0.45, "refusing": 0.06, "lag": 20}
    return Run(make_document, load, check, incremental=incremental, seed=seed, **faults)


@pytest.mark.parametrize("incremental", [False, True])
@pytest.mark.parametrize("seed", range(4))
def test_nothing_is_torn_or_lost(quick, make_document, load, check, tally, seed, incremental):
    run = new_run(make_document, load, check, seed, incremental=incremental)
    campaign(run, 500)
    assert bool(run.shared) == incremental
    assert {*PUT_FAULTS, *CALL_FAULTS, "killed", "old listing"} <= run.bucket.injected.keys()
    tally("object store", faults=500, saves=len(run.acknowledged))


@pytest.mark.nightly
def test_nothing_is_torn_or_lost_in_a_long_campaign(quick, make_document, load, check, tally):
    for seed in range(100, 160):
        campaign(new_run(make_document, load, check, seed, incremental=seed >= 140), 500)
        tally("object store", faults=500)


# What stands in the code, and what stands there without it.
MUTANTS = {
    "a commit is read back": (
        _store,
        "found = self.read(key)\n",
        "found = data if failed is None else self.read(key)\n",
    ),
    "what was put has its size": (
        _store,
        "if self.size(key) == size:",
        "if failed is None or self.size(key) == size:",
    ),
    "a save follows the commit it began at": (
        _remote,
        "if now.epoch != begun.epoch:",
        "if False:",
    ),
    "a save knows its own commit": (
        _remote,
        "if now.generations.get(target) == stored:",
        "if False:",
    ),
}
# The same of incremental saves.
SHARING = {
    "what another step names stays when a step goes": (
        _remote,
        "for key in stored.keys if key not in kept",
        "for key in stored.own if stored.folder not in folders",
    ),
    "what another step names stays in a left folder": (
        _remote,
        "for key in store.keys(folder) if key not in kept",
        "for key in store.keys(folder)",
    ),
    "a save that was overtaken takes away its own objects alone": (
        _remote,
        "_try_remove(store, stored.own)\n        raise CheckpointWriteError",
        "_try_remove(store, stored.keys)\n        raise CheckpointWriteError",
    ),
}
PLACES = {_store: [(_store, "Store")], _remote: [(_remote, "commit_to_store")]}


@pytest.mark.parametrize("name", [*MUTANTS, *SHARING])
def test_without_a_rule_something_is_torn_or_lost(
    quick, monkeypatch, make_document, load, check, name
):
    module, old, new = (MUTANTS | SHARING)[name]
    source = Path(module.__file__).read_text()
    assert source.count(old) == 1
    namespace = dict(vars(module))
    exec(compile(source.replace(old, new), "mutant", "exec"), namespace)
    for place, attribute in PLACES[module]:
        monkeypatch.setattr(place, attribute, namespace[attribute])
    monkeypatch.setattr(_remote, "_sound", namespace.get("_sound", _remote._sound))

    def campaigns():
        for seed in range(20):
            run = new_run(make_document, load, check, seed, incremental=name in SHARING)
            campaign(run, 500)

    with pytest.raises((AssertionError, oc.CheckpointError)):
        campaigns()


def test_a_commit_that_is_late_finds_what_it_lists(quick, make_document, load, check):
    run = new_run(make_document, load, check, 0)
    run.bucket.chance = run.bucket.refusing = run.bucket.lag = 0
    run.bucket.delay = 10**9
    assert run.save(2)
    run.bucket.plan = lambda key: "late" if "commits/" in key else ""
    with pytest.raises(oc.CheckpointWriteError, match=r"could not be confirmed \(injected: late\)"):
        _place.commit(run.url, make_document(4, 30))
    assert run.steps() == {2}
    run.bucket.settle()
    assert run.steps() == {2, 4}
    run.look()


def test_a_put_that_takes_the_place_of_an_older_attempt_wins(quick, make_document, load, check):
    run = new_run(make_document, load, check, 0)
    run.bucket.chance = run.bucket.refusing = run.bucket.lag = 0
    run.bucket.delay = 10**9
    run.bucket.plan = lambda key: "late" if "commits/" in key else ""
    assert not run.save(2)
    run.bucket.plan = None
    forget()
    assert run.save(4)
    run.bucket.settle()
    assert run.steps() == {4}
    assert not [key for key in run.bucket.objects if "step-00000002" in key]
    run.look()


def test_a_sweep_spares_what_another_writer_commits_meanwhile(
    quick, monkeypatch, make_document, load, check
):
    run = new_run(make_document, load, check, 0)
    run.bucket.chance = run.bucket.refusing = run.bucket.lag = 0
    names = _store.Store.names

    def names_after_a_save(store):
        monkeypatch.setattr(_store.Store, "names", names)
        assert run.save(4)
        return names(store)

    monkeypatch.setattr(_store.Store, "names", names_after_a_save)
    assert run.save(2)
    assert run.steps() == {2, 4}
    run.look()
