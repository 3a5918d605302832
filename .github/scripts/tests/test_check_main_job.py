"""A complete result passes; each thing that can be missing from it is named."""

import json

import check_main_job
import pytest


def cell(name, **run):
    framework, optimizer = name.split("/")
    seed = {"seed": 100, "train_loss": 0.1, "val_loss": 0.1, "test_loss": 0.1, **run}
    fresh = {"planned": 1, "ok": 1, "runs": [seed]}
    return {"name": f"w/{name}", "framework": framework, "optimizer": optimizer, "fresh": fresh}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / "forest.svg").write_text("<svg/>")
    (tmp_path / "report.html").write_text("<!doctype html>")
    write(tmp_path, [cell(name) for name in check_main_job.EXPECTED])
    return tmp_path


def write(folder, cells):
    (folder / "results.json").write_text(json.dumps({"cells": cells}))


def problems(folder):
    return list(check_main_job.problems(folder))


def test_a_complete_result_passes(folder):
    assert problems(folder) == []


@pytest.mark.parametrize("name", ["results.json", "report.html", "figures/forest.svg"])
def test_a_missing_file_fails(folder, name):
    (folder / name).unlink()
    (found,) = problems(folder)
    assert "missing" in found or "no figure" in found


def test_a_large_page_fails(folder):
    (folder / "report.html").write_text("x" * (check_main_job.LARGEST_PAGE + 1))
    assert "more than" in problems(folder)[0]


def test_a_missing_optimizer_is_named(folder):
    write(folder, [cell(name) for name in check_main_job.EXPECTED - {"jax/stam"}])
    assert problems(folder) == ["jax/stam was not compared"]


@pytest.mark.parametrize("loss", [None, 1e999])
def test_a_loss_that_is_not_finite_fails(folder, loss):
    others = [cell(name) for name in check_main_job.EXPECTED - {"jax/stam"}]
    write(folder, [*others, cell("jax/stam", test_loss=loss)])
    if loss is None:
        assert "seed 100: losses are" in problems(folder)[0]
    else:
        with pytest.raises(ValueError, match="Infinity, which is not JSON"):
            problems(folder)


def test_a_fresh_run_that_failed_is_counted(folder):
    broken = cell("jax/stam")
    broken["fresh"] |= {"ok": 0, "runs": []}
    write(folder, [*(cell(name) for name in check_main_job.EXPECTED - {"jax/stam"}), broken])
    assert problems(folder) == ["w/jax/stam: 0 of 1 fresh runs are ok"]
