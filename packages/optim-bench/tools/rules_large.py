"""Train one larger model by a few entries of the study, and store the curves: no part of its plan.

    rules_large.py STORE

A decoder of 1.5 million parameters on the words of NumPy's docstrings, about one pass over them;
three rates each, half a decade apart, and one seed. The curves go into `evidence/rules-large.json`.
"""

import json
import sys
from dataclasses import replace
from pathlib import Path

import rules_study
import rules_tasks
from optim_bench.executors.train import train
from optim_bench.protocol import Cell
from optim_bench.tasks import enter_task
from optim_bench.tasks.decoder import decoder

STEPS, EVALUATIONS = 500, 20
# From the middle one on, until the best has a worse one on either side.
RATES = {
    "AdamW 0.9": (1e-3, 3.16e-3, 3.16e-4),
    "first_root(0.8)": (1e-3, 3.16e-4, 3.16e-3),
    "STAC": (3.16e-4, 1e-3, 1e-4),
    "AdamW 0.7": (1e-3, 3.16e-4, 3.16e-3),
}


def cell_of(store: Path, name: str) -> Cell:
    """Return an entry on the larger model."""
    path = store / "words.bin"
    if not path.exists():
        rules_tasks.words().astype("<u2").tofile(path)
    task = decoder(
        path,
        parameters=2e6,
        symbols=rules_tasks.VOCABULARY,
        context=64,
        steps=STEPS,
        evaluate_every=STEPS // EVALUATIONS,
        autocast=None,
        name="numpy-words decoder",
        version=1,
    )
    small = rules_study.cell_of("numpy-words", name)
    return replace(
        small,
        workload=task.name,
        steps=STEPS,
        schedule=task.schedule_name,
        task=enter_task(task),
    )


def main(store: Path) -> None:
    """Train what is missing, and write the curves."""
    store.mkdir(parents=True, exist_ok=True)
    rules_study.enter_research()
    found = []
    for name, rates in RATES.items():
        for rate in rates:
            path = store / f"{name} {rate:g}.json"
            if not path.exists():
                record = train(cell_of(store, name).spec(rate, 0))
                path.write_text(json.dumps(record.to_json(), allow_nan=False), encoding="utf-8")
            kept = json.loads(path.read_text(encoding="utf-8"))
            found.append({"entry": name, "rate": rate} | {k: kept[k] for k in KEPT})
            sys.stdout.write(f"{name} {rate:g} {kept['metrics']}\n")
            sys.stdout.flush()
    target = rules_study.EVIDENCE / "rules-large.json"
    target.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")


KEPT = ("curve", "metrics", "parameters", "state_bytes", "seconds", "environment")

if __name__ == "__main__":
    main(Path(sys.argv[1]))
