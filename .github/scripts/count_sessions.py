"""Fail unless every default nox session ran and passed, but for those that may skip.

`nox --list --json | python count_sessions.py REPORT [MAY_SKIP ...]`, where REPORT is what
`nox --report` wrote and MAY_SKIP are names of sessions, without their parameters. Counting would
not do: a session that is gone and one that is new have the same count, and a run in which every
session skips exits with 0.
"""

import json
import sys
from collections.abc import Collection
from pathlib import Path


def unfinished(listed: str, report: str, may_skip: Collection[str]) -> list[str]:
    """The sessions that should have passed and did not, with what became of them.

    Args:
        listed: what `nox --list --json` printed, the default sessions.
        report: what `nox --report` wrote.
        may_skip: names of sessions that depend on what a machine can reach.
    """
    results = {
        signature: session["result"]
        for session in json.loads(report)["sessions"]
        for signature in session["signatures"]
    }
    complaints: list[str] = []
    for session in json.loads(listed):
        result = results.get(session["session"], "not run")
        allowed = ("success", "skipped") if session["name"] in may_skip else ("success",)
        if result not in allowed:
            complaints.append(f"{session['session']}: {result}")
    return complaints


def main(arguments: list[str], listed: str) -> int:
    """Print what is missing and return the exit status."""
    report = Path(arguments[0]).read_text(encoding="utf-8")
    missing = unfinished(listed, report, arguments[1:])
    for complaint in missing:
        print(complaint)
    count = len(json.loads(listed))
    print(f"{count} nox sessions are expected to run, {len(missing)} of them did not pass")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.read()))
