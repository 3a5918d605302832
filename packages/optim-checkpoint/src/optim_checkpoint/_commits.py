# pyright: strict
"""The commits of a run in a store: what is there is what the newest of them says.

A commit is one small object, `commits/NUMBER.json`, that lists the generations, each with the
folder that holds it, and the pins. The next number is made with a put that fails where there is an
object: of two writers one gets it. Commits follow each other without a gap and none is removed, so
that the newest is found by asking for numbers, and it does not matter what a listing shows. From
the third newest on they are emptied.

Generations are written to folders of their own names before they are committed. A save counts up
the epoch, and may only follow a commit of the epoch at which it began; its folder bears that epoch.
So what has an older epoch than the newest commit, and is not in it, can never be committed: it is
removed without asking how old it is.

An incremental save names objects of other folders, which the commit it began at lists. Only a save
removes objects, after its commit, and only those that this commit does not list. So of a save that
names an object and one that would remove it the first to commit wins: the other finds a later
epoch, commits nothing and removes nothing but what it put itself.
"""

import errno
import re
import secrets
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import cast

from optim_checkpoint._digest import digest
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointReadError,
    CheckpointWarning,
    CorruptCheckpointError,
    shown,
)
from optim_checkpoint._folder import GENERATION, GenerationName, parse_name
from optim_checkpoint._json import Limits, as_object, dumps, loads
from optim_checkpoint._policy import METRICS, RETENTION
from optim_checkpoint._store import Store

FORMAT = "optim-checkpoint commit"
# The first version lists a generation's own objects alone; written where no other is named.
VERSIONS = (1, 2)
LIMITS = Limits(1 << 28, 40, ratio=20)
_FOLDER = re.compile(rf"({GENERATION})-(0|[1-9][0-9]{{0,17}})-[0-9a-f]{{16}}\Z", re.ASCII)
_FILE = re.compile(r"(?:(?:model|optim|train)/)?[A-Za-z0-9][A-Za-z0-9._-]{0,200}\Z", re.ASCII)
# What an old commit is replaced with; no commit that was cut off looks like it.
_SUPERSEDED = b"{}"
_KEYS = {"format", "version", "number", "epoch", "previous", "generations", "pins", "token"}
# A pin or the save of another writer may take a number first, and a torn put may take it from all.
_ATTEMPTS = 50
# The newest number that this process saw of each store: where the search begins.
_seen: dict[str, int] = {}


@dataclass(frozen=True, slots=True)
class Stored:
    """A generation in a store.

    Attributes:
        folder: Where it is.
        files: Its files with their sizes, the manifest among them.
        notes: What its manifest says for retention.
        shared: For the files that another generation put, their objects.
    """

    folder: str
    files: Mapping[str, int]
    notes: Mapping[str, object]
    shared: Mapping[str, str] = field(default_factory=dict[str, str])

    def key(self, name: str) -> str:
        """Return the object of a file."""
        return self.shared.get(name, f"{self.folder}/{name}")

    @property
    def keys(self) -> list[str]:
        """All objects, the manifest first."""
        return [self.key(name) for name in sorted(self.files, key=lambda n: "/" in n)]

    @property
    def own(self) -> list[str]:
        """The objects in its folder, which it has put itself, the manifest first."""
        return [key for key in self.keys if key.startswith(f"{self.folder}/")]


@dataclass(frozen=True, slots=True)
class Commit:
    """What is in a store.

    Attributes:
        number: Its number; -1 where nothing was ever committed.
        epoch: How many saves there were.
        previous: The number of the one before, or None.
        generations: The generations.
        pins: The reasons of the pinned steps.
    """

    number: int = -1
    epoch: int = 0
    previous: int | None = None
    generations: Mapping[GenerationName, Stored] = field(
        default_factory=dict[GenerationName, Stored]
    )
    pins: Mapping[int, str] = field(default_factory=dict[int, str])

    @property
    def names(self) -> list[GenerationName]:
        """The generations, oldest first."""
        return sorted(self.generations)

    @property
    def keys(self) -> set[str]:
        """Every object that a generation has."""
        return {key for stored in self.generations.values() for key in stored.keys}


def retention_notes(sections: Mapping[str, object]) -> dict[str, object]:
    """Return of a manifest's sections what retention goes by."""
    return {key: sections[key] for key in (METRICS, RETENTION) if key in sections}


def folder_of(name: GenerationName, epoch: int) -> str:
    """Return a folder for a generation that nothing else has."""
    return f"{name}-{epoch}-{secrets.token_hex(8)}"


def epoch_of(folder: str) -> int | None:
    """Return the epoch of a generation's folder; None where it is none."""
    match = _FOLDER.match(folder)
    return None if match is None else int(match[4])


def _key(number: int) -> str:
    return f"commits/{number:012d}.json"


def encode(commit: Commit) -> bytes:
    """Return the bytes of a commit, which no other has."""
    body: dict[str, object] = {
        "format": FORMAT,
        "version": VERSIONS[any(stored.shared for stored in commit.generations.values())],
        "number": commit.number,
        "epoch": commit.epoch,
        "previous": commit.previous,
        "token": secrets.token_hex(16),
        "generations": {
            str(name): {
                "folder": stored.folder,
                "files": dict(stored.files),
                "notes": dict(stored.notes),
                **({"shared": dict(stored.shared)} if stored.shared else {}),
            }
            for name, stored in commit.generations.items()
        },
        "pins": {str(step): reason for step, reason in commit.pins.items()},
    }
    body["self_digest"] = digest(dumps(body))
    return dumps(body)


