"""What has to be installed for what the user asks: checked at once, before anything starts."""

import importlib.util
from collections.abc import Iterable, Sequence
from importlib import metadata

from optim_bench.executors import EXTRAS as EXECUTOR_EXTRAS
from optim_bench.executors.train import FRAMEWORK_MODULES, MissingExtraError
from optim_bench.optimizers import OptimizerInfo


def require(
    frameworks: Sequence[str],
    *,
    executor: str = "process",
    optimizers: Iterable[OptimizerInfo] = (),
) -> None:
    """Check that everything is installed, without importing any of it.

    Args:
        frameworks: the frameworks that take part.
        executor: name of the executor.
        optimizers: the optimizers that take part; some need a distribution of their own.

    Raises:
        MissingExtraError: something is missing; the one line names all of it, with the one command
            that installs all of it.

    Example:
        >>> require([])
    """
    missing: list[str] = []
    extras: list[str] = []
    for framework in frameworks:
        if module := _first_missing(FRAMEWORK_MODULES[framework]):
            missing.append(f"{framework} runs need {module}")
            extras.append(framework)
    if executor in EXECUTOR_EXTRAS and _first_missing([EXECUTOR_EXTRAS[executor]]):
        missing.append(f"--executor {executor} needs {EXECUTOR_EXTRAS[executor]}")
        extras.append(executor)
    distributions: list[str] = []
    for info in optimizers:
        if info.requires is not None and not installed(info.requires):
            missing.append(f"{info.key} needs {info.requires}")
            distributions.append(info.requires)
    if not missing:
        return
    packages = [f"'optim-bench[{','.join(sorted(extras))}]'"] if extras else []
    packages += sorted(set(distributions))
    verb = "which is" if len(missing) == 1 else "which are"
    raise MissingExtraError(
        f"{', '.join(missing)}, {verb} not installed: pip install {' '.join(packages)}"
    )


def installed(distribution: str) -> bool:
    """Return whether a distribution is installed."""
    try:
        metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return False
    return True


def _first_missing(modules: Iterable[str]) -> str | None:
    return next((name for name in modules if importlib.util.find_spec(name) is None), None)
