"""Errors that a user can mend: the command line prints them as one line, without a traceback."""

import difflib
from collections.abc import Iterable
from signal import SIGINT


class BenchError(Exception):
    """Something the user gave or has is wrong; the message says what, and what to do."""

    status = 1


class UsageError(BenchError):
    """What was typed cannot be meant: a name, a value or a combination of options."""

    status = 2


class StoppedError(BenchError):
    """The user pressed Ctrl-C, or a scheduler ended the process.

    Args:
        signal: number of the signal; the exit status is what a shell reports for it.
    """

    def __init__(self, signal: int) -> None:
        how = "interrupted" if signal == SIGINT else "terminated"
        super().__init__(f"{how}; every finished run is kept: repeat the command to go on")
        self.status = 128 + signal


def os_reason(error: OSError) -> str:
    """Return what the system says about a file, in words and without its number.

    Example:
        >>> os_reason(FileNotFoundError(2, "No such file or directory", "here"))
        'no such file or directory'
    """
    return (error.strerror or str(error)).lower()


def unknown_name(kind: str, name: str, known: Iterable[str]) -> UsageError:
    """Return the error for a name that is not registered, with the nearest one that is.

    Example:
        >>> print(unknown_name("optimizer", "stak", ["stam", "adamw"]))
        unknown optimizer 'stak'; did you mean 'stam'? choose from adamw, stam
    """
    names = sorted(known)
    near = difflib.get_close_matches(name, names, n=1, cutoff=0.5)
    hint = f"; did you mean {near[0]!r}?" if near else ";"
    return UsageError(f"unknown {kind} {name!r}{hint} choose from {', '.join(names) or 'nothing'}")
