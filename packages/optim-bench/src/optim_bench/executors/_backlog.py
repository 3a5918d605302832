"""What waits to run, and what a worker takes next.

A compiled step serves every learning rate and seed of an optimizer on a workload, so a worker stays
with one such group while it lasts, and prefers the framework that it has loaded.
"""

from collections.abc import Collection

from optim_bench.records import RunSpec

Group = tuple[str, str, str]


def group_of(spec: RunSpec) -> Group:
    """Return what one compiled program serves: framework, workload, optimizer."""
    return (spec.framework, spec.workload, spec.optimizer)


class Backlog:
    """Queued specs, in the order in which they came."""

    def __init__(self) -> None:
        self._specs: list[RunSpec] = []

    def __len__(self) -> int:
        return len(self._specs)

    def add(self, spec: RunSpec) -> None:
        """Queue a spec."""
        self._specs.append(spec)

    def put_back(self, specs: Collection[RunSpec]) -> None:
        """Queue specs that were taken and never ran, before all others."""
        self._specs[:0] = specs

    def withdraw(self, keys: Collection[str]) -> list[str]:
        """Forget the specs of these keys, and return the keys of those that were there."""
        gone = [key for spec in self._specs if (key := spec.key()) in keys]
        self._specs = [spec for spec in self._specs if spec.key() not in gone]
        return gone

    def clear(self) -> None:
        """Forget everything."""
        self._specs.clear()

    def take(self, mine: Group | None, others: Collection[Group | None]) -> RunSpec:
        """Take the spec that costs a worker least to begin.

        Args:
            mine: the group that the worker is at, None for a fresh worker.
            others: the groups that the other workers are at.
        """
        frameworks = {group[0] for group in others if group}

        def cost(index: int) -> tuple[bool, bool, bool, int]:
            group = group_of(self._specs[index])
            elsewhere = mine is not None and group[0] != mine[0]
            shared = mine is None and group[0] in frameworks
            return (group != mine, group in others, elsewhere or shared, index)

        return self._specs.pop(min(range(len(self._specs)), key=cost))

    def take_batch(self, size: int, others: Collection[Group | None]) -> list[RunSpec]:
        """Take up to `size` specs of one group, one that no other worker is at if there is any."""
        first = self.take(None, others)
        batch = [first]
        batch += [spec for spec in self._specs if group_of(spec) == group_of(first)][: size - 1]
        chosen = {id(spec) for spec in batch}
        self._specs = [spec for spec in self._specs if id(spec) not in chosen]
        return batch
