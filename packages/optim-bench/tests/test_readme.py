"""The README's commands are real: every command and option it shows exists."""

import re
from pathlib import Path

import pytest
from optim_bench.cli import build_app, run_app
from optim_bench.protocol import TIERS

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")
COMMANDS = re.findall(r"^optim-bench (\w+)(.*)$", README, re.MULTILINE)


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
