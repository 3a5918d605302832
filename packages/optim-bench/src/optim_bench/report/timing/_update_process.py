"""The measuring process of a preset: `python -m optim_bench.report.timing._update_process`.

One process per group: a request on the standard input, the group's rounds on the standard output.
Its baseline runs twice, as itself and as `"A/A"`.
"""

import importlib
import json
import os
import random
import sys
from typing import Any

from optim_bench.errors import BenchError
from optim_bench.executors import available_cores
from optim_bench.report.timing._presets import PRESETS
from optim_bench.report.timing._rounds import ORDER_SEED, interleave

COPY = "A/A"
# The exit status of a process whose last line on the standard error says all.
REFUSED = 3


def main() -> None:
    """Read a request, pin this process, and print what it measured as one line of JSON."""
    request = json.loads(sys.stdin.read())
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, available_cores()[-request["threads"] :])
    # Frameworks may print; the result is the last line of the real standard output.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    try:
        found = measure(request)
    except BenchError as error:
        sys.stderr.write(f"{error}\n")
        sys.exit(REFUSED)
    answer.write(json.dumps(found) + "\n")
    answer.flush()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return the accelerator's name, and label -> seconds per step or first call of each round."""
    (group,) = (each for each in PRESETS[request["preset"]] if each.name == request["group"])
    # Imported here: a framework reads its thread variables when it loads, after the pinning.
    cases = importlib.import_module(f"optim_bench.report.timing._cases_{group.framework}")
    if group.framework == "torch":
        importlib.import_module("torch").set_num_threads(request["threads"])
    device = cases.device_name(group.device)
    tensors = cases.Tensors(group.shapes, group.device)
    names = {group.baseline: group.baseline, COPY: group.baseline}
    names |= {each.case: each.case for each in (*group.contenders, *group.floors)}
    if group.what == "first":
        rounds = _first_calls(tensors, names, request["first_calls"])
    else:
        runs = {label: tensors.run(case) for label, case in names.items()}
        rounds = interleave(runs, request["rounds"], request["round_seconds"])
    return {"device": device, "rounds": rounds}


def _first_calls(tensors: Any, names: dict[str, str], calls: int) -> dict[str, list[float]]:
    order = list(names)
    shuffle = random.Random(ORDER_SEED).shuffle  # noqa: S311 - an order, not a secret
    seconds: dict[str, list[float]] = {label: [] for label in names}
    # The very first compilation of a process also starts the compiler.
    tensors.first_call(names[COPY])
    for _ in range(calls):
        shuffle(order)
        for label in order:
            seconds[label].append(tensors.first_call(names[label]))
    return seconds


if __name__ == "__main__":
    main()
