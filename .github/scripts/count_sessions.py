"""Fail when fewer nox sessions succeeded than a machine with every interpreter must run.

`python count_sessions.py REPORT EXPECTED`, where REPORT is what `nox --report` wrote.
"""

import json
import sys
from pathlib import Path


def succeeded(report: str) -> list[str]:
    """The signatures of the sessions that ran and passed."""
    sessions = json.loads(report)["sessions"]
    return [session["signature"] for session in sessions if session["result"] == "success"]


def main(arguments: list[str]) -> int:
    """Print the count and return the exit status."""
    passed = succeeded(Path(arguments[0]).read_text(encoding="utf-8"))
    expected = int(arguments[1])
    print(f"{len(passed)} nox sessions succeeded, at least {expected} were expected")
    return 0 if len(passed) >= expected else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
