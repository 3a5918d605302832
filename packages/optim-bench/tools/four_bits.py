"""What momentum in 4 bits costs in quality: the page of one comparison.

    python packages/optim-bench/tools/four_bits.py [STORE]

STORE is the folder of the comparison that the page's command makes, which becomes `int4.json`;
without it the page of the committed numbers is written anew.
"""

import json
import math
import sys
from collections.abc import Iterator
from pathlib import Path

from evidence import EVIDENCE, WORKLOADS
from evidence_page import Item, finding, pairs
from optim_bench.results.stats import compare_paired
from optim_bench.results.store import Store, read_json, write_bytes
from optim_bench.results.verdicts import build_results, fresh_losses

FOUR = "stac,sign_state_dtype=int4,adamw_state_dtype=int8"
EIGHT = "stac,sign_state_dtype=int8"
NUMBERS, PAGE = EVIDENCE / "int4.json", EVIDENCE / "int4.md"


def page(results: Item) -> str:
    """Return the page."""
    return "\n".join(_page(results)) + "\n"


def _page(results: Item) -> Iterator[str]:
    facts = results["environment"]
    versions = ", ".join(f"{name} {' and '.join(facts[name])}" for name in ("python", "torch"))
    yield from ["# Momentum in 4 bits", ""]
    yield (
        f'`STAC(sign_state_dtype="int4", adamw_state_dtype="int8")` beside '
        f'`STAC(sign_state_dtype="int8")` and AdamW: the standard tier in PyTorch, '
        f"{results['runs']} runs with {versions}. Test loss relative to the other's on the same "
        "10 fresh seeds, with its 95 % interval; each verdict is after Holm's correction, over "
        "the 14 tests against AdamW, and over the real workloads for 4 bits against 8. `Shows` is "
        "the smallest change that the last comparison would find in 8 of 10 repetitions."
    )
    yield from ["", *_command(), ""]
    against = {(c["workload"], c["label"]): c for c in results["comparisons"]}
    rows = pairs(results, "torch", {"torch": [(FOUR, EIGHT)]})
    cells = {(c["workload"], c["label"]): c for c in results["cells"]}
    pairs_of_cells = [[cells[row["workload"], label] for label in (FOUR, EIGHT)] for row in rows]
    yield "| | 4 bits / AdamW | 8 bits / AdamW | 4 bits / 8 bits | shows | bytes a parameter |"
    yield "|---|---|---|---|--:|--:|"
    for row, both in zip(rows, pairs_of_cells, strict=True):
        found = [finding(against[row["workload"], label]) for label in (FOUR, EIGHT)]
        found += [finding(row), f"{100 * (row['detectable_ratio'] - 1):.1f} %"]
        sizes = " and ".join(f"{c['state_bytes'] / c['parameters']:.2f}" for c in both)
        yield f"| {row['workload']} | {' | '.join([*found, sizes])} |"
    yield ""
    yield _worse(rows) + _other_rates(pairs_of_cells)
    yield ""
    yield (
        "Tensors of fewer than 4,096 entries keep float32, which is most of what these small "
        "models have; Llama-2-7B's shapes take 0.56 and 1.15 bytes. The workloads have up to "
        "about 100,000 parameters and do not predict large models. shifted-mlp is synthetic, and "
        "no test of 4 bits against 8."
    )


def _command() -> Iterator[str]:
    yield "    optim-bench run --tier standard --framework torch \\"
    yield from (f"        --workload {name} \\" for name in WORKLOADS)
    yield from (f"        --optimizer {name} \\" for name in (FOUR, EIGHT))
    yield "        --output four-bits-runs"
    yield "    python packages/optim-bench/tools/four_bits.py four-bits-runs"


def _worse(rows: list[dict[str, Item]]) -> str:
    """Say where 4 bits are worse than 8 bits, and where better."""
    said = []
    for verdict in ("worse", "better"):
        names = [str(row["workload"]) for row in rows if row["verdict"] == verdict]
        said.append(f"{verdict} on {', '.join(names) or 'none'}")
    return f"4 bits against 8 bits: {'; '.join(said)}."


def _other_rates(pairs_of_cells: list[list[Item]]) -> str:
    """Say where a search chose another learning rate, and what both do at the default one."""
    said: list[str] = []
    for four, eight in pairs_of_cells:
        rates = [cell["tuning"]["selected"] for cell in (four, eight)]
        if rates[0] != rates[1]:
            found = compare_paired(fresh_losses(four, "defaults"), fresh_losses(eight, "defaults"))
            ends = (found.log_ratio, found.low, found.high)
            ratio, low, high = (f"{math.exp(math.nan if e is None else e):.2f}" for e in ends)
            said.append(
                f" On {four['workload']} the searches chose different learning rates, {rates[0]:g} "
                f"and {rates[1]:g}; with both at the default one the ratio is {ratio} ({low} to "
                f"{high})."
            )
    return "".join(said)


def main() -> None:
    """Write the numbers, if a store is given, and the page."""
    for store in sys.argv[1:2]:
        found = Store(Path(store))
        results = build_results(found.plan(), found.records())
        text = json.dumps(results, sort_keys=True, separators=(",", ":"), allow_nan=False)
        write_bytes(NUMBERS, (text + "\n").encode())
    write_bytes(PAGE, page(read_json(NUMBERS)).encode())


if __name__ == "__main__":
    main()
