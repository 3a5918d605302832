"""The result of a comparison: verdicts, a table, and the page that shows what they rest on."""

import csv
import html
import importlib
import importlib.util
import io
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console

from optim_bench.cli import ui
from optim_bench.report.pages import report_html
from optim_bench.results.verdicts import (
    LABELS,
    chosen_text,
    interval_text,
    judged_in_words,
    judged_mean,
    ratio_text,
    shown_interval,
)

_WIDTH = 140


@dataclass(frozen=True)
class Verdict:
    """What one optimizer showed against equally tuned AdamW on one task.

    Args:
        task: its name.
        framework: `"jax"` or `"torch"`.
        optimizer: its label in the comparison.
        verdict: `"better"`, `"worse"`, `"no detectable difference"`, or why there is none.
        ratio: of what is judged to AdamW's (the reciprocal where larger is better): below 1 is
            better; None where there is no pair.
        low: lower end of its interval at the level that Holm's correction leaves, or None.
        high: upper end, or None.
        p: exact sign-flip p-value after Holm's correction, or None.
        seeds: paired fresh seeds.
        sentence: all of it in words.
    """

    task: str
    framework: str
    optimizer: str
    verdict: str
    ratio: float | None
    low: float | None
    high: float | None
    p: float | None
    seeds: int
    sentence: str

    def __str__(self) -> str:
        return self.sentence


class Comparison:
    """A finished comparison.

    Args:
        results: the content of `results.json`.
        folder: where its runs and its report lie.
    """

    def __init__(self, results: Mapping[str, Any], folder: Path) -> None:
        self.results = results
        self.folder = folder

    @property
    def verdicts(self) -> list[Verdict]:
        """One verdict per optimizer, task and framework, AdamW's own row apart."""
        return [
            Verdict(
                task=c["workload"],
                framework=c["framework"],
                optimizer=c["label"],
                verdict=LABELS[c["verdict"]],
                ratio=c["ratio"],
                low=shown_interval(c)["low"],
                high=shown_interval(c)["high"],
                p=c["p_adjusted"],
                seeds=c["pairs"],
                sentence=c["sentence"],
            )
            for c in self.results["comparisons"]
        ]

    def records(self) -> list[dict[str, Any]]:
        """Return one row per optimizer, task and framework, AdamW's included."""
        found = {(v.task, v.framework, v.optimizer): v for v in self.verdicts}
        rows: list[dict[str, Any]] = []
        for cell in self.results["cells"]:
            name = (cell["workload"], cell["framework"], cell["label"])
            step = cell["step_time"]
            compared = asdict(found[name]) if name in found else _BASELINE
            rows.append(
                {
                    **dict(zip(("task", "framework", "optimizer"), name, strict=True)),
                    "learning_rate": cell["tuning"]["selected"],
                    "searched": chosen_text(cell["tuning"]).partition(", ")[2],
                    "judged": judged_in_words(cell),
                    "mean": judged_mean(cell),
                    **{key: compared[key] for key in ("ratio", "low", "high", "p")},
                    "seeds": cell["fresh"]["ok"],
                    "state_bytes": cell["state_bytes"],
                    "parameter_bytes": cell["parameter_bytes"],
                    "step_seconds": None if step is None else step["median"],
                    "verdict": compared["verdict"],
                }
            )
        return rows

    def table(self) -> str:
        """Return the verdicts as a table for a terminal."""
        text = io.StringIO()
        console = Console(file=text, width=_WIDTH, force_terminal=False)
        for table in ui.verdict_tables(self.results):
            console.print(table)
        return "\n".join(line.rstrip() for line in text.getvalue().splitlines()).strip() + "\n"

    def to_frame(self) -> Any:
        """Return `records` as a pandas frame, or as they are where pandas is not installed."""
        if importlib.util.find_spec("pandas") is None:
            return self.records()
        return importlib.import_module("pandas").DataFrame.from_records(self.records())

    def to_csv(self, path: Path | str) -> Path:
        """Write `records` to a file and return its path."""
        rows = self.records()
        with Path(path).open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
        return Path(path)

    def to_latex(self) -> str:
        r"""Return the table for a paper, with the rules of the `booktabs` package."""
        lines = [r"\begin{tabular}{llrrrrrl}", r"\toprule", _latex(_HEADINGS), r"\midrule"]
        lines += [_latex(row) for row in self._shown()]
        return "\n".join([*lines, r"\bottomrule", r"\end{tabular}"]) + "\n"

    def report(self, path: Path | str) -> Path:
        """Write the page, which needs nothing but itself, and return its path."""
        Path(path).write_text(report_html(self.results), encoding="utf-8")
        return Path(path)

    def __str__(self) -> str:
        return self.table()

    def _repr_html_(self) -> str:
        head = "".join(f"<th>{html.escape(name)}</th>" for name in _HEADINGS)
        rows = [
            "<tr>" + "".join(f"<td>{html.escape(text)}</td>" for text in row) + "</tr>"
            for row in self._shown()
        ]
        words = [f"<li>{html.escape(str(verdict))}</li>" for verdict in self.verdicts]
        notes = [f"<p>{html.escape(text)}</p>" for text in self.results["cautions"]]
        return (
            f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(rows)}</tbody></table>"
            f"<ul>{''.join(words)}</ul>{''.join(notes)}"
        )

    def _shown(self) -> list[Sequence[str]]:
        return [
            (
                row["task"],
                row["optimizer"],
                ""
                if row["learning_rate"] is None
                else f"{row['learning_rate']:g}"
                + (f", {row['searched']}" if row["searched"] else ""),
                "" if row["mean"] is None else f"{row['mean']:.4g}",
                "" if row["ratio"] is None else ratio_text(row["ratio"]),
                "" if row["ratio"] is None else interval_text(row),
                "" if row["p"] is None else f"{row['p']:.2g}",
                row["verdict"],
            )
            for row in self.records()
        ]


_BASELINE: Mapping[str, Any] = {
    **dict.fromkeys(("ratio", "low", "high", "p")),
    "verdict": "baseline",
}
_HEADINGS = (
    "task",
    "optimizer",
    "rate",
    "judged",
    "ratio",
    "interval (Holm)",
    "p (Holm)",
    "verdict",
)
_SPECIAL = {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"} | {
    sign: f"\\{sign}" for sign in "&%$#_{}"
}


def _latex(row: Sequence[str]) -> str:
    cells = ("".join(_SPECIAL.get(sign, sign) for sign in text) for text in row)
    return " & ".join(cells) + r" \\"
