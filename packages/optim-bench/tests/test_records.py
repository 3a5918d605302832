"""A run that cannot be, and a record that contradicts itself, are each refused in one sentence."""

from dataclasses import replace

import pytest


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"framework": "mlx"}, "framework is 'mlx'; it has to be one of"),
        ({"schedule": "steep"}, "schedule is 'steep'; it has to be one of"),
        ({"steps": 0}, "steps is 0; a run needs at least 1"),
        ({"seed": -1}, "seed is -1; seeds start at 0"),
        ({"hyperparameters": {}}, r"hyperparameters\['learning_rate'\] is None; every run needs"),
        ({"hyperparameters": {"learning_rate": True}}, r"is True; every run needs a number"),
        ({"hyperparameters": {"learning_rate": float("nan")}}, "learning_rate is nan; it has to"),
    ],
)
def test_a_run_that_cannot_be(make_spec, change, why):
    with pytest.raises(ValueError, match=why):
        replace(make_spec(), **change)


LOSSES = {"train_loss": 1.0, "val_loss": 1.0, "test_loss": 1.0}


@pytest.mark.parametrize(
    ("change", "why"),
    [
        ({"metrics": {"train_loss": 1.0}}, "metrics lack .*; give None for what is not finite"),
        ({"metrics": {**LOSSES, "test_loss": None}}, "status is 'ok' but a loss is None"),
        ({"metrics": {**LOSSES, "val_loss": float("inf")}}, "metric val_loss is inf; give None"),
        ({"curve": {"step": [1, 2], "val_loss": [1.0]}}, "curve has unequal lengths"),
        ({"curve": {"step": range(100_000)}}, "curve has 100000 points; keep at most"),
    ],
)
def test_a_record_that_contradicts_itself(make_spec, make_record, change, why):
    with pytest.raises(ValueError, match=why):
        replace(make_record(make_spec(), 1.0), **change)
