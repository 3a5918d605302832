"""What importing the package costs, and that its tables agree with its code."""

import json
import subprocess
import sys

import stam_core
from stam_core import SLOT_BY_NAME, SLOTS, reference


def test_importing_loads_no_framework():
    code = (
        "import sys, json, stam_core, stam_core.reference; print(json.dumps(sorted(sys.modules)))"
    )
    result = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True
    )
    roots = {name.split(".")[0] for name in json.loads(result.stdout)}
    assert roots.isdisjoint({"jax", "jaxlib", "optax", "torch", "stam_jax", "stac_torch"})


def test_every_public_name_exists():
    assert all(hasattr(stam_core, name) for name in stam_core.__all__)
    assert sorted(set(stam_core.__all__)) == sorted(stam_core.__all__)


def test_every_slot_of_the_drivers_is_in_the_table_of_names():
    for driver in (reference.STAM(), reference.STAMLite()):
        slots = {key.split("/")[0] for key in driver.init({"w": [0.0]})}
        assert slots <= set(SLOT_BY_NAME)
    assert len(SLOT_BY_NAME) == len(SLOTS)
