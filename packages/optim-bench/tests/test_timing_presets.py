"""The table of step times: its arithmetic on hand-made rounds, its cases on tiny tensors."""

import dataclasses
import itertools
import json
import math

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.errors import BenchError
from optim_bench.report.timing import PRESETS, Contender, Group, preset_markdown, time_preset
from optim_bench.report.timing import _update as update
from optim_bench.report.timing import _update_process as process
from optim_bench.report.timing._presets import TRANSFORMER, Floor
from optim_bench.report.timing._rounds import interleave

GROUPS = PRESETS["step-speed"]
TINY = ((8, 16), (16,))


def tiny(group: Group) -> Group:
    return dataclasses.replace(group, shapes=TINY)


def test_interleaved_rounds_meet_every_contender_and_vary_their_order():
    order = []
    runs = {name: (lambda n, name=name: order.append((name, n))) for name in "abc"}
    ticks = itertools.count(0.0, 0.75)
    found = interleave(runs, 6, 1.2, clock=lambda: next(ticks))
    # Three units took a tick of 0.75 s, so a round of 1.2 s and a fifth takes 6 units.
    timed = order[6:]
    assert {n for _, n in timed} == {6}
    rounds = [tuple(name for name, _ in timed[i : i + 3]) for i in range(0, 18, 3)]
    assert all(sorted(names) == ["a", "b", "c"] for names in rounds)
    assert len(set(rounds)) > 1
    assert found["a"] == pytest.approx([0.75 / 6] * 6)


def test_the_transformer_has_the_parameters_it_claims():
    assert sum(math.prod(shape) for shape in TRANSFORMER) == 20_453_888


def test_limits_follow_from_the_bytes():
    limits = {c.title: c.limit for group in GROUPS for c in group.contenders}
    assert limits["STAM"] is None or limits["STAM"] == pytest.approx(36 / 28)
    assert limits['STAC fused, int8 momentum, nonfinite="skip"'] == pytest.approx(18 / 28)


def measured(seconds, request, device=None):
    return {"device": device, "rounds": seconds[request["group"]]}


@pytest.fixture
def seconds(monkeypatch):
    """Rounds of one group with known ratios: 1.5, 1.6, ... to the baseline, the copy at 1 +- .1."""
    group = Group("g", "jax", "a problem", TINY, "base", "Base", (Contender("x", "X", 1.4, 1.25),))
    monkeypatch.setattr(update, "PRESETS", {"p": (group,)})
    base = [1.0, 2.0, 4.0, 8.0, 16.0]
    factors = {"base": [1.0] * 5, "A/A": [0.9, 0.95, 1.0, 1.05, 1.1], "x": [1.5, 1.3, 1.4, 9, 1.2]}
    return {
        "g": {
            label: [f * b for f, b in zip(found, base, strict=True)]
            for label, found in factors.items()
        }
    }


def test_ratios_are_taken_within_a_round_and_the_median_is_reported(seconds):
    (row,) = update._rows("p", seconds)
    assert row["ratio"] == pytest.approx(1.4)
    assert (row["low"], row["high"]) == pytest.approx((1.3, 1.5))
    assert row["band"] == pytest.approx([0.9, 1.1])
    assert row["reached"] is True


def table(rows, **changes):
    return preset_markdown(
        {
            "rows": rows,
            "floors": [],
            "threads": 1,
            "round_seconds": 0.05,
            "machine": {"processor": "a processor"},
            "devices": [],
            "load": [0.25],
            "environment": {"python": "3.13", "machine": "x86_64"},
            "busy": False,
            **changes,
        }
    )


def test_a_miss_is_printed_as_a_miss(seconds):
    seconds["g"]["x"] = [2 * value for value in seconds["g"]["x"]]
    text = table(list(update._rows("p", seconds)))
    line = next(line for line in text.splitlines() if line.startswith("| X"))
    assert line == (
        "| X | Base | 11200.0 | 2.80 | 2.60 to 3.00 | 0.90 to 1.10 | 1.40 | 1.25 | **missed** |"
    )
    assert "1 pinned thread), load before 0.25; python 3.13." in text
    assert "noise" not in text


def test_stripped_steps_have_a_table_of_their_own(seconds):
    contenders, floors = (Contender("x", "X", 1.4, 1.25),), (Floor("low", "Low"),)
    group = Group("g", "jax", "a problem", TINY, "base", "Base", contenders, floors)
    seconds["g"]["low"] = [0.75 * value for value in seconds["g"]["base"]]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(update, "PRESETS", {"p": (group,)})
        found = list(update._floors("p", seconds))
        assert [row["title"] for row in update._rows("p", seconds)] == ["X"]
    text = table(list(update._rows("p", seconds)), floors=found)
    assert "\n| Low | Base | 3000.0 | 0.75 | 0.75 to 0.75 |\n" in text
    assert "Stripped" not in table(list(update._rows("p", seconds)))


