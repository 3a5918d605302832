"""State bytes on the models of the published pages."""

import itertools
import json

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.report.memory import MODELS, memory_markdown, memory_report
from optim_bench.report.memory import _cases_torch as torch_cases

MEBIBYTE = 1024**2


pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def report():
    return memory_report("state-bytes", ["jax", "torch"])


def row(report, model, optimizer):
    return next(r for r in report["rows"] if (r["model"], r["optimizer"]) == (model, optimizer))


@pytest.mark.parametrize(
    ("model", "adamw", "ratio"),
    # STAM's published page; ours keeps two more numbers per tensor, which small_mlp shows.
    [("small_mlp", 0.13, 1.0005), ("medium_mlp", 192.07, 1.0), ("wide_linear", 512.06, 1.0)],
)
def test_stams_resource_report_is_reproduced(report, model, adamw, ratio):
    assert row(report, model, "AdamW")["state_bytes"] / MEBIBYTE == pytest.approx(adamw, abs=5e-3)
    assert row(report, model, "STAM")["ratio"] == pytest.approx(ratio, abs=5e-4)
    assert row(report, model, "STAMLite")["ratio"] == pytest.approx(0.5, abs=1e-3)


@pytest.mark.parametrize(
    ("optimizer", "mebibytes"),
    [
        ("AdamW", 7.270),
        ("STAC, last layer on AdamW", 3.637),
        ("STAC, last two layers on AdamW", 3.762),
        ("STAC, plain sign", 0.004),
    ],
)
def test_stacs_memory_probe_is_reproduced_to_its_last_digit(report, optimizer, mebibytes):
    found = row(report, "memory probe", optimizer)
    assert round(found["state_bytes"] / MEBIBYTE, 3) == mebibytes


def test_bytes_follow_from_the_shapes(report):
    widths = next(model.widths for model in MODELS if model.name == "medium_mlp")
    entries = sum(a * b + b for a, b in itertools.pairwise(widths))
    found = row(report, "medium_mlp", "AdamW")
    assert found["parameter_bytes"] == 4 * entries
    # Two moments, and one int32 count.
    assert found["state_bytes"] == 8 * entries + 4


def test_the_compiled_peak_holds_at_least_arguments(report):
    for found in report["rows"]:
        if found["framework"] == "jax":
            # Parameters, gradients and state are there at once.
            assert found["peak_bytes"] >= 2 * found["parameter_bytes"] + found["state_bytes"]


@pytest.mark.gpu
def test_on_cuda_the_peak_is_the_allocators():
    model = next(model for model in MODELS if model.framework == "torch")
    adamw, stac = (torch_cases.measure(model, model.cases[i]) for i in (0, 1))
    saved = adamw["state_bytes"] - stac["state_bytes"]
    assert stac["peak_bytes"] <= adamw["peak_bytes"] - 0.9 * saved


def test_the_table_shows_every_row(report):
    lines = memory_markdown(report).splitlines()
    assert sum(line.startswith("|") for line in lines) == len(report["rows"]) + 2
    assert "|  | STAC, plain sign | 4,168 | 0.004 | 0.0005 |  |  |" in lines


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--preset", "state-byte"], "did you mean 'state-bytes'"),
        (["--preset", "state-bytes", "--optimizer", "stac"], "has its own models"),
        (["--json", "x.json"], "are for --preset"),
    ],
)
def test_the_command_refuses_what_it_would_ignore(arguments, message, capfd):
    assert run_app(build_app(), ["memory", *arguments]) == 2
    assert message in capfd.readouterr().err


def test_the_command_writes_the_numbers_and_the_table(capfd, tmp_path):
    readme, numbers = tmp_path / "README.md", tmp_path / "state.json"
    name = "optim-bench state-bytes"
    readme.write_text(f"a\n<!-- {name}: begin -->\n<!-- {name}: end -->\nb\n")
    arguments = ["memory", "--preset", "state-bytes", "--framework", "torch"]
    arguments += ["--json", str(numbers), "--update-readme", str(readme)]
    assert run_app(build_app(), arguments) == 0
    assert "4,168" in capfd.readouterr().out
    assert memory_markdown(json.loads(numbers.read_text())) in readme.read_text()
