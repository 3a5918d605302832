"""Replay the committed search with halving, and write what it would have chosen.

    python packages/optim-bench/tools/replay.py

The evidence ran every learning rate on every tuning seed. A search that halves asks for some of
those runs alone, so that its choice follows from the committed losses, without training. Where it
chooses the same rate, everything after it is the same. Where it chooses the default rate, the
fresh seeds of that rate are committed as well, and the verdicts are computed anew.
"""

import copy
import dataclasses
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from optim_bench.protocol import Budget, Cell, next_specs, tuning_of
from optim_bench.records import FRAMEWORKS, RunRecord
from optim_bench.results.store import read_json, write_bytes
from optim_bench.results.verdicts import FRAMEWORK_TITLES, LABELS, compare_pairs

EVIDENCE = Path(__file__).resolve().parents[1] / "evidence"
PAGE = EVIDENCE / "search.md"

Item = Mapping[str, Any]


@dataclasses.dataclass(frozen=True)
class Replay:
    """What halving does with one search.

    Args:
        cell: as `results.json` has it.
        selected: the learning rate that it chooses, or None where it asks for a run that there is
            not.
        steps: search steps that it takes.
    """

    cell: Item
    selected: float | None
    steps: int

    @property
    def same(self) -> bool:
        """Whether it chooses what the whole grid did."""
        return self.selected == self.cell["tuning"]["selected"]


def replay(found: Item, budget: Budget) -> Replay:
    """Return what a budget that halves does with a measured cell."""
    rate = found["defaults"]["learning_rate"]
    names = (found["workload"], 1, found["framework"], found["optimizer"], found["label"])
    cell = Cell(*names, {"learning_rate": rate}, rate, 0.0, 1e3, found["steps"], found["schedule"])
    losses = {
        (trial["learning_rate"], seed): loss
        for trial in found["tuning"]["trials"]
        for seed, loss in enumerate(trial["val_loss"])
    }
    records: dict[str, RunRecord] = {}
    while specs := [s for s in next_specs(cell, budget, records) if s.seed in budget.tuning]:
        for spec in specs:
            place = (spec.hyperparameters["learning_rate"], spec.seed)
            if place not in losses:
                return Replay(found, None, (len(records) + 1) * found["steps"])
            records[spec.key()] = _record(spec, losses[place])
    return Replay(found, tuning_of(cell, budget, records).selected, len(records) * found["steps"])


def _record(spec: Any, loss: float | None) -> RunRecord:
    metrics: dict[str, float | None] = dict.fromkeys(("train_loss", "val_loss", "test_loss"), loss)
    status = "diverged" if loss is None else "ok"
    return RunRecord(spec, status, metrics, {}, 0, 0, 0, {}, {}, None)


def replays(results: Item) -> list[Replay]:
    """Return the replay of every search of the evidence."""
    budget = dataclasses.replace(Budget(**results["protocol"]["budget"]), halving=True)
    return [replay(cell, budget) for cell in results["cells"]]


def verdicts(results: Item, found: Sequence[Replay]) -> list[tuple[Item, Item]]:
    """Return the registered comparisons, before and with the rates that halving chooses."""
    family = set(results["protocol"]["family"])
    cells = {r.cell["name"]: _as_chosen(r) for r in found}
    pairs: list[tuple[Item, Item]] = []
    for framework in FRAMEWORKS:
        before = [
            c for c in results["comparisons"] if c["name"] in family and c["framework"] == framework
        ]
        sides = [
            (cells[c["name"]], cells[f"{c['workload']}/{framework}/{c['baseline']}"])
            for c in before
        ]
        after = compare_pairs(sides, [True] * len(sides), defaults_due=True)
        pairs += zip(before, after, strict=True)
    return pairs


