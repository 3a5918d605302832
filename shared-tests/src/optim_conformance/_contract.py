"""Checks on refusals, and on the adapter itself."""

from __future__ import annotations

import pytest

from optim_conformance._base import BadValue, Checks
from optim_conformance.rules import CAPABILITIES, RULES, plain_case


class ContractChecks(Checks):
    """What is refused, and that nothing is left out quietly."""

    def test_bad_hyperparameter(self, error: BadValue) -> None:
        """A value out of range is refused at the start, with a message that shows it."""
        params = plain_case(error.optimizer).params("float32")
        with pytest.raises(ValueError, match=error.says()):
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
        strangers = sorted(self.adapter.optimizers() - set(RULES))
        assert not strangers, f"{self.adapter.name} offers {strangers}, which no oracle knows"
        assert self.offered(), f"{self.adapter.name} offers no optimizer"
