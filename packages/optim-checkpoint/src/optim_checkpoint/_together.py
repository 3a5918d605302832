# pyright: strict
"""A save by several processes: each writes what it holds, one commits when all of it is durable.

1. every process claims what it will write and tells the others a few numbers, by which all see that
   the claims make up the whole; only where they do not, all tell each other what they have and make
   a plan of who writes what. A tensor that several hold is written once;
2. process 0 takes the lock, checks the space and makes the temporary folder;
3. every process writes its files there, syncs them and their folder, and hashes the copies it holds
   of what another writes: copies that differ cannot all be restored;
4. process 0 gathers the digests, sees that every file is there, writes the manifest and renames the
   folder.

After each step all have succeeded or all raise. Until the rename no reader sees anything.
"""

import contextlib
import dataclasses
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import cast

from optim_checkpoint import _fs
from optim_checkpoint._boxes import Shape
from optim_checkpoint._claims import claim, settle
from optim_checkpoint._commit import (
    SLACK,
    Document,
    Record,
    check_sealed,
    check_space,
    make_temporary,
    prepare,
    publish,
    seal,
    sync_parts,
    with_policy,
    write_error,
    write_files,
)
from optim_checkpoint._digest import new_tensor_digest
from optim_checkpoint._errors import CheckpointWriteError, UnsupportedStateError, shown
from optim_checkpoint._files import PlannedFile
from optim_checkpoint._folder import StrPath, check_in_place, locked, make_root
from optim_checkpoint._options import Options
from optim_checkpoint._peers import Answer, Team
from optim_checkpoint._place import on_disk
from optim_checkpoint._plan import (
    Place,
    Plan,
    Ranked,
    check_same,
    describe,
    make_plan,
    place_of,
    unread,
)
from optim_checkpoint._policy import Policy
from optim_checkpoint._retention import discard, try_retire
from optim_checkpoint._shard import CHUNK, Entry, Layout


def save_together(
    path: StrPath,
    build: Callable[[], Document],
    team: Team,
    options: Options,
) -> Path:
    """Write one generation from several processes.

    Args:
        path: The folder of the run, on a file system that all processes share.
        build: Describes what this process holds.
        team: The processes; every one of them makes this call.
        options: How to go about it; equal in all of them.

    Returns:
        The path of the committed generation.

    Raises:
        UnsupportedStateError: If processes differ in what must be equal, or shards do not make up
            the whole.
        CheckpointExistsError: If the step exists undamaged and `replace` is false.
        CheckpointWriteError: If one process cannot write or is gone. Nothing was committed then,
            unless that happened at the very end; process 0 says so where it did.
    """
    path = on_disk(path, "a save by several processes")
    limit = options.max_shard_size
    made: list[Document] = []
    claims: list[Plan] = []
    policies: list[Policy] = []

    def claim_own() -> Answer:
        # In here, so that an error is one in all of them.
        policies.append(options.policy)
        if options.incremental:
            raise CheckpointWriteError(
                "incremental=True is for a save by one process: several processes save in full"
            )
        made.append(build())
        plan, answer = claim(made[0], team.rank, limit)
        claims.append(plan)
        return answer

    answers = team.agree(claim_own)
    document = made[0]
    plan = settle(claims[0], answers, team.rank, limit)
    if plan is None:
        described = team.agree(lambda: describe(document))
        check_same(described)
        plan = make_plan(described, document, team.rank, limit)
    needed = plan.needed + SLACK
    lead = _Lead(path, document, plan, needed) if team.rank == 0 else None

    def guarded(work: Callable[[], Answer] | None) -> Callable[[], Answer]:
        def run() -> Answer:
            try:
                return {} if work is None else work()
            except OSError as error:
                raise write_error(path, document.step, needed, error) from error

        return run

    try:
        begun = team.agree(
            guarded(lead and (lambda: lead.begin(policies[0], replace=options.replace)))
        )
        temporary = str(begun[0]["temporary"])
        written: list[Answer] = []

        def write() -> Answer:
            written.append(_write(Path(path) / temporary, document, plan, team.rank))
            return {}

        team.agree(guarded(write))
        gathered = team.gather(written[0])
        finished = team.agree(guarded(lead and (lambda: lead.finish(gathered))))
    except BaseException as error:
        if lead is not None:
            lead.give_up(error)
        raise
    if lead is not None:
        lead.close()
    return Path(path) / str(finished[0]["generation"])


def _write(folder: Path, document: Document, plan: Plan, rank: int) -> Answer:
    records: list[Record] = []
    if plan.files:
        try:
            opened = _fs.open_folder(folder)
        except FileNotFoundError:
            raise CheckpointWriteError(
                f"{folder} is not visible to process {rank}: all processes need one file system"
            ) from None
        with _fs.opened(opened):
            records = write_files(opened, plan.files, {})
            sync_parts(opened, plan.files)
    # An index lists them, of files without shards.
    sizes = [
        {} if file.offsets else {entry.name: entry.nbytes for entry in file.layout.entries}
        for file in plan.files
    ]
    return {
        "records": records,
        "sizes": sizes,
        "copies": [[*place_of(part, entry), _digest_of(entry)] for part, entry in plan.copies],
        "own": dict(document.own or {}),
        "features": sorted(document.features),
    }


