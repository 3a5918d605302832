"""Verdicts in plain words. Lower loss is better; every sentence names what it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

from optim_bench.protocol import Budget

LABELS = {
    "better": "better",
    "worse": "worse",
    "not confirmed": "not confirmed",
    "no difference": "no detectable difference",
    "too few seeds": "too few seeds to tell",
    "under-tuned": "under-tuned, not ranked",
    "diverged": "diverged everywhere, not ranked",
    "unstable": "diverged, not ranked",
    "incomplete": "incomplete",
    "exploratory": "exploratory",
}


def change_in_words(ratio: float) -> str:
    """Say a loss ratio as a change.

    Example:
        >>> change_in_words(0.877), change_in_words(1.02), change_in_words(3.4)
        ('12.3 % lower', '2.0 % higher', '3.4 times as high')
        >>> change_in_words(1.0), change_in_words(0.9999)
        ('equal', 'less than 0.05 % lower')
    """
    percent = 100 * (ratio - 1)
    if ratio >= 2:
        return f"{ratio:.2g} times as high"
    if ratio == 1:
        return "equal"
    size = "less than 0.05" if abs(percent) < 0.05 else f"{abs(percent):.1f}"
    return f"{size} % {'lower' if percent < 0 else 'higher'}"


def verdict_sentence(comparison: Mapping[str, Any], baseline_title: str) -> str:
    """Say what a comparison found, with its interval, its number of seeds and its p-value."""
    title, verdict = comparison["title"], comparison["verdict"]
    workload = comparison["workload"]
    ranked = verdict in {"better", "worse", "no difference"}
    if verdict in {"incomplete", "unstable", "diverged"} or not (
        ranked or has_interval(comparison)
    ):
        return f"{title} on {workload}: no verdict; {comparison['reason']}."
    seeds = f"{comparison['pairs']} paired seeds"
    if has_interval(comparison):
        ratio = _change(comparison, comparison["ratio"])
        change = f"{judged_in_words(comparison)} {ratio}"
        detail = f"95 % interval {_interval_in_words(comparison)}; {seeds}"
    else:
        ratio, change, detail = "", f"though {comparison['reason']}", seeds
    if verdict in {"better", "worse"}:
        return (
            f"{title} on {workload}: {verdict} than {baseline_title}, {change} "
            f"({detail}; p = {comparison['p_adjusted']:.2g} after Holm over "
            f"{comparison['tests']} tests)."
        )
    if verdict == "no difference":
        detectable = comparison["detectable_ratio"]
        if detectable is not None:
            words = detectable_in_words(detectable)
            detail += f" would have found a change of about {words}"
        return (
            f"{title} on {workload}: no detectable difference from {baseline_title}, {change} "
            f"({detail})."
        )
    return (
        f"{title} on {workload}: no verdict, {comparison['reason']}; "
        f"{judged_in_words(comparison)} {ratio} "
        f"{_joint(ratio)} {_possessive(baseline_title)} ({detail})."
    )


def judged_in_words(measured: Mapping[str, Any]) -> str:
    """Return what a comparison or a cell is about.

    Example:
        >>> judged_in_words({}), judged_in_words({"judged": {"metric": "error", "split": "val"}})
        ('test loss', 'validation error')
    """
    judged = measured.get("judged")
    if judged is None:
        return "test loss"
    split = "validation" if judged["split"] == "val" else judged["split"]
    return f"{split} {judged['metric']}"


def _change(comparison: Mapping[str, Any], ratio: float) -> str:
    """Say a ratio of costs as the change of what is judged."""
    larger = comparison.get("judged", {}).get("larger_is_better", False)
    return change_in_words(1 / ratio if larger else ratio)


def _joint(change: str) -> str:
    """Return the word between a change and what it is a change from."""
    if change == "equal":
        return "to"
    return "as" if change.endswith("as high") else "than"


def _possessive(title: str) -> str:
    return f"that of {title}" if title.endswith(")") else f"{title}'s"


def has_interval(comparison: Mapping[str, Any]) -> bool:
    """Return whether a comparison has a ratio with an interval, bounded or not."""
    return comparison["ratio"] is not None and comparison["pairs"] >= _FEWEST_PAIRS


def ratio_columns(comparison: Mapping[str, Any] | None) -> list[str]:
    """Return ratio, interval and adjusted p-value as text, empty where there is none."""
    if comparison is None or comparison["pairs"] < _FEWEST_PAIRS:
        return ["", "", ""]
    p_value = comparison["p_adjusted"]
    adjusted = "" if p_value is None else f"{p_value:.2g}"
    if not has_interval(comparison):
        return ["", "", adjusted]
    return [ratio_text(comparison["ratio"]), verdict_interval(comparison), adjusted]


def shown_interval(comparison: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the ends that go with a verdict: at Holm's level for a registered test."""
    return comparison.get("adjusted", comparison)