def parse(raw: bytes, number: int) -> Commit:
    """Check the bytes of a commit.

    Raises:
        CorruptCheckpointError: If anything in it is not as `encode` writes it.
        CheckpointError: If it needs a newer reader.
    """
    file = _key(number)
    body = as_object(loads(raw, file=file, limits=LIMITS)) or {}
    recorded = body.pop("self_digest", None)
    if recorded != digest(dumps(body)):
        raise CorruptCheckpointError(file, "its content does not have the digest that it names")
    if body.get("format") != FORMAT:
        raise CorruptCheckpointError(file, f"format is {shown(body.get('format'))}")
    version = body.get("version")
    if type(version) is not int or version not in VERSIONS:
        # Not damage: what a newer release wrote must not be passed over.
        raise CheckpointError(
            f"{file}: version {shown(version)}, this reader has {VERSIONS[-1]}: update the package"
        )
    previous, epoch = body.get("previous"), body.get("epoch")
    sound = body.keys() == _KEYS and body["number"] == number
    sound = sound and type(epoch) is int and epoch >= 0
    if not sound or not (previous is None or (type(previous) is int and 0 <= previous < number)):
        raise CorruptCheckpointError(file, "it is malformed")
    return Commit(
        number,
        cast("int", epoch),
        previous,
        _generations(body["generations"], file),
        _pins(body["pins"], file),
    )


def _generations(value: object, file: str) -> dict[GenerationName, Stored]:
    found: dict[GenerationName, Stored] = {}
    for text, item in (as_object(value) or {}).items():
        name, fields = parse_name(text), as_object(item) or {}
        folder, notes = fields.get("folder"), as_object(fields.get("notes"))
        files = as_object(fields.get("files")) or {}
        shared = as_object(fields.get("shared", {}))
        match = _FOLDER.match(folder) if isinstance(folder, str) else None
        if (
            name is None
            or match is None
            or match[1] != text
            or notes is None
            or shared is None
            or not shared.keys() <= files.keys()
            or not all(map(_is_key, shared.values()))
            or not all(map(_FILE.match, files))
            or any(type(size) is not int or size < 0 for size in files.values())
        ):
            raise CorruptCheckpointError(file, f"the generation {shown(text)} is malformed")
        found[name] = Stored(
            match[0], cast("dict[str, int]", files), notes, cast("dict[str, str]", shared)
        )
    return found


def _is_key(value: object) -> bool:
    """Say whether a value from a commit is the object of a file."""
    folder, _, name = value.partition("/") if isinstance(value, str) else ("", "", "")
    return bool(_FOLDER.match(folder) and _FILE.match(name))


def _pins(value: object, file: str) -> dict[int, str]:
    pins = as_object(value)
    if pins is None or any(
        not step.isdecimal() or len(step) > 19 or not isinstance(reason, str)
        for step, reason in pins.items()
    ):
        raise CorruptCheckpointError(file, "its pins are malformed")
    return {int(step): cast("str", reason) for step, reason in pins.items()}


def newest(store: Store) -> Commit:
    """Return the newest commit.

    Raises:
        CheckpointReadError: If it cannot be read.
        CheckpointError: If a newer release of this package wrote it.
    """
    try:
        return _newest(store)[0]
    except OSError as error:
        raise CheckpointReadError(store.name, "cannot be read", error) from error


def _newest(store: Store) -> tuple[Commit, int]:
    """Return the newest commit and the number that is free after it."""
    for _ in range(_ATTEMPTS):
        last = number = _last_number(store)
        while number >= 0:
            raw = store.read(_key(number))
            # Others have committed since it was found.
            if raw is None or raw == _SUPERSEDED:
                break
            try:
                return parse(raw, number), last + 1
            except CorruptCheckpointError as error:
                # A put that was cut off, which nobody was told had succeeded.
                warnings.warn(f"passed over a commit: {error}", CheckpointWarning, stacklevel=5)
            number -= 1
        if number < 0:
            return Commit(), last + 1
    raise OSError(errno.EIO, "its newest commit is damaged, or changes faster than it is read")


def _last_number(store: Store) -> int:
    """Return the greatest number that a commit has, or -1."""

    def there(number: int) -> bool:
        return store.read(_key(number)) is not None

    low = _seen.get(store.url, -1)
    if low >= 0 and not there(low):
        low = -1
    width = 1
    while there(low + width):
        low, width = low + width, 2 * width
    high = low + width
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if there(middle) else (low, middle)
    if low >= 0:
        _seen[store.url] = low
    return low


def change(store: Store, edit: Callable[[Commit], Commit | None]) -> Commit:
    """Commit what `edit` makes of the newest commit, which others may have changed meanwhile.

    Args:
        store: The store.
        edit: Returns the new one, or None where there is nothing to do. It is called again where
            the commit is not found under its number: another writer was quicker, or was followed
            so soon that it is emptied already. So it has to know its own work.

    Returns:
        The new one, or the newest where there was nothing to do.

    Raises:
        OSError: If it cannot be read or written. A put that failed may arrive yet.
    """
    for _ in range(_ATTEMPTS):
        old, number = _newest(store)
        edited = edit(old)
        if edited is None:
            return old
        previous = old.number if old.number >= 0 else None
        new = replace(edited, number=number, previous=previous)
        raw = encode(new)
        if store.settle(_key(number), raw) == raw:
            _seen[store.url] = number
            _empty(store, old.previous)
            return new
    raise OSError(errno.EBUSY, "other writers commit faster than this one")


def _empty(store: Store, number: int | None) -> None:
    if number is not None:
        try:
            store.put(_key(number), _SUPERSEDED)
        except OSError:
            return