def _as_chosen(found: Replay) -> Item:
    if found.same:
        return found.cell
    cell = copy.deepcopy(dict(found.cell))
    at_default = found.selected == cell["defaults"]["learning_rate"]
    if not at_default:
        raise ValueError(f"{cell['name']}: no fresh seeds at {found.selected}; train them")
    cell["fresh"] = {name: cell["defaults"][name] for name in cell["fresh"]}
    cell["tuning"]["selected"] = found.selected
    return cell


def page(results: Item) -> str:
    """Return the page."""
    return "\n".join(_page(results)) + "\n"


def _page(results: Item) -> Iterator[str]:
    found = replays(results)
    before = sum(cell["tuning"]["steps"] for cell in results["cells"])
    after = sum(r.steps for r in found)
    other = [r for r in found if not r.same]
    pairs = verdicts(results, found)
    changed = [(a, b) for a, b in pairs if a["verdict"] != b["verdict"]]
    yield "# The search, halved"
    yield ""
    yield (
        "A replay of the committed searches by the rule that `optim-bench run` has today, from the "
        "losses in `results.json`: the centre and its neighbours on the first tuning seed, one "
        "rate further while the best is at the edge, and on each further seed the better half, at "
        "least three. Nothing was trained for it."
    )
    yield ""
    yield "    python packages/optim-bench/tools/replay.py"
    yield ""
    yield (
        f"- Search steps: {after:,} of {before:,}, a share of {after / before:.3f} "
        f"({sum(r.steps // r.cell['steps'] for r in found):,} of "
        f"{sum(r.cell['tuning']['steps'] // r.cell['steps'] for r in found):,} runs)."
    )
    yield f"- Learning rates: {len(found) - len(other)} of {len(found)} searches choose the same."
    yield f"- Verdicts: {len(pairs) - len(changed)} of {len(pairs)} registered tests are the same."
    yield ""
    yield "| | searches | the same rate | share of the steps |"
    yield "|---|--:|--:|--:|"
    for framework in FRAMEWORKS:
        for workload in dict.fromkeys(r.cell["workload"] for r in found):
            mine = [
                r
                for r in found
                if (r.cell["framework"], r.cell["workload"]) == (framework, workload)
            ]
            share = sum(r.steps for r in mine) / sum(r.cell["tuning"]["steps"] for r in mine)
            title = f"{FRAMEWORK_TITLES[framework]}, {workload}"
            yield f"| {title} | {len(mine)} | {sum(r.same for r in mine)} | {share:.2f} |"
    yield ""
    yield "## Searches that would have chosen otherwise"
    yield ""
    yield (
        "Their validation losses have more than one valley over the learning rates, and the first "
        "tuning seed ends the search in another one. Loss: geometric mean over three tuning seeds."
    )
    yield ""
    yield "| search | whole grid | its loss | halved | its loss | worse by |"
    yield "|---|--:|--:|--:|--:|--:|"
    for one in other:
        was, now = one.cell["tuning"]["selected"], one.selected
        scores = {t["learning_rate"]: t["mean_log_val_loss"] for t in one.cell["tuning"]["trials"]}
        gap = math.expm1(scores[now] - scores[was])
        yield (
            f"| {one.cell['name']} | {was:g} | {math.exp(scores[was]):.4g} | {now:g} "
            f"| {math.exp(scores[now]):.4g} | {100 * gap:.1f} % |"
        )
    yield ""
    yield "## Verdicts that would have been others"
    yield ""
    yield (
        "Each of these searches chooses the default rate, whose fresh seeds are committed; the "
        "verdicts are after Holm over each framework's family, as before."
    )
    yield ""
    yield "| test | before | ratio | with the halved search | ratio |"
    yield "|---|---|--:|---|--:|"
    for a, b in changed:
        yield (
            f"| {a['name']} | {LABELS[a['verdict']]} | {a['ratio']:.3f} "
            f"| {LABELS[b['verdict']]} | {b['ratio']:.3f} |"
        )


def main() -> None:
    """Write the page."""
    results = read_json(EVIDENCE / "results.json")
    write_bytes(PAGE, page(json.loads(json.dumps(results))).encode())


if __name__ == "__main__":
    main()
