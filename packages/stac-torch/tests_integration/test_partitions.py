"""The committed table of partitions is what transformers builds today."""

import subprocess
import sys
from pathlib import Path

import pytest

HERE = Path(__file__).parent
TABLE = HERE.parent / "PARTITIONS.md"


@pytest.fixture(scope="module")
def counted():
    command = [sys.executable, str(HERE / "partition_table.py")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_table_is_of_today(counted):
    assert TABLE.read_text() == counted


def test_the_preset_does_what_it_promises(counted):
    """Heads and vectors on AdamW, most matrices by sign; by default nine heads are by sign."""
    rows = [line.strip("|").split("|") for line in counted.splitlines() if line.startswith("|")][2:]
    by_preset = {}
    for _, preset, head, _, matrices, vectors in ([c.strip() for c in row] for row in rows):
        by_preset.setdefault(preset, []).append((head, matrices.split(), vectors.split()))
    assert {len(found) for found in by_preset.values()} == {17}
    for head, matrices, vectors in by_preset["transformer"]:
        assert head == "AdamW"
        assert vectors[0] == vectors[2]
        assert 1 <= int(matrices[0]) <= 0.4 * int(matrices[2])
    assert sum("sign" in head for head, _, _ in by_preset["default"]) == 9
