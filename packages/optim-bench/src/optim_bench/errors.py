"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable


class BenchError(Exception):
    """Something the user gave or has is wrong; the message says what, and what to do."""

    status = 1


class StoppedError(BenchError):
    """The user pressed Ctrl-C."""

    status = 130


def unknown_name(kind: str, name: str, known: Iterable[str]) -> BenchError:
    """Return the error for a name that is not registered, with the nearest one that is.

    Example:
        >>> print(unknown_name("optimizer", "stak", ["stam", "adamw"]))
        unknown optimizer 'stak'; did you mean 'stam'? choose from adamw, stam
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return BenchError(f"unknown {kind} {name!r}{hint} choose from {', '.join(names) or 'nothing'}")
