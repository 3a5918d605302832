"""The README and the guide are real: every command, option and file they show exists."""

import dataclasses
import re
from pathlib import Path

import pytest
from optim_bench import JaxTask, TorchTask
from optim_bench.cli import build_app, run_app
from optim_bench.protocol import TIERS

PACKAGE = Path(__file__).parents[1]
README, GUIDE = (
    (PACKAGE / f"{name}.md").read_text(encoding="utf-8") for name in ("README", "GUIDE")
)
COMMANDS = re.findall(r"^optim-bench (\w+)(.*)$", README + GUIDE, re.MULTILINE)
MOST_WORDS = 1200


@pytest.mark.parametrize(("command", "rest"), COMMANDS)
def test_every_command_and_option_exists(command, rest, capfd, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")
    deeper = ["fetch"] if command == "data" else []
    assert run_app(build_app(), [command, *deeper, "--help"]) == 0
    text = capfd.readouterr().out
    for option in re.findall(r"--[a-z-]+", rest):
        assert option in text


def test_the_table_of_tiers_is_true():
    for name, budget in TIERS.items():
        row = next(line for line in README.splitlines() if line.startswith(f"| `{name}`"))
        cells = [cell.strip() for cell in row.strip("|").split("|")]
        assert cells == [
            f"`{name}`",
            f"{budget.grid_points} x {budget.tuning_seeds}",
            str(budget.extensions),
            str(budget.fresh_seeds),
            "yes" if budget.defaults else "no",
        ]


def test_the_readme_is_short_and_begins_with_what_it_is_for():
    assert len(README.split()) <= MOST_WORDS
    before = README.index("result = compare(")
    assert 0 <= README.index("![") - before < 300
    assert README[:before].count("```python") == 1


@pytest.mark.parametrize("page", ["GUIDE.md", "evidence/costs.md"])
def test_what_a_page_links_to_is_there(page):
    text = (PACKAGE / page).read_text(encoding="utf-8")
    for target in re.findall(r"\]\(([^)#]+)\)", text):
        assert ((PACKAGE / page).parent / target).exists(), target


def test_every_setting_of_a_task_is_in_the_guide():
    functions = {"model", "init", "batches", "loss", "evaluate", "name", "title", "metrics"}
    fields = {f.name for task in (TorchTask, JaxTask) for f in dataclasses.fields(task)}
    assert {name for name in fields - functions if f"`{name}`" not in GUIDE} == set()
