"""Carry a plan out: tell the executor what to run next until every cell is done.

The loop keeps no state of its own: what runs next is a function of the plan and of the records in
the store, so starting it again after a kill is all that resuming takes.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from optim_bench.errors import BenchError
from optim_bench.executors import Executor
from optim_bench.protocol import (
    Budget,
    Cell,
    Phase,
    Plan,
    expected_runs,
    known_specs,
    next_specs,
    phase_of,
)
from optim_bench.records import RunRecord, RunSpec
from optim_bench.results.store import Store


@dataclass(frozen=True)
class CellProgress:
    """Where a cell stands: its phase, its finished runs, and how many it takes as far as known."""

    phase: Phase
    finished: int
    expected: int


@dataclass(frozen=True)
class Progress:
    """Where a comparison stands.

    Args:
        cells: cell name -> where it stands.
        new: runs finished since this start.
        record: the run that just finished, or None at the start.
    """

    cells: Mapping[str, CellProgress]
    new: int
    record: RunRecord | None

    @property
    def finished(self) -> int:
        """Runs of the plan that are in the store."""
        return sum(cell.finished for cell in self.cells.values())

    @property
    def expected(self) -> int:
        """Runs the plan takes if no grid has to grow any further."""
        return sum(cell.expected for cell in self.cells.values())


def progress_of(plan: Plan, records: Mapping[str, RunRecord]) -> Progress:
    """Return where a comparison stands, from its records alone."""
    cells: dict[str, CellProgress] = {}
    for cell in plan.cells:
        known = known_specs(cell, plan.budget, records)
        finished = sum(spec.key() in records for spec in known)
        expected = expected_runs(cell, plan.budget, records)
        cells[cell.name] = CellProgress(phase_of(cell, plan.budget, records), finished, expected)
    return Progress(cells, 0, None)


def failed_runs(plan: Plan, records: Mapping[str, RunRecord]) -> list[str]:
    """Return the keys of the plan's failed runs; what an earlier plan left stays as it is."""
    known = {s.key() for cell in plan.cells for s in known_specs(cell, plan.budget, records)}
    return [key for key in records if key in known and records[key].status == "failed"]


# One run may have met a bad moment of the machine; after two and none that worked, the optimizer is
# broken, and the rest of its plan would fail the same way.
HOPELESS_AFTER = 2

Listener = Callable[[Progress], None]


def run_campaign(plan: Plan, store: Store, executor: Executor, listener: Listener) -> None:
    """Run what the plan still needs, keeping each record as soon as it is there.

    A cell whose first runs all failed is given up, and stays incomplete until `retry`.

    Args:
        plan: what is compared.
        store: an opened store; runs in it are not repeated.
        executor: who trains. It is not closed here.
        listener: told once at the start and after each run.

    Raises:
        BenchError: a task or a factory does not do what its interface says, which would spoil every
            run of it.
    """
    records = store.records()
    starts = _Starts()
    for record in records.values():
        starts.take_in(record)
    cells = {cell.name: _CellState(cell, plan.budget) for cell in plan.cells}
    # Two cells may need one run, for example a variant that spells out the defaults.
    owners: dict[str, list[_CellState]] = {}

    def advance(state: _CellState) -> None:
        for spec in state.update(records):
            if spec.key() not in owners:
                executor.submit(spec)
            owners.setdefault(spec.key(), []).append(state)

    def report(record: RunRecord | None, new: int) -> None:
        states = {
            name: CellProgress(state.phase, state.finished, state.expected)
            for name, state in cells.items()
        }
        listener(Progress(states, new, record))

    for state in cells.values():
        advance(state)
    report(None, 0)
    new = 0
    while owners:
        record = executor.wait()
        check_task(record)
        starts.check(record)
        store.write(record)
        records[record.spec.key()] = record
        new += 1
        states = owners.pop(record.spec.key())
        for state in states:
            state.in_flight -= 1
            state.finished += 1
            state.count(record)
        hopeless = {key for key, mine in owners.items() if all(s.hopeless for s in mine)}
        for key in executor.withdraw(hopeless) if hopeless else ():
            for state in owners.pop(key):
                state.in_flight -= 1
        for state in states:
            if state.in_flight == 0 and not state.hopeless:
                advance(state)
        report(record, new)


# Of a task, or of how an optimizer is made: no run of theirs can be any better.
_OF_NO_RUN = ("TaskError: ", "FactoryError: ")


def check_task(record: RunRecord) -> None:
    """Refuse to go on where it was the task that failed, or no optimizer was made.

    Raises:
        BenchError: it was.
    """
    if record.error is not None and record.error.startswith(_OF_NO_RUN):
        raise BenchError(record.error.partition(": ")[2])


class _Starts:
    """What runs of one task and seed started from, which is the same for every optimizer."""

    def __init__(self) -> None:
        self._seen: dict[tuple[str, ...], tuple[str, str]] = {}

    def take_in(self, record: RunRecord) -> tuple[str, str] | None:
        """Remember what a run started from; return what another one of its kind did."""
        if record.start is None or record.status == "failed":
            return None
        spec = record.spec
        # Only what shares its task's source: of two versions of a task, each has its own.
        own = "" if spec.task is None else f"{spec.workload_version} {spec.steps}"
        key = (spec.workload, own, spec.framework, str(spec.seed))
        return self._seen.setdefault(key, (record.start, spec.optimizer))

    def check(self, record: RunRecord) -> None:
        """Refuse a run that cannot be paired with those before it.

        Raises:
            BenchError: it started from something else.
        """
        known = self.take_in(record)
        if known is None or known[0] == record.start:
            return
        spec = record.spec
        pairs = zip(known[0].split("/"), str(record.start).split("/"), strict=False)
        same = next((i for i, (left, right) in enumerate(pairs) if left != right), 0)
        what = ("initial parameters", "batches")[min(same, 1)]
        raise BenchError(
            f"{spec.workload}: {known[1]} and {spec.optimizer} did not start seed {spec.seed} from "
            f"the same {what}, so they cannot be compared in pairs; let the task draw them from "
            "the seed alone"
        )


class _CellState:
    """A cell with its running counts: looking through every record after each run would be slow."""

    def __init__(self, cell: Cell, budget: Budget) -> None:
        self.cell = cell
        self.budget = budget
        self.in_flight = self.finished = self.expected = 0
        self.failed, self.worked = 0, False
        self.phase = Phase.TUNING

    @property
    def hopeless(self) -> bool:
        """Whether runs failed and none worked."""
        return self.failed >= HOPELESS_AFTER and not self.worked

    def count(self, record: RunRecord) -> None:
        """Take in how a run ended."""
        if record.status == "failed":
            self.failed += 1
        else:
            self.worked = True

    def update(self, records: Mapping[str, RunRecord]) -> list[RunSpec]:
        """Look at the records anew and return the runs to submit."""
        specs = next_specs(self.cell, self.budget, records)
        known = known_specs(self.cell, self.budget, records)
        self.failed = 0
        for spec in known:
            if (record := records.get(spec.key())) is not None:
                self.count(record)
        if self.hopeless:
            specs = []
        self.in_flight = len(specs)
        self.finished = sum(spec.key() in records for spec in known)
        self.expected = expected_runs(self.cell, self.budget, records)
        self.phase = phase_of(self.cell, self.budget, records)
        return specs
