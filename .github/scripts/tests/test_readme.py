"""The root README shows the two commands, and its table says what the committed evidence says."""

import json
import re

import pytest
from workspace import ROOT

EVIDENCE = ROOT / "packages" / "optim-bench" / "evidence"
# The row's name: that on the evidence page, those in the files of times and of states.
ROWS = {
    "STAM": ("STAM (published statistics)", "STAM", ("medium_mlp", "STAM")),
    "STAMLite": ("STAMLite", "STAMLite", ("medium_mlp", "STAMLite")),
    "STAC": (
        "STAC (last layer on AdamW)",
        "STAC()",
        ("memory probe", "STAC, last layer on AdamW"),
    ),
    "STAC, momentum in 8 bits": (
        "STAC (momentum in 8 bits)",
        None,
        ("memory probe", "STAC, int8 momentum"),
    ),
}


@pytest.fixture(scope="module")
def table():
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if "|" in line]
    return {row[0]: row[1:] for row in rows}


@pytest.mark.parametrize("command", ["uv run optim-bench run", "uvx nox"])
def test_it_shows_what_runs_from_a_checkout(command):
    lines = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
    assert [line for line in lines if line.startswith(f"pip install uv && {command} ")]


@pytest.mark.parametrize("name", ROWS)
def test_verdicts_are_those_of_the_evidence_page(table, name):
    page = (EVIDENCE / "README.md").read_text(encoding="utf-8")
    said = re.findall(rf"^- {re.escape(ROWS[name][0])} on [\w-]+: ([^,]+)", page, re.MULTILINE)
    better = sum(text.startswith("better than AdamW") for text in said)
    worse = sum(text.startswith("worse than AdamW") for text in said)
    assert table[name][2:] == [str(better), str(worse), str(len(said) - better - worse)]
    assert len(said) == 6


@pytest.mark.parametrize("name", ROWS)
def test_state_and_time_are_those_measured(table, name):
    _, timed, counted = ROWS[name]
    states = json.loads((EVIDENCE / "state-bytes.json").read_text(encoding="utf-8"))["rows"]
    (ratio,) = (r["ratio"] for r in states if (r["model"], r["optimizer"]) == counted)
    assert table[name][0] == f"{ratio:.2f}"
    times = json.loads((EVIDENCE / "step-speed.json").read_text(encoding="utf-8"))["rows"]
    first = [r["ratio"] for r in times if r["title"] == timed]
    assert table[name][1] == (f"{first[0]:.2f}" if first else "")
    assert bool(first) == (timed is not None)


def test_the_other_times_of_stac_are_those_measured():
    text = (ROOT / "README.md").read_text(encoding="utf-8")
    rows = json.loads((EVIDENCE / "step-speed.json").read_text(encoding="utf-8"))["rows"]
    checked, clipped = (
        next(r["ratio"] for r in rows if r["title"] == title)
        for title in (
            'STAC fused, float32 momentum, nonfinite="skip"',
            "STAC fused, float32, max_grad_norm",
        )
    )
    assert f"{checked:.2f} times as long with its check for nan, and {clipped:.2f} with" in text