def test_a_busy_machine_is_named(seconds):
    text = table(list(update._rows("p", seconds)), busy=True, threads=2)
    assert "2 pinned threads" in text
    assert text.endswith("the milliseconds are noise, and so is a ratio in its band.\n")


@pytest.mark.slow
@pytest.mark.parametrize("group", GROUPS, ids=lambda group: f"{group.framework}-{group.name}")
def test_every_case_of_the_table_takes_steps(group, monkeypatch):
    monkeypatch.setattr(process, "PRESETS", {"p": (tiny(group),)})
    request = {"preset": "p", "group": group.name, "threads": 1}
    found = process.measure({**request, "rounds": 2, "round_seconds": 1e-4, "first_calls": 2})
    others = (*group.contenders, *group.floors)
    labels = {group.baseline, "A/A", *(each.case for each in others)}
    assert found["device"] is None
    assert set(found["rounds"]) == labels
    assert all(len(s) == 2 and min(s) > 0 for s in found["rounds"].values())


def test_the_tables_of_both_devices_time_the_same_cases():
    cases = {
        device: {
            (group.framework, case)
            for group in PRESETS[preset]
            for case in (group.baseline, *(c.case for c in group.contenders))
        }
        for preset, device in (("step-speed", "cpu"), ("step-speed-cuda", "cuda"))
    }
    host = ("adamw foreach", "stac foreach", "stam", "stam_lite", "adamw", "stac")
    chained = ("stac", "clip and adamw", "clip and stam", "clip and stam_lite")
    only = {("torch", case) for case in host} | {("jax", case) for case in chained}
    assert cases["cuda"] | only == cases["cpu"]
    assert {group.device for group in PRESETS["step-speed-cuda"]} == {"cuda"}
    assert sum(map(math.prod, PRESETS["step-speed-cuda"][0].shapes)) == 207_636_480


@pytest.mark.slow
@pytest.mark.parametrize(("framework", "name"), [("jax", "JAX"), ("torch", "PyTorch")])
def test_a_preset_for_cuda_says_where_there_is_none(framework, name, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")
    with pytest.raises(BenchError, match=f"needs a CUDA device, and {name} finds none") as failed:
        time_preset("step-speed-cuda", [framework], rounds=2)
    assert "\n" not in str(failed.value)


def test_an_accelerator_is_named(seconds, monkeypatch):
    monkeypatch.setattr(
        update, "_measure", lambda request, threads: measured(seconds, request, "NVIDIA H100")
    )
    assert "NVIDIA H100, CPU (" in preset_markdown(time_preset("p", ["jax"]))


def test_a_failing_process_is_one_clear_error(monkeypatch):
    monkeypatch.setattr(update, "PRESETS", {"no such preset": GROUPS[:1]})
    with pytest.raises(BenchError, match="timing 'transformer' of no such preset failed: KeyError"):
        time_preset("no such preset", ["jax"])


def test_more_threads_than_cores_are_refused():
    with pytest.raises(BenchError, match=r"--threads is 4096, and this process may use \d+ cores"):
        time_preset("step-speed", ["jax"], threads=4096)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "step-sped"], "did you mean 'step-speed'"),
        (["--preset", "step-speed", "--workload", "digits-cnn"], "has its own problems"),
        (["--threads", "2"], "are for --preset"),
    ],
)
def test_the_command_refuses_what_it_would_ignore(arguments, message, capfd):
    assert run_app(build_app(), ["time", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_the_command_writes_the_numbers_and_the_table(seconds, monkeypatch, capfd, tmp_path):
    monkeypatch.setattr(update, "_measure", lambda request, threads: measured(seconds, request))
    monkeypatch.setattr("optim_bench.cli.measure.PRESETS", {"p": ()})
    readme, numbers = tmp_path / "README.md", tmp_path / "p.json"
    readme.write_text("a\n<!-- optim-bench p: begin -->\n<!-- optim-bench p: end -->\nb\n")
    arguments = ["time", "--preset", "p", "--framework", "jax", "--json", str(numbers)]
    assert run_app(build_app(), [*arguments, "--update-readme", str(readme)]) == 0
    assert "1.40" in capfd.readouterr().out
    data = json.loads(numbers.read_text())
    assert data["rows"][0]["ratio"] == pytest.approx(1.4)
    assert preset_markdown(data) in readme.read_text()
