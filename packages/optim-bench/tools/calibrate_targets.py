"""Find the pre-registered steps-to-target levels: how far tuned AdamW gets.

    python packages/optim-bench/tools/calibrate_targets.py [WORKLOAD ...]

For each workload: AdamW (JAX) at its `standard` horizon, seven learning rates a half decade apart
with three tuning seeds (and further ones while the best lies on the edge), the best by mean log
validation loss, then twenty fresh seeds at that rate.
The target is the median over those seeds of the validation loss at three quarters of the horizon:
tuned AdamW reaches it there with half of its seeds. The levels are then written into the workload
files by hand, before any other optimizer is compared.
"""

import math
import statistics
import sys

from optim_bench.executors.train import train
from optim_bench.records import RunRecord, RunSpec
from optim_bench.tasks.built_in import WORKLOADS

RATES = [1e-3 * 10 ** (i / 2) for i in range(-3, 4)]
TUNING_SEEDS = range(3)
FRESH_SEEDS = range(1000, 1020)


def run(name: str, rate: float, seed: int) -> RunRecord:
    """Train AdamW once at the standard horizon."""
    workload = WORKLOADS[name]
    hyperparameters = {"learning_rate": rate}
    steps = workload.steps["standard"]
    return train(
        RunSpec(
            name,
            workload.version,
            "jax",
            "adamw",
            hyperparameters,
            seed,
            steps,
            workload.schedule,
        )
    )


def score(records: list[RunRecord]) -> float:
    """Return the mean log validation loss, infinite after one divergence."""
    losses = [record.metrics["val_loss"] for record in records]
    return statistics.fmean(math.inf if loss is None else math.log(loss) for loss in losses)


def main() -> None:
    """Print one line for each workload."""
    for name in sys.argv[1:] or [n for n, w in WORKLOADS.items() if w.kind == "real"]:
        scores: dict[float, float] = {}
        waiting, best = list(RATES), RATES[0]
        while waiting:
            rate = waiting.pop()
            scores[rate] = score([run(name, rate, seed) for seed in TUNING_SEEDS])
            best = min(scores, key=scores.__getitem__)
            if not waiting and best == max(scores):
                waiting.append(best * math.sqrt(10))
            elif not waiting and best == min(scores):
                waiting.append(best / math.sqrt(10))
        levels = []
        for seed in FRESH_SEEDS:
            curve = run(name, best, seed).curve
            horizon = WORKLOADS[name].steps["standard"]
            index = next(i for i, step in enumerate(curve["step"]) if step >= 0.75 * horizon)
            levels.append(curve["val_loss"][index])
        print(  # noqa: T201
            f"{name}: target {statistics.median(levels):.4g}, learning rate {best:.3g}, "
            f"range {min(levels):.4g} to {max(levels):.4g}",
            flush=True,
        )


if __name__ == "__main__":
    main()
