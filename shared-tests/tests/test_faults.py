"""Every planted bug is caught, by the check that it names, and every check catches a bug."""

import re
import subprocess
import sys
import xml.etree.ElementTree as ET

import pytest
from optim_conformance import OptimizerConformance
from optim_conformance.faults import FAULTS
from optim_conformance.rules import RULES

pytestmark = pytest.mark.slow

MODULE = """
from optim_conformance import OptimizerConformance
from optim_conformance.faults import FAULTS

for number, fault in enumerate(FAULTS):
    name = f"TestFault{number}"
    globals()[name] = type(name, (OptimizerConformance,), {"adapter": fault.adapter()})
"""

# How a check says that it found something; any other exception is a fault that crashed.
FOUND = ("AssertionError", "Failed: DID NOT RAISE")

# A check of the test class, not of an implementation: test_no_override has its own tests.
OF_THE_CLASS = {"test_no_override"}


@pytest.fixture(scope="module")
def outcomes(tmp_path_factory):
    """Run each fault under the check it names; return outcomes per fault."""
    folder = tmp_path_factory.mktemp("faults")
    (folder / "test_planted.py").write_text(MODULE)
    (folder / "pytest.ini").write_text("[pytest]\nfilterwarnings = error\n")
    chosen = [f"test_planted.py::TestFault{n}::{f.check}" for n, f in enumerate(FAULTS)]
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "--junitxml=out.xml", "--tb=line", *chosen],
        cwd=folder,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1, done.stdout[-3000:] + done.stderr[-3000:]
    found = {}
    for row in ET.parse(folder / "out.xml").iter("testcase"):
        kinds = {child.tag for child in row}
        outcome = next((k for k in ("error", "failure", "skipped") if k in kinds), "passed")
        text = "".join(child.get("message", "") for child in row)
        opt = re.split(r"[-:]", row.get("name").partition("[")[2].rstrip("]"))
        of = next((part for part in opt if part in RULES), "")
        found.setdefault(row.get("classname").split(".")[-1], []).append((of, outcome, text))
    return found


@pytest.mark.parametrize(
    "number", range(len(FAULTS)), ids=[f"{f.run.__name__}-{f.check}" for f in FAULTS]
)
def test_fault_is_caught(outcomes, number):
    ran = outcomes[f"TestFault{number}"]
    for _, outcome, text in ran:
        assert outcome != "error", text
        assert outcome != "failure" or text.startswith(FOUND), text
    caught = {opt for opt, outcome, _ in ran if outcome == "failure"}
    # A check without a row per optimizer has found it once and for all.
    missed = set() if "" in caught else FAULTS[number].optimizers - caught
    assert not missed, f"{FAULTS[number].name}: {FAULTS[number].check} finds it not in {missed}"


def test_every_check_catches_a_fault():
    checks = {name for name in dir(OptimizerConformance) if name.startswith("test_")}
    named = {fault.check for fault in FAULTS}
    assert named - checks == set()
    assert checks - named - OF_THE_CLASS == set()


def test_faults_are_described():
    names = [fault.name for fault in FAULTS]
    assert len(set(names)) == len(names)
    assert all(len(name) > 15 for name in names)
