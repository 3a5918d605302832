"""The rule of every suite: a check is run, or its failure is known by name, and nothing between."""

from __future__ import annotations

from typing import Any, ClassVar


class Honest:
    """Base of the suites; a subclass replaces a check only by a strict xfail with a reason."""

    _suite: ClassVar[type[Honest]]

    def __init_subclass__(cls, *, suite: bool = False, **kwargs: Any) -> None:
        """Note which class is the suite; refuse a subclass that takes the rule itself away.

        Args:
            suite: Whether the class is a suite, whose checks its subclasses must keep.
            kwargs: For other bases.

        Raises:
            TypeError: The subclass defines `test_no_override`.
        """
        super().__init_subclass__(**kwargs)
        if suite:
            cls._suite = cls
        if "test_no_override" in vars(cls):
            msg = f"{cls.__name__} defines test_no_override, the one check that nobody may replace"
            raise TypeError(msg)

    def test_no_override(self) -> None:
        """A subclass replaces a check only by a strict xfail with a reason, and removes none."""
        family = type(self).__mro__[: type(self).__mro__.index(self._suite)]
        names = [n for n in dir(self._suite) if n.startswith("test_")]
        wrong = [
            f"{cls.__name__}.{name}"
            for cls in family
            for name in [*names, "pytest_generate_tests"]
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
