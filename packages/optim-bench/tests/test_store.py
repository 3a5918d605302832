"""The store: strict JSON, atomic, resumable, plain about damage."""

import dataclasses
import json
import os

import pytest
from optim_bench.errors import BenchError
from optim_bench.executors import InlineExecutor
from optim_bench.protocol import Budget, Phase
from optim_bench.protocol.campaign import failed_runs, progress_of, run_campaign
from optim_bench.results.store import Store, read_json, write_bytes, write_json
from optim_bench.results.verdicts import build_results

BUDGET = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=2, extensions=1, defaults=False)


@pytest.fixture
def store(tmp_path) -> Store:
    made = Store(tmp_path / "out")
    made.open()
    return made


def test_a_record_survives(store, make_spec, make_record):
    record = make_record(make_spec(), None)
    store.write(record)
    assert store.records() == {record.spec.key(): record}


def test_a_file_is_strict_json_named_by_the_hash_of_its_spec(store, make_spec, make_record):
    record = make_record(make_spec(), None)
    store.write(record)
    path = store.runs / f"{record.spec.key()}.json"
    assert json.loads(path.read_text())["metrics"]["val_loss"] is None
    assert "NaN" not in path.read_text()


def test_a_plan_of_an_older_search_is_refused_by_its_rule(store, make_plan, make_spec, make_record):
    store.register(make_plan({"jax": ("stam", "adamw")}, BUDGET))
    store.write(make_record(make_spec(), 1.0))
    newer = make_plan({"jax": ("stam", "adamw")}, dataclasses.replace(BUDGET, halving=True))
    with pytest.raises(BenchError, match=r"gave every learning rate all tuning seeds.*--output"):
        store.register(newer)
    # The other way round, the search of a tier is what differs, not a version.
    (store.root / "plan.json").unlink()
    store.register(newer)
    with pytest.raises(BenchError, match="registers another comparison; choose another --output"):
        store.register(make_plan({"jax": ("stam", "adamw")}, BUDGET))