def verdict_interval(comparison: Mapping[str, Any]) -> str:
    """Return the interval that goes with a verdict, marked where the two disagree.

    The interval is Student's and the test is exact, so that they may.

    Example:
        >>> case = {"low": 0.8, "high": 0.9, "verdict": "no difference"}
        >>> verdict_interval(case), verdict_interval({**case, "verdict": "better"})
        ('0.800 to 0.900 *', '0.800 to 0.900')
    """
    ends = shown_interval(comparison)
    low, high = ends["low"], ends["high"]
    apart = (low is not None and low > 1) or (high is not None and high < 1)
    verdict = comparison["verdict"]
    differs = apart if verdict == "no difference" else not apart
    mark = " *" if differs and verdict in {"better", "worse", "no difference"} else ""
    return interval_text(ends) + mark


INTERVAL_NOTE = (
    "Intervals are at the level that Holm's correction leaves each registered test; where one is "
    "marked with *, it and the exact test disagree, and the verdict is the test's."
)


def interval_text(comparison: Mapping[str, Any]) -> str:
    """Return an interval's ends as numbers; an end beyond the range of a float is no bound.

    Example:
        >>> interval_text({"low": 0.9, "high": None})
        '0.900 to no bound'
    """
    return f"{ratio_text(comparison['low'])} to {ratio_text(comparison['high'])}"


def ratio_text(value: float | None) -> str:
    """Return a ratio as a number.

    Example:
        >>> ratio_text(0.98765), ratio_text(3.4e68), ratio_text(None)
        ('0.988', '3.4e+68', 'no bound')
    """
    if value is None:
        return "no bound"
    return f"{value:.3f}" if value < _LONG_RATIO else f"{value:.3g}"


_LONG_RATIO = 1e4
# One pair has a ratio and no interval.
_FEWEST_PAIRS = 2


def _interval_in_words(comparison: Mapping[str, Any]) -> str:
    low, high = (
        "no bound" if end is None else _change(comparison, end)
        for end in map(shown_interval(comparison).get, ("low", "high"))
    )
    return f"{low} to {high}"


def detectable_in_words(ratio: float) -> str:
    """Say the smallest detectable ratio, which is at least 1.

    Example:
        >>> detectable_in_words(1.094), detectable_in_words(2.5)
        ('9 %', 'a factor of 2.5')
    """
    return f"a factor of {ratio:.2g}" if ratio >= 2 else f"{100 * (ratio - 1):.0f} %"


def headline(
    comparisons: Sequence[Mapping[str, Any]], framework: str, baseline_title: str
) -> list[str]:
    """Say in one sentence per optimizer what its registered tests found."""
    sentences: list[str] = []
    registered = [c for c in comparisons if c["tests"] is not None]
    for label in dict.fromkeys(c["label"] for c in registered):
        mine = [c for c in registered if c["label"] == label]
        by_verdict = {
            verdict: [c["workload"] for c in mine if c["verdict"] == verdict] for verdict in LABELS
        }
        parts = [f"{LABELS[v]} on {_listed(names)}" for v, names in by_verdict.items() if names]
        sentences.append(
            f"{mine[0]['title']} against equally tuned {baseline_title} in "
            f"{FRAMEWORK_TITLES[framework]}: {'; '.join(parts)}."
        )
    return sentences


def searched_in_words(budget: Mapping[str, Any]) -> str:
    """Say what every optimizer's search was, from a budget as JSON.

    Example:
        >>> budget = {"grid_points": 7, "tuning_seeds": 3, "extensions": 4}
        >>> searched_in_words({**budget, "fresh_seeds": 10, "defaults": True})
        '7 learning rates on 3 tuning seeds (and up to 4 more rates where the best is at the edge)'
    """
    found = Budget(**budget)
    rates = f"{found.grid_points} learning rates"
    more = f"and up to {found.extensions} more rates where the best is at the edge"
    if found.search:
        names = ", ".join(name.partition("=")[0] for name in found.search)
        rates = f"{found.points} points over learning rate, {names}"
    elif found.halving:
        rates = f"at most {rates}, from the centre on until the best has worse ones on either side"
    seeds = f"{found.tuning_seeds} tuning seed{'' if found.tuning_seeds == 1 else 's'}"
    if found.halving and found.tuning_seeds > 1:
        seeds += ", of which each further one takes the better half, but at least 3"
    return f"{rates} on {seeds} ({more})"


def chosen_text(tuning: Mapping[str, Any]) -> str:
    """Return what a search chose, empty where it chose nothing.

    Example:
        >>> chosen_text({"selected": 0.01, "values": {"weight_decay": 0.1}})
        '0.01, weight_decay=0.1'
    """
    if tuning["selected"] is None:
        return ""
    rest = (f", {name}={value}" for name, value in tuning.get("values", {}).items())
    return f"{tuning['selected']:g}{''.join(rest)}"


FRAMEWORK_TITLES = {"jax": "JAX", "torch": "PyTorch"}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
