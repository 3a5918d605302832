"""The pytest plugin: readable assertions in the suites, and the hypothesis profiles.

Every pytest session of the environment loads it, those of other packages too, so it imports
nothing but pytest, and the rest of this package only when a test asks for it.
"""

from __future__ import annotations

import os
from importlib.metadata import version

import pytest

# Named one by one: the package itself is imported already, with this module.
pytest.register_assert_rewrite(
    *(
        f"optim_conformance.{module}"
        for module in (
            "_compare",
            "_contract",
            "_honesty",
            "_hyperparameters",
            "_learning",
            "_nonfinite",
            "_ownership",
            "_persistence",
            "_properties",
            "_sampling",
            "_storage",
            "_structure",
            "_trajectory",
            "_workload_base",
            "_workload_data",
            "_workload_training",
            "checkpoint",
            "exchange",
        )
    )
)

_OPTION = "--hypothesis-profile"


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Make our profiles known before hypothesis loads the one that was asked for."""
    if config.getoption(_OPTION, default=None):
        from optim_conformance import profiles

        profiles.register()


def pytest_report_header(config: pytest.Config) -> str:
    """Name the version, and the profile that property checks run under."""
    chosen = config.getoption(_OPTION, default=None)
    profile = chosen or os.environ.get("HYPOTHESIS_PROFILE", "ci")
    return f"optim-conformance: {version('optim-conformance')}, hypothesis profile {profile}"