def _digest_of(entry: Entry) -> str:
    state = new_tensor_digest(entry.name, entry.dtype, entry.shape)
    data = entry.read().cast("B") if entry.nbytes else memoryview(b"")
    for start in range(0, len(data), CHUNK):
        state.update(data[start : start + CHUNK])
    return state.hexdigest()


def _check_copies(gathered: Ranked) -> None:
    stored: dict[Place, tuple[str, int]] = {}
    for rank, answer in enumerate(gathered):
        for record in cast("list[Record]", answer["records"]):
            part = str(record["name"]).partition("/")[0]
            offsets = cast("Mapping[str, list[int]]", record.get("offsets", {}))
            for key, text in cast("Mapping[str, str]", record["tensors"]).items():
                place = part, key, tuple(offsets[key]) if key in offsets else None
                stored[place] = text, rank
    for rank, answer in enumerate(gathered):
        for part, key, offset, text in cast("list[list[object]]", answer["copies"]):
            box = None if offset is None else tuple(cast("list[int]", offset))
            found, owner = stored.get((str(part), str(key), box), ("", None))
            if owner is None:
                raise UnsupportedStateError(
                    shown(key)[1:-1], f"process {rank} holds a copy of it, no process wrote it"
                )
            if found != text:
                raise UnsupportedStateError(
                    shown(key)[1:-1],
                    f"process {owner} and process {rank} hold different values of what should be "
                    "replicated; make them equal (for instance by a broadcast)",
                )


def _listed(gathered: Ranked) -> tuple[list[Record], list[PlannedFile]]:
    """Return what was written by name: for the manifest, and for the indexes."""
    records: list[Record] = []
    files: list[PlannedFile] = []
    for answer in gathered:
        sizes = cast("list[dict[str, int]]", answer["sizes"])
        for record, listed in zip(cast("list[Record]", answer["records"]), sizes, strict=True):
            part, _, base = str(record["name"]).partition("/")
            entries = tuple(Entry(name, "U8", (size,), unread) for name, size in listed.items())
            layout = Layout(entries, b"", cast("int", record["size"]))
            offsets = cast("Mapping[str, Shape]", record.get("offsets", {}))
            records.append(record)
            files.append(PlannedFile(part, base, layout, offsets))
    records.sort(key=lambda record: str(record["name"]))
    files.sort(key=lambda file: (file.part, file.base))
    return records, files


def _features(gathered: Ranked) -> set[str]:
    return {name for answer in gathered for name in cast("list[str]", answer["features"])}


class _Lead:
    """What process 0 does beside its own files."""

    def __init__(self, path: StrPath, document: Document, plan: Plan, needed: int) -> None:
        self._path = path
        self._document = document
        self._plan = plan
        self._needed = needed
        self._stack = contextlib.ExitStack()
        self._temporary = ""
        self._committed = ""

    def begin(self, policy: Policy, *, replace: bool) -> Answer:
        """Take the lock and make the temporary folder."""
        step = self._document.step
        self._policy = policy
        self._root = self._stack.enter_context(_fs.opened(make_root(self._path)))
        self._stack.enter_context(locked(self._root, self._path))
        self._target, self._present = prepare(self._root, self._path, step, replace=replace)
        check_space(self._root, self._path, self._needed)
        self._temporary = make_temporary(self._root, self._target)
        self._folder = self._stack.enter_context(
            _fs.opened(_fs.open_folder(self._temporary, self._root))
        )
        for part, count in self._plan.counts.items():
            if count:
                _fs.ops.make_folder(part, self._folder)
        return {"temporary": self._temporary}

    def finish(self, gathered: Ranked) -> Answer:
        """Commit what all have written."""
        _check_copies(gathered)
        records, files = _listed(gathered)
        for record in records:
            self._check_there(str(record["name"]), cast("int", record["size"]))
        document = with_policy(
            dataclasses.replace(
                self._document, sections=self._sections(gathered), features=_features(gathered)
            ),
            self._policy,
            self._present,
        )
        seal(self._folder, files, records, document, self._plan.shards or None)
        check_sealed(self._root, self._temporary, self._target)
        publish(self._root, self._temporary, self._target)
        self._committed = str(self._target)
        check_in_place(self._root, self._path, self._document.step)
        try_retire(self._root, self._target, self._present, self._policy, document.sections)
        return {"generation": self._committed}

    def _check_there(self, name: str, size: int) -> None:
        try:
            status = os.stat(name, dir_fd=self._folder, follow_symlinks=False)
        except FileNotFoundError:
            raise CheckpointWriteError(
                f"{name} was written by another process and is not visible to process 0: all "
                "processes need one file system"
            ) from None
        if status.st_size != size:
            raise CheckpointWriteError(
                f"{name} has {status.st_size} bytes where process 0 sees it, {size} were written"
            )

    def _sections(self, gathered: Ranked) -> dict[str, object]:
        sections = dict(self._document.sections)
        own = [answer["own"] for answer in gathered]
        if any(own):
            train = cast("dict[str, object]", sections.get("train", {}))
            sections["train"] = {**train, "ranks": own}
        return sections

    def close(self) -> None:
        """Give the lock back."""
        self._stack.close()

    def give_up(self, error: BaseException) -> None:
        """Take away what was written, unless it is committed."""
        with self._stack:
            if self._committed:
                raise CheckpointWriteError(
                    f"step {self._document.step} is committed in {os.fspath(self._path)}, but: "
                    f"{error}"
                ) from error
            if self._temporary:
                discard(self._temporary, self._root)
