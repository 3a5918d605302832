"""What importing the package costs, and that its tables agree with its code."""

import json
import subprocess
import sys

import numpy as np
import pytest
import stam_core


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


def test_slots_have_the_names_of_both_frameworks():
    """The states that are already saved somewhere: of optax and PyTorch, and of this family."""
    moments = {"mu": "exp_avg", "nu": "exp_avg_sq", "nu_max": "max_exp_avg_sq"}
    statistics = ("s2", "tau", "e1", "e2", "beta1", "b1_prod", "s")
    named = {"count": "step", **moments, **{name: name for name in statistics}}
    assert named.items() <= stam_core.SLOTS.items()


def test_a_rule_is_found_by_its_name():
    assert {"stam", "stam_lite", "sign", "adamw"} <= stam_core.RULES.keys()
    assert all(name == rule.name for name, rule in stam_core.RULES.items())


@pytest.mark.parametrize("rule", stam_core.RULES.values(), ids=lambda rule: rule.name)
def test_a_record_agrees_with_its_functions(rule):
    """Names that a record refers to exist, and each function returns what the record lists."""
    hp = rule.hyperparams()
    p = np.ones((2, 3))
    state = rule.init(p, hp, xp=np)
    kept = [slot.name for slot in (*rule.moments_of(hp), *rule.statistics)]
    assert list(state) == kept
    _, after = rule.step(p, p, state, np.asarray(1), hp, xp=np, mean=np.mean)
    assert set(after) == set(kept)
    assert set(rule.reads) <= set(kept)
    assert {slot.given for slot in rule.moments} - {None} <= set(vars(hp))
