"""Optimizer comparisons that a sceptic accepts: real data, equal budgets, paired intervals."""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from optim_bench.cli.compare import compare, forecast
    from optim_bench.cli.comparison import Comparison, Verdict
    from optim_bench.errors import BenchError, UsageError
    from optim_bench.optimizers import OptimizerInfo
    from optim_bench.tasks import JaxTask, TaskError, TorchTask

__version__ = "0.1.0"

# Loaded when first asked for: a task's module imports this package, and so does every worker.
_PLACES = {
    "BenchError": "errors",
    "Comparison": "cli.comparison",
    "JaxTask": "tasks",
    "OptimizerInfo": "optimizers",
    "TaskError": "tasks",
    "TorchTask": "tasks",
    "UsageError": "errors",
    "Verdict": "cli.comparison",
    "compare": "cli.compare",
    "forecast": "cli.compare",
}

__all__ = [
    "BenchError",
    "Comparison",
    "JaxTask",
    "OptimizerInfo",
    "TaskError",
    "TorchTask",
    "UsageError",
    "Verdict",
    "compare",
    "forecast",
]


def __getattr__(name: str) -> Any:
    if name not in _PLACES:
        raise AttributeError(f"module 'optim_bench' has no attribute {name!r}")
    value = getattr(importlib.import_module(f"optim_bench.{_PLACES[name]}"), name)
    # Not asked for again.
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
