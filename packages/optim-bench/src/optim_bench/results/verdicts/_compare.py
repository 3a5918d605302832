"""Paired comparisons with the tuned baseline, and the rule that turns them into a verdict.

The verdict of a test in the pre-registered family follows from Holm's adjusted sign-flip p-value
alone. It is withheld wherever a condition of a fair comparison is missing, in this order:

    incomplete     runs are missing or failed on either side, or of the baseline at its default rate
    diverged       either side diverged at every learning rate tried
    under-tuned    either side's best learning rate is at the edge of its grid
    unstable       a fresh run of either side diverged
    exploratory    the comparison was not registered, or was entered after the first results
    too few seeds  no outcome could have reached the level with so many seeds and tests
    not confirmed  better than the tuned baseline, and not than the baseline at its default rate

The last one is there because a search can mislead: with few tuning seeds the selected learning rate
of the baseline may be worse on fresh seeds than its default, which everybody has for nothing. Where
a tier runs the defaults on the fresh seeds, "better" has to hold against both, each with Holm's
correction over the family.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from optim_bench.protocol import ALPHA, LEVEL, Plan, added_of, family_of
from optim_bench.results.stats import (
    PairedComparison,
    compare_paired,
    holm,
    reachable,
    smallest_detectable,
    smallest_p_value,
)
from optim_bench.results.verdicts._cells import fresh_losses
from optim_bench.results.verdicts._range import exp, log_ratio

Measured = Mapping[str, Any]
# One pair has a ratio and no interval.
SMALLEST_INTERVAL = 2


def compare_cells(plan: Plan, cells: Sequence[Measured], framework: str) -> list[dict[str, Any]]:
    """Compare every optimizer of a framework with its baseline.

    Args:
        plan: names the family and the baseline.
        cells: as `measure_cell` returns them, of all frameworks.
        framework: the one to compare within; frameworks are never compared with each other.

    Returns:
        One comparison per cell that is not a baseline, in the order of the cells.
    """
    mine = [cell for cell in cells if cell["framework"] == framework]
    baselines = {cell["workload"]: cell for cell in mine if cell["label"] == plan.baseline}
    others = [cell for cell in mine if cell["label"] != plan.baseline]
    pairs = [(cell, baselines[cell["workload"]]) for cell in others]
    family = family_of(plan, framework)
    registered = [cell["name"] in family for cell in others]
    found = compare_pairs(pairs, registered, defaults_due=plan.budget.defaults)
    _name_twins(found, pairs, registered)
    if late := set(added_of(plan, framework)):
        # What came later is corrected with all that was there; what was there stays as it was.
        joined = [
            cell["name"] in late or mine for cell, mine in zip(others, registered, strict=True)
        ]
        together = compare_pairs(pairs, joined, defaults_due=plan.budget.defaults)
        found = [
            _entered_later(after) if after["name"] in late else before
            for before, after in zip(found, together, strict=True)
        ]
    return found


def _name_twins(
    found: Sequence[dict[str, Any]],
    pairs: Sequence[tuple[Measured, Measured]],
    registered: Sequence[bool],
) -> None:
    """Say of what is no test whether its runs are those of one that is, or of the baseline."""
    cells = [cell for (cell, _), test in zip(pairs, registered, strict=True) if test]
    titles = {_keys(cell): cell["title"] for cell in [*(b for _, b in pairs), *cells]}
    for comparison, (cell, _) in zip(found, pairs, strict=True):
        if comparison["verdict"] == "exploratory" and _keys(cell) in titles:
            reason = f"it has the runs of {titles[_keys(cell)]} and is no test beside it"
            comparison["reason"] = reason


def _keys(cell: Measured) -> tuple[str, ...]:
    return tuple(run["key"] for run in cell["fresh"]["runs"])


def _entered_later(comparison: dict[str, Any]) -> dict[str, Any]:
    """Return a comparison whose verdict is that it was entered after the first results."""
    if comparison["verdict"] not in {"better", "worse", "no difference", "not confirmed"}:
        return comparison
    p_value, tests = comparison["p_adjusted"], comparison["tests"]
    said = f"p = {p_value:.2g} after Holm over {tests} tests, with the family that it joined"
    reason = f"entered after the first results ({said})"
    return {**comparison, "verdict": "exploratory", "reason": reason, "tests": None}


def compare_pairs(
    pairs: Sequence[tuple[Measured, Measured]], registered: Sequence[bool], *, defaults_due: bool
) -> list[dict[str, Any]]:
    """Compare the first cell of each pair with the second, which is its baseline.

    Args:
        pairs: measured cells, the two of a pair of one workload and framework.
        registered: for each pair whether its test shares the corrected level.
        defaults_due: whether the tier runs the second one's default rate on the fresh seeds.
    """
    paired = [
        compare_paired(fresh_losses(cell), fresh_losses(baseline), level=LEVEL)
        for cell, baseline in pairs
    ]
    defaults = [_against_default(cell, baseline) for cell, baseline in pairs]
    # A test that cannot be carried out stays in the family, with the weakest p-value there is.
    family = [index for index, mine in enumerate(registered) if mine]
    p_values = [_or_one(paired[index].p_value) for index in family]
    adjusted = dict(zip(family, holm(p_values), strict=True))
    at_default = [_or_one(d.p_value if (d := defaults[index]) else None) for index in family]
    confirmed = dict(zip(family, holm(at_default), strict=True))
    levels = dict(zip(family, _levels(p_values), strict=True))
    smallest = [smallest_p_value(paired[index].pairs) for index in family]
    within_reach = dict(zip(family, reachable(smallest, ALPHA), strict=True))
    return [
        _comparison(
            cell,
            baseline,
            paired[index],
            defaults[index],
            confirmed=confirmed.get(index),
            adjusted=adjusted.get(index),
            within_reach=within_reach.get(index, False),
            tests=len(family),
            defaults_due=defaults_due,
            level=levels.get(index),
        )
        for index, (cell, baseline) in enumerate(pairs)
    ]


def _levels(p_values: Sequence[float]) -> list[float]:
    """Return the level of each test's interval that Holm's procedure leaves it.

    The k-th smallest of m p-values meets alpha / (m - k + 1); equal ones meet what the first does.
    """
    return [
        1 - ALPHA / (len(p_values) - sum(other < value for other in p_values)) for value in p_values
    ]


def _against_default(cell: Measured, baseline: Measured) -> PairedComparison | None:
    """Compare with the baseline at its default learning rate, where it trained on every seed.

    A divergence there confirms nothing and withholds nothing; runs that failed or are missing
    withhold the verdict.
    """
    found = baseline["defaults"]
    if not found["planned"] or found["ok"] < found["planned"]:
        return None
    return compare_paired(fresh_losses(cell), fresh_losses(baseline, "defaults"), level=LEVEL)


def _comparison(
    cell: Measured,
    baseline: Measured,
    paired: PairedComparison,
    default: PairedComparison | None,
    *,
    confirmed: float | None,
    adjusted: float | None,
    within_reach: bool,
    tests: int,
    defaults_due: bool,
    level: float | None,
) -> dict[str, Any]:
    # Holm's first and hardest step: an effect found there is found wherever it ranks.
    alpha = ALPHA / tests if adjusted is not None else ALPHA
    detectable = (
        None
        if paired.deviation is None
        else smallest_detectable(paired.deviation, paired.pairs, alpha=alpha)
    )
    verdict, reason = _verdict(
        cell,
        baseline,
        paired,
        adjusted,
        within_reach=within_reach,
        defaults_due=defaults_due,
    )
    against = _default_row(default, confirmed)
    if verdict == "better" and default is not None and not _confirms(default, confirmed):
        verdict = "not confirmed"
        words = _default_in_words(default, confirmed)
        reason = f"{baseline['title']} at its default learning rate {words}"
    if not reason:
        reason = _missing_bound(paired)
    return {
        "name": cell["name"],
        "workload": cell["workload"],
        "framework": cell["framework"],
        "label": cell["label"],
        "title": cell["title"],
        "baseline": baseline["label"],
        "pairs": paired.pairs,
        "ratio": exp(paired.log_ratio),
        "low": exp(paired.low),
        "high": exp(paired.high),
        "p_value": paired.p_value,
        "p_adjusted": adjusted if paired.p_value is not None else None,
        "tests": tests if adjusted is not None else None,
        "detectable_ratio": exp(detectable),
        "log_ratios": _log_ratios(cell, baseline),
        "against_default": against,
        "verdict": verdict,
        "reason": reason,
        **({} if level is None else {"adjusted": _adjusted(cell, baseline, level)}),
        **({"judged": cell["judged"]} if "judged" in cell else {}),
    }


def _adjusted(cell: Measured, baseline: Measured, level: float) -> dict[str, float | None]:
    """Return the interval of a registered comparison at the level that Holm leaves it."""
    found = compare_paired(fresh_losses(cell), fresh_losses(baseline), level=level)
    return {"level": level, "low": exp(found.low), "high": exp(found.high)}


def _default_row(
    default: PairedComparison | None, adjusted: float | None
) -> dict[str, float | None] | None:
    if default is None:
        return None
    return {
        "ratio": exp(default.log_ratio),
        "low": exp(default.low),
        "high": exp(default.high),
        "p_value": default.p_value,
        "p_adjusted": adjusted if default.p_value is not None else None,
    }


def _confirms(default: PairedComparison, adjusted: float | None) -> bool:
    found = default.log_ratio
    return found is not None and found < 0 and _or_one(adjusted) <= ALPHA


def _default_in_words(default: PairedComparison, adjusted: float | None) -> str:
    if default.log_ratio is None or adjusted is None:
        return "cannot be compared"
    clear = default.log_ratio > 0 and adjusted <= ALPHA
    word = "is better" if clear else "is not detectably worse"
    ratio = exp(default.log_ratio)
    said = "" if ratio is None else f"ratio {ratio:.2f}, "
    return f"{word} ({said}p = {adjusted:.2g})"


def _missing_bound(paired: PairedComparison) -> str:
    """Say why a ranked comparison has no ratio or no interval, nothing where it has both."""
    if paired.log_ratio is None or paired.pairs < SMALLEST_INTERVAL:
        return ""
    if paired.low is None:
        return "a loss of exactly 0 has no ratio"
    if None in map(exp, (paired.log_ratio, paired.low, paired.high)):
        return "a ratio is beyond the range of a float"
    return ""


def _verdict(
    cell: Measured,
    baseline: Measured,
    paired: PairedComparison,
    adjusted: float | None,
    *,
    within_reach: bool,
    defaults_due: bool,
) -> tuple[str, str]:
    """Return the verdict and, where one is withheld, why."""
    sides = (cell, baseline)
    for side in sides:
        fresh = side["fresh"]
        if side["tuning"]["failed"]:
            return "incomplete", f"{side['title']}: {side['tuning']['failed']} tuning runs failed"
        if side["tuning"]["complete"] and side["tuning"]["selected"] is None:
            return "diverged", f"{side['title']} diverged at every learning rate tried"
        if fresh["failed"]:
            return "incomplete", f"{side['title']}: {fresh['failed']} runs failed"
        if fresh["missing"]:
            return "incomplete", f"{side['title']}: {fresh['missing']} runs have not run"
    if defaults_due:
        # Without all of them a win is neither confirmed nor refuted.
        found, title = baseline["defaults"], baseline["title"]
        if found["failed"]:
            return "incomplete", f"{title}: {found['failed']} runs at its default rate failed"
        if found["missing"]:
            reason = f"{title}: {found['missing']} runs at its default rate have not run"
            return "incomplete", reason
    for side in sides:
        if side["tuning"]["under_tuned"]:
            return "under-tuned", f"{side['title']}'s best learning rate is at the edge of its grid"
    for side in sides:
        if count := side["fresh"]["diverged"]:
            return "unstable", f"{side['title']} diverged on {count} of {paired.pairs} fresh seeds"
    if adjusted is None:
        return "exploratory", "not in the registered family of tests"
    if not within_reach:
        smallest = smallest_p_value(paired.pairs)
        reason = (
            f"with {paired.pairs} seeds no p-value can be below {smallest:.2g}, too much for the "
            f"family's level of {ALPHA:g}"
        )
        return "too few seeds", reason
    if adjusted > ALPHA:
        return "no difference", ""
    return ("better" if (paired.log_ratio or 0) < 0 else "worse"), ""


def _log_ratios(cell: Measured, baseline: Measured) -> list[float | None]:
    mine, theirs = fresh_losses(cell), fresh_losses(baseline)
    return [log_ratio(mine[seed], theirs[seed]) for seed in sorted(set(mine) & set(theirs))]


def _or_one(value: float | None) -> float:
    return 1.0 if value is None else value
