"""Controls with real training: AdamW ties with itself, and a crippled AdamW loses."""

import pytest
from optim_bench.executors import InlineExecutor
from optim_bench.protocol import Budget, Cell, Plan
from optim_bench.protocol.campaign import run_campaign
from optim_bench.results.store import Store
from optim_bench.results.verdicts import build_results
from optim_bench.tasks.built_in import WORKLOADS

pytestmark = pytest.mark.slow
BUDGET = Budget(grid_points=3, tuning_seeds=1, fresh_seeds=6, extensions=4, defaults=False)
CENTRE = 3e-2
WORKLOAD = WORKLOADS["diamonds-mlp"]


def cell(label: str, **hyperparameters: float) -> Cell:
    given = {"learning_rate": CENTRE, **hyperparameters}
    steps = WORKLOAD.steps["smoke"]
    return Cell(WORKLOAD.name, 1, "jax", "adamw", label, given, CENTRE, 0.0, 10.0, steps, "cosine")


@pytest.fixture
def judge(tmp_path):
    def run(other: Cell):
        cells = (other, cell("adamw"))
        plan = Plan(
            tier="smoke",
            budget=BUDGET,
            cells=cells,
            family=(other.name,),
            titles={f"jax/{c.label}": c.label for c in cells},
            families={f"jax/{c.label}": "ours" for c in cells},
            workloads={
                WORKLOAD.name: {
                    "version": WORKLOAD.version,
                    "title": WORKLOAD.title,
                    "kind": WORKLOAD.kind,
                    "loss": WORKLOAD.loss,
                    "batch": WORKLOAD.batch,
                    "metrics": [],
                    "licence": WORKLOAD.licence,
                    "target": None,
                }
            },
        )
        store = Store(tmp_path / "out")
        store.open()
        run_campaign(plan, store, InlineExecutor(), lambda progress: None)
        (comparison,) = build_results(plan, store.records())["comparisons"]
        return comparison

    return run


def test_adamw_against_a_copy_ties(judge):
    found = judge(cell("copy"))
    assert found["verdict"] == "no difference"
    assert (found["ratio"], found["p_value"], found["detectable_ratio"]) == (1.0, 1.0, 1.0)


def test_adamw_with_another_rounding_ties(judge):
    found = judge(cell("rounded", eps=1.01e-8))
    assert found["verdict"] == "no difference"
    assert found["ratio"] != 1.0
    assert 0.9 < found["low"] < 1.0 < found["high"] < 1.1


def test_adamw_with_a_crippling_weight_decay_is_worse_however_it_is_tuned(judge):
    found = judge(cell("crippled", weight_decay=30.0))
    assert found["verdict"] == "worse"
    assert found["low"] > 1.2
    assert found["p_adjusted"] == pytest.approx(2 / 2**6)
