"""Checks on refusals, on the adapter itself, and on the honesty of the test class."""

from __future__ import annotations

from typing import Any

import pytest

from optim_conformance._base import Checks
from optim_conformance.adapter import CAPABILITIES, OPTIMIZERS
from optim_conformance.cases import plain_case
from optim_conformance.errors import ErrorCase


class ContractChecks(Checks):
    """What is refused, and that nothing is left out quietly."""

    def test_bad_hyperparameter(self, error: ErrorCase) -> None:
        """A value out of range is refused at the start, with a message that shows it."""
        params = plain_case(error.optimizer).params("float32")
        with pytest.raises(ValueError, match=error.says):
            self.adapter.start(error.optimizer, error.hparams(), params, dtype="float32")

    def test_unknown_hyperparameter(self, opt: str) -> None:
        """A misspelt keyword is refused, not swallowed."""
        case = plain_case(opt)
        with pytest.raises((TypeError, ValueError), match="weight_decya"):
            self.start(case, hparams={**case.hparams, "weight_decya": 0.1})

    def test_adapter_declares_what_exists(self) -> None:
        """Names and capabilities come from the suite's vocabulary."""
        unknown = sorted(self.adapter.capabilities - set(CAPABILITIES))
        assert not unknown, f"{self.adapter.name} declares unknown capabilities {unknown}"
        strangers = sorted(self.adapter.optimizers() - set(OPTIMIZERS))
        assert not strangers, f"{self.adapter.name} offers {strangers}, which no oracle knows"
        assert self.offered(), f"{self.adapter.name} offers no optimizer"

    def test_no_override(self) -> None:
        """A subclass replaces a check only by a strict xfail with a reason, and removes none."""
        suite = next(c for c in type(self).__mro__ if c.__name__ == "OptimizerConformance")
        family = type(self).__mro__[: type(self).__mro__.index(suite)]
        names = [n for n in dir(suite) if n.startswith("test_") or n == "pytest_generate_tests"]
        wrong = [
            f"{cls.__name__}.{name}"
            for cls in family
            for name in names
            if name in vars(cls) and not _is_known_failure(vars(cls)[name])
        ]
        assert not wrong, (
            f"{wrong} override checks; a known failure is "
            "@pytest.mark.xfail(reason=..., strict=True) over a call of the inherited check"
        )


def _is_known_failure(override: Any) -> bool:
    return any(
        mark.name == "xfail" and mark.kwargs.get("strict") is True and mark.kwargs.get("reason")
        for mark in getattr(override, "pytestmark", ())
    )
