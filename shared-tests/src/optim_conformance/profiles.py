"""Hypothesis profiles: `ci` repeats the same examples for ever, `nightly` looks for new ones."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis.errors import InvalidArgument

NIGHTLY = "nightly"


def register() -> None:
    """Make both profiles known to hypothesis."""
    # A first example may compile a step, and how long it takes is no property of its result.
    settings.register_profile("ci", derandomize=True, database=None, deadline=None)
    # On a build machine hypothesis' own default is derandomized, and a profile inherits from it.
    settings.register_profile(
        NIGHTLY,
        max_examples=2000,
        derandomize=False,
        print_blob=True,
        database=None,
        deadline=None,
    )


def activate() -> None:
    """Register both and load `ci`, unless this session has chosen another profile.

    It chooses by `--hypothesis-profile`, or by HYPOTHESIS_PROFILE in the environment.
    """
    chosen = settings.default is not settings.get_profile("default") and not _is_builtin_ci()
    register()
    if not chosen:
        settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "ci"))


def _is_builtin_ci() -> bool:
    """Tell whether the profile is the one that hypothesis chooses itself on a build machine."""
    try:
        return settings.default is settings.get_profile("ci")
    except InvalidArgument:
        return False


def few(test: Callable[..., Any]) -> Callable[..., Any]:
    """Decorate a check that steps whole runs: a tenth of the profile's examples.

    One check runs in several classes, one per adapter, which hypothesis would take for a mistake.
    """
    return settings(
        max_examples=settings().max_examples // 10,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.differing_executors],
    )(test)
