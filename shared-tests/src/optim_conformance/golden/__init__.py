"""Recorded trajectories: a few steps of every rule with all inputs and outputs in one JSON file.

They pin the oracle itself (a change of a formula must change a file in review), and they let an
implementation in another language test itself without this package. The oracle writes them:

    python -m optim_conformance.golden           compares, exits with 1 where a file is stale
    python -m optim_conformance.golden --write   writes
"""

from optim_conformance.golden._files import Golden, golden_cases, load, path_of
from optim_conformance.golden._record import record

__all__ = ["Golden", "golden_cases", "load", "path_of", "record"]
