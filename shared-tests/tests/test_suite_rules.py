"""The suite's own rules: no override, no name used twice, the adapter's vocabulary."""

from itertools import combinations

import pytest
from optim_conformance import (
    CheckpointConformance,
    CheckpointExchange,
    OptimizerConformance,
    WorkloadConformance,
)
from optim_conformance._base import Checks
from optim_conformance._compare import slot_of
from optim_conformance.numpy_adapter import NumpyAdapter
from optim_conformance.oracle import Oracle
from optim_conformance.rule import Step
from optim_conformance.rules import RULES, SLOTS


class Honest(OptimizerConformance):
    adapter = NumpyAdapter()


class KnownFailure(Honest):
    @pytest.mark.xfail(reason="the framework rounds twice", strict=True)
    def test_first_step(self, opt):
        super().test_first_step(opt)


class Quiet(Honest):
    def test_first_step(self, opt):
        pass


class Removed(Honest):
    test_first_step = None


class Lenient(Honest):
    @pytest.mark.xfail(reason="perhaps", strict=False)
    def test_first_step(self, opt):
        super().test_first_step(opt)


class Unexplained(Honest):
    @pytest.mark.xfail(strict=True)
    def test_first_step(self, opt):
        super().test_first_step(opt)


class Skipped(Honest):
    @pytest.mark.skip(reason="slow")
    def test_first_step(self, opt):
        super().test_first_step(opt)


class Unparametrized(Honest):
    def pytest_generate_tests(self, metafunc):
        pass


@pytest.mark.parametrize("suite", [Honest, KnownFailure])
def test_allowed(suite):
    suite().test_no_override()


@pytest.mark.parametrize("suite", [Quiet, Removed, Lenient, Unexplained, Skipped, Unparametrized])
def test_overrides_are_refused(suite):
    with pytest.raises(AssertionError, match=f"{suite.__name__}.*override checks"):
        suite().test_no_override()


@pytest.mark.parametrize(
    ("suite", "check"),
    [
        (CheckpointConformance, "test_round_trip"),
        (CheckpointExchange, "test_there_and_back"),
        (OptimizerConformance, "test_first_step"),
        (WorkloadConformance, "test_resume"),
    ],
)
def test_every_suite_has_the_rule(suite, check):
    quiet = type("Quiet", (suite,), {check: lambda self: None})
    with pytest.raises(AssertionError, match=f"Quiet.{check}.*override checks"):
        quiet().test_no_override()
    # Nor may a class in between hide it.
    with pytest.raises(AssertionError, match=f"Quiet.{check}.*override checks"):
        type("Below", (quiet,), {})().test_no_override()
    type("Untouched", (suite,), {"helper": lambda self: None})().test_no_override()


def test_the_rule_itself_cannot_be_replaced():
    with pytest.raises(TypeError, match="Sly defines test_no_override, the one check that nobody"):
        type("Sly", (WorkloadConformance,), {"test_no_override": lambda self: None})


def test_groups_of_checks_share_no_name():
    groups = [c for c in OptimizerConformance.__mro__ if issubclass(c, Checks) and c is not Checks]
    for first, second in combinations(groups[1:], 2):
        shared = {n for n in vars(first) if n in vars(second) and not n.startswith("__")}
        assert not shared, f"{first.__name__} and {second.__name__} both define {shared}"


@pytest.mark.parametrize("rule", RULES.values(), ids=list(RULES))
def test_every_rule_has_every_row(rule):
    """A row that is missing would fail later, and less clearly."""
    for table in ("cases", "golden", "bugs", "ranges", "slots"):
        assert getattr(rule, table) or (table == "slots" and not rule.step.counts), table
    for table in ("cases", "golden", "low_precision", "complex"):
        names = [case.name for case in getattr(rule, table)]
        assert len(set(names)) == len(names), table
    assert all(issubclass(bug.rule, Step) for bug in rule.bugs)
    assert {name for case in rule.cases for name in case.hparams} <= set(rule.ranges)
    first = Oracle(rule.name, rule.plain_case().hparams, rule.plain_case().params())
    assert {slot_of(key) for key in first.state()} - {"count"} <= {s.name for s in rule.slots}


def test_a_slot_means_the_same_everywhere():
    for rule in RULES.values():
        for slot in rule.slots:
            known = SLOTS[slot.name]
            assert (slot.bound, slot.torch, slot.scalar, slot.signed, slot.root) == (
                known.bound,
                known.torch,
                known.scalar,
                known.signed,
                known.root,
            )


def test_unknown_capability_is_refused():
    class Boastful(NumpyAdapter):
        capabilities = NumpyAdapter.capabilities | {"teleport"}

    class Suite(OptimizerConformance):
        adapter = Boastful()

    with pytest.raises(AssertionError, match="unknown capabilities \\['teleport'\\]"):
        Suite().test_adapter_declares_what_exists()
