# pyright: strict
"""Telling folders and stores apart by what they are called."""

import os
import re
from pathlib import Path

from optim_checkpoint._errors import CheckpointError

_URL = re.compile(r"([A-Za-z][A-Za-z0-9+.:-]*)://")
_LOCAL = ("file", "local")
# What pathlib makes of a URL.
_SHORTENED = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/[^/]")


def is_store(path: str | os.PathLike[str]) -> bool:
    """Say whether a path is the URL of a store, which `file://` is not.

    Raises:
        ValueError: If it is empty or blank, as a variable that was never set: no folder is meant.
    """
    text = os.fspath(path)
    match = _URL.match(text)
    if match is not None and match[1].lower() not in _LOCAL:
        return True
    if not text[match.end() if match else 0 :].strip():
        raise ValueError(
            f'the path is {text!r}, which names no folder; pass "." for the current one'
        )
    return False


def local(path: str | os.PathLike[str]) -> str | os.PathLike[str]:
    """Return the path of a folder that is given as a path or as ``file://``.

    Raises:
        CheckpointError: If it is a URL that lost a slash on its way through `pathlib`.
    """
    text = os.fspath(path)
    match = _URL.match(text)
    if match is not None:
        return text[match.end() :]
    if _SHORTENED.match(text) and not os.path.lexists(text.partition("/")[0]):
        raise CheckpointError(
            f"{text} is a URL that lost a slash, as pathlib.Path drops one: give the URL as a str"
        )
    return path


def local_file(path: str | os.PathLike[str]) -> Path:
    """Return the path of a file or folder of another tool, which only a disk has.

    Raises:
        CheckpointError: If it is the URL of a store.
    """
    if is_store(path):
        raise CheckpointError(
            f"{shown_url(os.fspath(path))} is in a store; what other tools read or write must be "
            "on a local disk: copy it there, or from there"
        )
    return Path(local(path))


def shown_url(url: str) -> str:
    """Return a URL without the password that it may hold."""
    return re.sub(r"//[^/@:]*:[^/@]*@", "//***@", url)
