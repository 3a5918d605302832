"""Hypothesis profiles: `ci` repeats the same examples for ever, `nightly` looks for new ones."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings

NIGHTLY = "nightly"


def register() -> None:
    """Make both profiles known to hypothesis."""
    # A first example may compile a step, and how long it takes is no property of its result.
    settings.register_profile("ci", derandomize=True, database=None, deadline=None)
    settings.register_profile(
        NIGHTLY, max_examples=2000, print_blob=True, database=None, deadline=None
    )


def activate() -> None:
    """Register both and load `ci`, unless this session has chosen another profile."""
    chosen = settings.get_current_profile_name()
    register()
    if chosen in ("default", "ci"):
        settings.load_profile("ci")


def few(test: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a check that steps whole runs: a tenth of the profile's examples.

    One check runs in several classes, one per adapter, which hypothesis would take for a mistake.
    """
    return settings(
        max_examples=settings().max_examples // 10,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )(test)
