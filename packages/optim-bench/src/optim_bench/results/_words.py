"""Verdicts in plain words. Lower loss is better; every sentence names what it rests on."""

from collections.abc import Mapping, Sequence
from typing import Any

LABELS = {
    "better": "better",
    "worse": "worse",
    "not confirmed": "not confirmed",
    "no difference": "no detectable difference",
    "too few seeds": "too few seeds to tell",
    "under-tuned": "under-tuned, not ranked",
    "unstable": "diverged, not ranked",
    "incomplete": "incomplete",
    "exploratory": "exploratory",
}


def change_in_words(ratio: float) -> str:
    """Say a loss ratio as a change.

    Example:
        >>> change_in_words(0.877), change_in_words(1.02), change_in_words(3.4)
        ('12.3 % lower', '2.0 % higher', '3.4 times as high')
        >>> change_in_words(1.0)
        'equal'
    """
    percent = 100 * (ratio - 1)
    if ratio >= 2:
        return f"{ratio:.2g} times as high"
    if abs(percent) < 0.05:
        return "equal"
    return f"{abs(percent):.1f} % {'lower' if percent < 0 else 'higher'}"


def verdict_sentence(comparison: Mapping[str, Any], baseline_title: str) -> str:
    """Say what a comparison found, with its interval, its number of seeds and its p-value."""
    title, verdict = comparison["title"], comparison["verdict"]
    workload = comparison["workload"]
    if verdict in {"incomplete", "unstable"} or comparison["low"] is None:
        return f"{title} on {workload}: no verdict; {comparison['reason']}."
    ratio = change_in_words(comparison["ratio"])
    interval = (
        f"95 % interval {change_in_words(comparison['low'])} to "
        f"{change_in_words(comparison['high'])}"
    )
    seeds = f"{comparison['pairs']} paired seeds"
    if verdict in {"better", "worse"}:
        return (
            f"{title} on {workload}: {verdict} than {baseline_title}, test loss {ratio} "
            f"({interval}; {seeds}; p = {comparison['p_adjusted']:.2g} after Holm over "
            f"{comparison['tests']} tests)."
        )
    if verdict == "no difference":
        return (
            f"{title} on {workload}: no detectable difference from {baseline_title}, test loss "
            f"{ratio} ({interval}; {seeds} would have found a change of about "
            f"{detectable_in_words(comparison['detectable_ratio'])})."
        )
    return (
        f"{title} on {workload}: no verdict, {comparison['reason']}; test loss {ratio} than "
        f"{baseline_title}'s ({interval}; {seeds})."
    ).replace("equal than", "equal to")


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


FRAMEWORK_TITLES = {"jax": "JAX", "torch": "PyTorch"}


def _listed(names: Sequence[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} and {names[-1]}"