@pytest.mark.parametrize(
    ("damage", "why"),
    [
        (lambda text: text[: len(text) // 2], "is damaged"),
        (lambda text: "", "is damaged"),
        (lambda text: "[]", "it holds a list, not an object"),
        (lambda text: text.replace('"seed": 0', '"seed": 1'), "another hash than its name"),
        (lambda text: text.replace('"status": "ok"', '"status": "odd"'), "status is 'odd'"),
        (lambda text: text.replace('"val_loss": 1.0', '"val_loss": NaN'), "NaN is not strict JSON"),
        (lambda text: text.replace('"error": null,', ""), "RunRecord lacks error"),
        (lambda text: text.replace('"steps": 40', '"steps": "forty"'), "is damaged"),
        (lambda text: text.replace('"val_loss": 1.0', '"val_loss": 1' + "0" * 400), "is damaged"),
    ],
)
def test_damage_gets_one_line_that_says_what_to_do(store, make_spec, make_record, damage, why):
    record = make_record(make_spec(), 1.0)
    store.write(record)
    path = store.runs / f"{record.spec.key()}.json"
    path.write_text(damage(path.read_text()))
    with pytest.raises(BenchError) as caught:
        store.records()
    message = str(caught.value)
    assert why in message
    assert str(path) in message
    assert "delete it and repeat" in message
    assert "\n" not in message


def test_nothing_is_left_behind_when_writing_fails(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", lambda handle: (_ for _ in ()).throw(OSError(28, "No space")))
    with pytest.raises(BenchError, match=r"cannot write .*no space.*; free some space"):
        write_bytes(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_left_behind_when_writing_is_interrupted(tmp_path, monkeypatch):
    def interrupt(handle):
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_bytes(tmp_path / "file", b"x")
    assert list(tmp_path.iterdir()) == []


def test_a_lock_that_cannot_be_taken_is_an_error_of_one_line(store):
    (store.root / ".lock").mkdir()
    refused = pytest.raises(BenchError, match=r"cannot write to .*\.lock \(is a dir.*; choose ano")
    with refused, store.exclusive():
        pass


def test_an_old_file_stays_whole_until_the_new_one_is(tmp_path, monkeypatch):
    path = tmp_path / "file"
    write_bytes(path, b"old")

    def fail(handle):
        assert path.read_bytes() == b"old"
        raise OSError(5, "I/O error")

    monkeypatch.setattr(os, "fsync", fail)
    with pytest.raises(BenchError):
        write_bytes(path, b"new")
    assert path.read_bytes() == b"old"


def test_results_are_readable_by_others(tmp_path):
    write_bytes(tmp_path / "file", b"x")
    assert (tmp_path / "file").stat().st_mode & 0o777 == 0o644


def test_nan_cannot_be_written(tmp_path):
    with pytest.raises(ValueError, match="JSON compliant"):
        write_json(tmp_path / "file", {"loss": float("nan")})


def test_infinity_cannot_be_read(tmp_path):
    (tmp_path / "file").write_text('{"loss": Infinity}')
    with pytest.raises(ValueError, match="Infinity is not strict JSON"):
        read_json(tmp_path / "file")


def test_a_file_where_the_folder_should_be_is_refused(tmp_path):
    (tmp_path / "out").write_text("in the way")
    with pytest.raises(BenchError, match=r"cannot write to .*out .*; choose another --output"):
        Store(tmp_path / "out").open()


def test_a_folder_without_a_plan_says_how_to_start(tmp_path):
    with pytest.raises(BenchError, match=r"no comparison in .*; start one: optim-bench run"):
        Store(tmp_path).plan()


def test_what_cannot_be_read_is_not_called_damaged(store, make_spec, make_record):
    (store.runs / f"{make_spec().key()}.json").mkdir()
    with pytest.raises(BenchError, match=r"cannot read .*; make it readable"):
        store.records()


def test_a_damaged_plan_says_what_to_do(store):
    (store.root / "plan.json").write_text("{")
    with pytest.raises(BenchError, match=r"plan\.json is damaged .*; move it away and repeat"):
        store.plan()


def put(*path):
    """Return a change of a plan: the last of `path` goes where the others lead."""

    def change(plan):
        *route, last, value = path
        for step in route:
            plan = plan[step]
        plan[last] = value

    return change


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (put("tier", 3), "tier is 3; it has to be a text"),
        (put("budget", []), r"budget is \[\]; it has to be an object"),
        (put("budget", "fresh_seeds", "2"), "budget.fresh_seeds is '2'; it has to be a whole num"),
        (put("budget", "fresh_seeds", 2.5), "budget.fresh_seeds is 2.5; it has to be a whole num"),
        (put("budget", "defaults", 1), "budget.defaults is 1; it has to be true or false"),
        (put("budget", "extra", 1), "the plan lacks a field or has a strange one: .*extra"),
        (put("cells", {}), "cells is {}; it has to be a list"),
        (put("cells", 0, "adamw"), "cells.0 is 'adamw'; it has to be an object"),
        (put("cells", 0, "steps", True), "cells.0.steps is True; it has to be a whole number"),
        (put("cells", 1, "centre", "1e-3"), "cells.1.centre is '1e-3'; it has to be a number"),
        (put("cells", 0, "hyperparameters", "b1", [0.9]), r"hyperparameters.b1 is \[0.9\]; it has"),
        (put("cells", 0, "hyperparameters", {}), "learning_rate is None; it has to be a number"),
        (put("family", ["toy/jax/lion"]), "family names toy/jax/lion, which is no cell"),
        (put("titles", "jax/stam", None), "titles.jax/stam is None; it has to be a text"),
        (put("workloads", {}), "workloads lack toy"),
    ],
)
def test_a_plan_of_wrong_types_is_damaged(store, make_plan, change, why):
    store.register(make_plan({"jax": ("stam", "adamw")}, BUDGET))
    plan = json.loads((store.root / "plan.json").read_text())
    change(plan)
    (store.root / "plan.json").write_text(json.dumps(plan))
    with pytest.raises(BenchError, match=rf"plan\.json is damaged \(.*{why}.*\); move it away"):
        store.plan()


class StopError(Exception):
    """A kill between two runs."""


def test_a_stopped_comparison_ends_like_an_undisturbed_one(tmp_path, trainer, make_plan):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    whole, parts = Store(tmp_path / "whole"), Store(tmp_path / "parts")
    whole.open()
    parts.open()
    run_campaign(plan, whole, InlineExecutor(trainer), lambda progress: None)
    for stop_after in (1, 3, 4):

        def stop(progress, limit=stop_after):
            if progress.new == limit:
                raise StopError

        with pytest.raises(StopError):
            run_campaign(plan, parts, InlineExecutor(trainer), stop)
    seen = []
    run_campaign(plan, parts, InlineExecutor(trainer), seen.append)
    assert (len(whole.records()), seen[-1].new) == (10, 2)
    assert {k: r.metrics for k, r in parts.records().items()} == {
        k: r.metrics for k, r in whole.records().items()
    }
    assert build_results(plan, parts.records()) == build_results(plan, whole.records())


def test_a_finished_comparison_runs_nothing(tmp_path, trainer, make_plan):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    store = Store(tmp_path / "out")
    store.open()
    run_campaign(plan, store, InlineExecutor(trainer), lambda progress: None)
    seen = []
    run_campaign(plan, store, InlineExecutor(trainer), seen.append)
    assert len(seen) == 1
    assert seen[0].finished == seen[0].expected == len(store.records())
    assert {cell.phase for cell in seen[0].cells.values()} == {Phase.DONE}


def test_progress_agrees_with_the_store_at_every_step(tmp_path, trainer, make_plan):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    store = Store(tmp_path / "out")
    store.open()

    def check(progress):
        now = progress_of(plan, store.records())
        assert progress.finished == now.finished
        assert now.finished <= now.expected

    run_campaign(plan, store, InlineExecutor(trainer), check)


def test_cells_that_need_the_same_run_share_it(tmp_path, trainer, make_plan):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    twin = dataclasses.replace(plan.cells[1], label="twin")
    titles = {**plan.titles, "jax/twin": "TWIN"}
    families = {**plan.families, "jax/twin": "ours"}
    cells = (*plan.cells, twin)
    shared = dataclasses.replace(plan, cells=cells, titles=titles, families=families)
    store = Store(tmp_path / "out")
    store.open()
    seen = []
    run_campaign(shared, store, InlineExecutor(trainer), seen.append)
    assert seen[-1].new == len(store.records()) == 10
    assert {cell.phase for cell in seen[-1].cells.values()} == {Phase.DONE}
    assert seen[-1].finished == seen[-1].expected == 15


@pytest.mark.parametrize("resumed", [False, True])
def test_an_optimizer_whose_first_runs_fail_is_given_up(tmp_path, make_plan, make_record, resumed):
    plan = make_plan({"jax": ("stam", "adamw")}, BUDGET)
    store = Store(tmp_path / "out")
    store.open()

    class Broken:
        def __init__(self):
            self.queue = []
            self.ran = []

        def submit(self, spec):
            self.queue.append(spec)

        def wait(self):
            spec = self.queue.pop(0)
            self.ran.append(spec)
            broken = {"status": "failed", "error": "no luck"} if spec.optimizer == "stam" else {}
            return make_record(spec, None if broken else 1.0, **broken)

        def withdraw(self, keys):
            gone = [spec.key() for spec in self.queue if spec.key() in keys]
            self.queue = [spec for spec in self.queue if spec.key() not in gone]
            return gone

    executor = Broken()
    run_campaign(plan, store, executor, lambda progress: None)
    assert sum(spec.optimizer == "stam" for spec in executor.ran) == 2
    if resumed:
        executor = Broken()
        run_campaign(plan, store, executor, lambda progress: None)
        assert executor.ran == []
    (found,) = build_results(plan, store.records())["comparisons"]
    assert (found["verdict"], found["reason"]) == ("incomplete", "STAM: 2 tuning runs failed")
    assert failed_runs(plan, store.records())
