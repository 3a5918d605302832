"""The measuring process: `python -m optim_bench.report.timing._measure CORE`; rounds come out.

What is timed is a whole training step as the benchmark runs it: gradients, update, transfer of the
batch and of the losses. Each optimizer has its own live session; a round is as many steps as fill
its duration, with one wait at the end of each call; rounds of the optimizers alternate in random
order, so that a slow moment of the machine meets all of them.
"""

import contextlib
import importlib
import itertools
import json
import os
import sys
import time
from pathlib import Path
from typing import Any

from optim_bench.executors import pin
from optim_bench.report.timing._rounds import Run, interleave

STEPS_PER_CALL = 32


def main() -> None:
    """Read a request from the standard input and print the rounds as one line of JSON."""
    pin(int(sys.argv[1]))
    # Frameworks may print; the result is the last line of the real standard output.
    answer = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    answer.write(json.dumps(measure(json.loads(sys.stdin.read()))) + "\n")
    answer.flush()


def measure(request: dict[str, Any]) -> dict[str, Any]:
    """Return label -> seconds per step per round, and label -> seconds of the first call."""
    # Imported here: NumPy reads the thread variables when it loads, after the pinning.
    tasks = importlib.import_module("optim_bench.tasks")
    optimizers = importlib.import_module("optim_bench.optimizers")
    train = importlib.import_module("optim_bench.executors.train")
    data_dir = request["data_dir"] and Path(request["data_dir"])
    task = tasks.find_task(request["task"]).build(request["framework"], data_dir)
    steps = STEPS_PER_CALL * task.accumulate
    batches = list(itertools.islice(task.batch_stream(0), steps))
    first: dict[str, float] = {}
    runs: dict[str, Run] = {}
    with contextlib.ExitStack() as stack:
        baseline = request["optimizers"][0]
        for label, name, given in [*request["optimizers"], ["A/A", *baseline[1:]]]:
            info = optimizers.resolve(name, request["framework"])
            hyperparameters = info.validate(given)
            session = stack.enter_context(train.open_session(task, info, hyperparameters))
            # The same few over and over: what serves them is the task's cost, and everybody's.
            session.batches = itertools.cycle(batches)
            # Too small to change the loss: a step costs the same at any rate.
            rates = [1e-6] * STEPS_PER_CALL

            def run(n: int, session: Any = session, rates: list[float] = rates) -> None:
                for _ in range(n):
                    session.advance(rates)

            started = time.perf_counter()
            run(1)
            first[label] = time.perf_counter() - started
            runs[label] = run
        seconds = interleave(runs, request["rounds"], request["round_seconds"])
    per_step = {label: [s / STEPS_PER_CALL for s in found] for label, found in seconds.items()}
    return {"seconds": per_step, "first": first}


if __name__ == "__main__":
    main()
