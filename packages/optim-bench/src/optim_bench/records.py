"""What one training run is asked for and what it gives back: all that crosses a process border.

A `RunSpec` says everything that decides the numbers of a run. Its key, the SHA-256 of its canonical
JSON, names the run in the store; two specs with one key are one run. A `RunRecord` is the outcome.
Both translate to strict JSON (no NaN, no Infinity: what is not finite is `null`, and the status
says why).
"""

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

FRAMEWORKS = ("jax", "torch")
STATUSES = ("ok", "diverged", "failed")
SCHEDULES = ("cosine", "constant", "linear", "warmup", "wsd")
# The schedule of a task that brings its own function.
OWN_SCHEDULE = "own"
REQUIRED_METRICS = ("train_loss", "val_loss", "test_loss")
MAX_CURVE_POINTS = 200
# Left out where they are None.
OPTIONAL_FIELDS = frozenset({"source", "task", "start"})

Hyperparameter = float | int | str | bool | None


@dataclass(frozen=True)
class RunSpec:
    """One training run, completely described.

    Args:
        workload: registry name, for example `"digits-cnn"`.
        workload_version: the version that the workload declares; a changed workload never meets
            old results.
        framework: `"jax"` or `"torch"`.
        optimizer: registry name, or `"module:factory"`.
        hyperparameters: always holds `"learning_rate"` (a finite number); the rest are the
            optimizer's own.
        seed: decides initial parameters and data order, the same for every optimizer.
        steps: the horizon T in optimizer steps, at least 1.
        schedule: one of `SCHEDULES` (`optim_bench.executors.train` has their formulas), or `"own"`.
        protocol: version of the comparison's rules.
        source: identity of the code that comes from outside this package
            (`optim_bench.results.source`), None where nothing does; it is then no part of the key.
        task: what a task from outside is found by, `"module:task"` or `"file.py:task"`, None for a
            built-in workload. No part of the key: where a file lies decides no number.

    Raises:
        ValueError: a field is outside its range; the message names the field and its value.

    Example:
        >>> rate = {"learning_rate": 1e-3}
        >>> spec = RunSpec("digits-cnn", 1, "jax", "adamw", rate, 0, 100, "cosine")
        >>> spec.key()[:12]
        '30d7020307ed'
        >>> dataclasses.replace(spec, seed=1).key() == spec.key()
        False
    """

    workload: str
    workload_version: int
    framework: str
    optimizer: str
    hyperparameters: Mapping[str, Hyperparameter]
    seed: int
    steps: int
    schedule: str
    protocol: str = "v1"
    source: str | None = None
    task: str | None = None

    def __post_init__(self) -> None:
        if self.framework not in FRAMEWORKS:
            raise ValueError(
                f"framework is {self.framework!r}; it has to be one of {', '.join(FRAMEWORKS)}"
            )
        if self.schedule not in (*SCHEDULES, OWN_SCHEDULE):
            raise ValueError(
                f"schedule is {self.schedule!r}; it has to be one of {', '.join(SCHEDULES)}"
            )
        if self.steps < 1:
            raise ValueError(f"steps is {self.steps}; a run needs at least 1")
        if self.seed < 0:
            raise ValueError(f"seed is {self.seed}; seeds start at 0")
        rate = self.hyperparameters.get("learning_rate")
        if not _is_number(rate):
            raise ValueError(
                f"hyperparameters['learning_rate'] is {rate!r}; every run needs a number"
            )
        for name, value in self.hyperparameters.items():
            if isinstance(value, float) and not math.isfinite(value):
                raise ValueError(f"hyperparameter {name} is {value}; it has to be finite")

    def to_json(self) -> dict[str, Any]:
        """Return the spec as a plain dictionary that strict JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        for name in OPTIONAL_FIELDS:
            if values.get(name) is None:
                values.pop(name, None)
        # 1 and 1.0 are one learning rate and have to give one key.
        rate = float(cast("float", self.hyperparameters["learning_rate"]))
        return {**values, "hyperparameters": {**self.hyperparameters, "learning_rate": rate}}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunSpec":
        """Rebuild a spec from `to_json`'s dictionary.

        Raises:
            ValueError: a field is missing, unknown or out of range.
        """
        _check_fields(cls, data)
        return cls(**data)

    def key(self) -> str:
        """Return the SHA-256, 64 hex digits, of the JSON with sorted keys and no spaces."""
        identity = {name: value for name, value in self.to_json().items() if name != "task"}
        text = json.dumps(identity, sort_keys=True, separators=(",", ":"), allow_nan=False)
        return hashlib.sha256(text.encode("ascii")).hexdigest()


@dataclass(frozen=True)
class RunRecord:
    """What one run gave.

    Args:
        spec: what was asked for.
        status: `"ok"`, `"diverged"` (a loss became non-finite) or `"failed"` (the run raised; see
            `error`).
        metrics: `"train_loss"`, `"val_loss"` and `"test_loss"` always (`None` when not finite), and
            whatever else the workload measures, for example `"test_accuracy"`.
        curve: `"step"`, `"train_loss"`, `"val_loss"`: equally long, at most 200 points.
        parameters: number of trained scalars.
        parameter_bytes: their exact size.
        state_bytes: exact size of the optimizer's state, counted on the live objects.
        seconds: `"total"`, `"first_step"` (with compilation), `"loop"`: wall clock of one worker
            among others, no timing claim.
        environment: versions of what ran.
        error: one line for a failed run, else `None`.
        start: digests of the initial parameters and the first batch, equal for every optimizer of
            one task, framework and seed; None where they are not known.

    Raises:
        ValueError: a field contradicts this description.
    """

    spec: RunSpec
    status: str
    metrics: Mapping[str, float | None]
    curve: Mapping[str, Sequence[float | None]]
    parameters: int
    parameter_bytes: int
    state_bytes: int
    seconds: Mapping[str, float]
    environment: Mapping[str, str]
    error: str | None
    start: str | None = None

    def __post_init__(self) -> None:
        if self.status not in STATUSES:
            raise ValueError(
                f"status is {self.status!r}; it has to be one of {', '.join(STATUSES)}"
            )
        missing = [name for name in REQUIRED_METRICS if name not in self.metrics]
        if missing:
            raise ValueError(f"metrics lack {', '.join(missing)}; give None for what is not finite")
        for name, value in self.metrics.items():
            if value is not None and not math.isfinite(value):
                raise ValueError(f"metric {name} is {value}; give None for what is not finite")
        if self.status == "ok" and not all(map(self._known, ("train_", "val_", "test_"))):
            raise ValueError(
                "status is 'ok' but a loss is None; a run without finite losses is 'diverged'"
            )
        lengths = {name: len(points) for name, points in self.curve.items()}
        if len(set(lengths.values())) > 1:
            raise ValueError(f"curve has unequal lengths {lengths}")
        if max(lengths.values(), default=0) > MAX_CURVE_POINTS:
            raise ValueError(
                f"curve has {max(lengths.values())} points; keep at most {MAX_CURVE_POINTS}"
            )

    def _known(self, prefix: str) -> bool:
        """Return whether a split has a number: its loss, or what a task judges instead."""
        found = (v for name, v in self.metrics.items() if name.startswith(prefix))
        return any(value is not None for value in found)

    def to_json(self) -> dict[str, Any]:
        """Return the record as a plain dictionary that strict JSON can hold."""
        values = {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}
        if self.start is None:
            del values["start"]
        return {
            **values,
            "spec": self.spec.to_json(),
            "metrics": dict(self.metrics),
            "curve": {name: list(points) for name, points in self.curve.items()},
            "seconds": dict(self.seconds),
            "environment": dict(self.environment),
        }

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> "RunRecord":
        """Rebuild a record from `to_json`'s dictionary.

        Raises:
            ValueError: a field is missing, unknown or contradictory.
        """
        _check_fields(cls, data)
        spec = RunSpec.from_json(cast("Mapping[str, Any]", data["spec"]))
        return cls(**{**data, "spec": spec})


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _check_fields(cls: type[RunSpec] | type[RunRecord], data: Mapping[str, Any]) -> None:
    expected = {field.name for field in dataclasses.fields(cls)}
    # Absent where there is none, as in every record of an earlier version.
    if missing := sorted(expected - set(data) - OPTIONAL_FIELDS):
        raise ValueError(f"{cls.__name__} lacks {', '.join(missing)}")
    if unknown := sorted(set(data) - expected):
        raise ValueError(f"{cls.__name__} has unknown fields {', '.join(unknown)}")
