"""Fail unless every default nox session ran and passed, but for those that may skip.

`nox --list --json | python count_sessions.py REPORT [MAY_SKIP ...]`, where REPORT is what
`nox --report` wrote and MAY_SKIP are names of sessions that depend on what a machine can reach,
without parameters. nox itself exits with 0 when sessions skip, and when one is gone.
"""

import json
import sys
from pathlib import Path


def main(arguments: list[str], listed: str) -> int:
    """Print what is missing and return the exit status."""
    report = json.loads(Path(arguments[0]).read_text(encoding="utf-8"))["sessions"]
    results = {name: session["result"] for session in report for name in session["signatures"]}
    expected = json.loads(listed)
    missing = 0
    for session in expected:
        result = results.get(session["session"], "not run")
        if result != "success" and (result != "skipped" or session["name"] not in arguments[1:]):
            missing += 1
            print(f"{session['session']}: {result}")
    print(f"{len(expected)} nox sessions are expected to run, {missing} of them did not pass")
    return int(missing > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], sys.stdin.read()))
