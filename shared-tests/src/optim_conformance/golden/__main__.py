"""Compare the golden files with the oracle, or write them."""

from __future__ import annotations

import json
import sys

from optim_conformance.golden import load, path_of, record
from optim_conformance.rules import RULES


def main(arguments: list[str]) -> int:
    """Run the command; return the exit status."""
    if arguments == ["--write"]:
        for opt in RULES:
            text = json.dumps(record(opt), indent=1, sort_keys=True) + "\n"
            path_of(opt).write_text(text, encoding="utf-8")
        return 0
    if arguments:
        sys.stderr.write(f"unknown arguments {arguments}; the only one is --write\n")
        return 2
    stale = [opt for opt in RULES if load(opt) != record(opt)]
    for opt in stale:
        sys.stderr.write(f"{path_of(opt).name} is not what the oracle computes; use --write\n")
    return 1 if stale else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
