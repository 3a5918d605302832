"""An object store in memory that does to its users what stores and networks do.

It is a file system of fsspec, `faulty://NAME/...`, over the objects of `BUCKETS[NAME]`. By a seeded
plan a put gets lost, arrives late or twice, is cut off, or succeeds and is reported as failed; a
read or a removal fails; a listing shows an old state; the process dies before or after any call.
What is late arrives when other calls have been made, in any order. A put is late or cut off, never
both: a store takes whole bodies, and what is cut off is what a writer sees at once.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import fsspec
from fsspec.spec import AbstractFileSystem

# "told": the caller hears that it succeeded, whether or not it did; else it hears of an error.
PUT_FAULTS = (
    "lost",
    "lost told",
    "late",
    "late told",
    "twice",
    "torn",
    "torn told",
    "answer lost",
)
CALL_FAULTS = ("refused", "answer lost")


class KilledError(BaseException):
    """The process is dead; everything it asks of the store raises this again."""


class StoreError(OSError):
    """What the store or the network answers."""


@dataclass
class Bucket:
    """Objects, and what goes wrong with them.

    Attributes:
        objects: The objects by key.
        chance: How likely a put meets a fault.
        refusing: How likely another call does.
        lag: By how many changes a listing may be late.
        delay: How many calls what is late waits for at most.
        conditional: Whether it heeds puts that must not overwrite; None refuses them.
        seed: Of the plan.
        plan: Says which fault each put meets, by its key, instead of chance.
        hook: Called before each call with its number, as a second writer is.
        injected: How often each fault was.
        written: Bytes put.
    """

    seed: int = 0
    chance: float = 0.0
    refusing: float = 0.0
    lag: int = 0
    delay: int = 60
    conditional: bool | None = True
    objects: dict[str, bytes] = field(default_factory=dict)
    plan: Callable[[str], str] | None = None
    hook: Callable[[int], None] | None = None
    injected: Counter[str] = field(default_factory=Counter)
    written: int = 0
    calls: int = 0
    kill_at: int | None = None
    _late: list[tuple[int, Callable[[], object]]] = field(default_factory=list)
    _history: list[tuple[str, ...]] = field(default_factory=list)

    def __post_init__(self) -> None:
        """Seed the plan."""
        self._random = random.Random(self.seed)  # noqa: S311 - a plan, not a secret

    def begin(self, chance: float) -> bool:
        """Count a call, let late ones arrive, and say whether something goes wrong."""
        self.calls += 1
        if self.hook is not None:
            self.hook(self.calls)
        self._die()
        due = [work for call, work in self._late if call <= self.calls]
        self._late = [item for item in self._late if item[0] > self.calls]
        self._random.shuffle(due)
        for work in due:
            work()
        return self._random.random() < chance

    def end(self) -> None:
        """Die after a call where that is planned."""
        if self.kill_at == -self.calls:
            self.injected["killed after"] += 1
            self.kill_at = self.calls
        self._die()

    def _die(self) -> None:
        if self.kill_at is not None and 0 <= self.kill_at <= self.calls:
            self.injected["killed"] += self.kill_at == self.calls
            raise KilledError

    def settle(self) -> None:
        """Let everything arrive that is late."""
        late, self._late = self._late, []
        self._random.shuffle(late)
        for _, work in late:
            work()

    @contextmanager
    def sound(self) -> Iterator[None]:
        """Let nothing go wrong meanwhile; what is late stays late."""
        kept = self.chance, self.refusing, self.lag, self.kill_at, self.hook, self.plan
        late, self._late = self._late, []
        self.chance, self.refusing, self.lag = 0.0, 0.0, 0
        self.kill_at = self.hook = self.plan = None
        try:
            yield
        finally:
            self.chance, self.refusing, self.lag, self.kill_at, self.hook, self.plan = kept
            self._late = late

    def put(self, key: str, data: bytes, *, create: bool) -> None:
        """Put an object."""
        faulty = self.begin(self.chance)
        fault = self._random.choice(PUT_FAULTS) if faulty else ""
        if self.plan is not None:
            fault = self.plan(key)
        if fault:
            self.injected[fault] += 1
        kind = fault.removesuffix(" told")
        self.written += len(data)
        if create and self.conditional is None:
            raise NotImplementedError("A header you provided implies functionality not implemented")

        def arrive(body: bytes = data) -> bool:
            if create and self.conditional and key in self.objects:
                return False
            self.objects[key] = body
            self._history.append(tuple(self.objects))
            return True

        made = True
        if kind == "late":
            self._late.append((self.calls + self._random.randint(1, self.delay), arrive))
        elif kind == "torn":
            made = arrive(data[: self._random.randrange(max(len(data), 1))])
        elif kind != "lost":
            made = arrive()
        if kind == "twice":
            self._late.append((self.calls + self._random.randint(1, self.delay), arrive))
        self.end()
        if kind in ("lost", "late", "torn", "answer lost") and not fault.endswith("told"):
            raise StoreError(f"injected: {fault}")
        if not made:
            raise FileExistsError(key)

    def call(self, work: Callable[[], Any]) -> Any:
        """Do something else than a put."""
        fault = self._random.choice(CALL_FAULTS) if self.begin(self.refusing) else ""
        if fault:
            self.injected[fault] += 1
        if fault == "refused":
            raise StoreError("injected: refused")
        result = work()
        self.end()
        if fault:
            raise StoreError(f"injected: {fault}")
        return result

    def get(self, key: str) -> bytes:
        """Return an object."""
        if key not in self.objects:
            raise FileNotFoundError(key)
        return self.objects[key]

    def remove(self, key: str) -> None:
        """Remove an object."""
        self.get(key)
        del self.objects[key]
        self._history.append(tuple(self.objects))

    def listed(self) -> tuple[str, ...]:
        """Return the keys that a listing shows."""
        back = self._random.randint(0, self.lag)
        if back and self._history:
            self.injected["old listing"] += 1
            return self._history[max(len(self._history) - 1 - back, 0)]
        return tuple(self.objects)


BUCKETS: dict[str, Bucket] = {}


class FaultyFileSystem(AbstractFileSystem):
    """What fsspec knows of `BUCKETS`."""

    protocol = "faulty"
    cachable = False

    @classmethod
    def _strip_protocol(cls, path: Any) -> Any:
        return str(path).removeprefix("faulty://").rstrip("/")

    def _split(self, path: str) -> tuple[Bucket, str]:
        name, _, key = self._strip_protocol(path).partition("/")
        return BUCKETS[name], key

    def pipe_file(self, path: str, value: bytes, mode: str = "overwrite", **_: Any) -> None:
        """Put bytes."""
        bucket, key = self._split(path)
        bucket.put(key, bytes(value), create=mode == "create")

    def put_file(self, lpath: str, rpath: str, *_: Any, **__: Any) -> None:
        """Put a file."""
        self.pipe_file(rpath, Path(lpath).read_bytes())

    def cat_file(self, path: str, start: int | None = None, end: int | None = None, **_: Any):
        """Get bytes."""
        bucket, key = self._split(path)
        return bucket.call(lambda: bucket.get(key)[start:end])

    def get_file(self, rpath: str, lpath: str, *_: Any, **__: Any) -> None:
        """Get a file."""
        Path(lpath).write_bytes(self.cat_file(rpath))

    def info(self, path: str, **_: Any) -> dict[str, Any]:
        """Describe an object."""
        bucket, key = self._split(path)
        size = bucket.call(lambda: len(bucket.get(key)))
        return {"name": path, "size": size, "type": "file"}

    def ls(self, path: str, detail: bool = False, **_: Any) -> list[Any]:
        """List what is directly in a folder."""
        bucket, key = self._split(path)
        found = [k[len(key) + 1 :] for k in bucket.call(bucket.listed) if k.startswith(f"{key}/")]
        return [f"{path}/{name}" for name in dict.fromkeys(k.partition("/")[0] for k in found)]

    def find(self, path: str, *_: Any, **__: Any) -> list[str]:
        """List the objects under a folder."""
        bucket, key = self._split(path)
        name = self._strip_protocol(path).partition("/")[0]
        return [f"{name}/{k}" for k in bucket.call(bucket.listed) if k.startswith(f"{key}/")]

    def rm_file(self, path: str) -> None:
        """Remove an object."""
        bucket, key = self._split(path)
        bucket.call(lambda: bucket.remove(key))


fsspec.register_implementation("faulty", FaultyFileSystem, clobber=True)
