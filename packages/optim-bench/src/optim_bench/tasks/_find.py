"""From a user's words, or an object of theirs, to what a plan compares on."""

import dataclasses
from importlib import metadata
from typing import Any

from optim_bench.errors import UsageError, unknown_name
from optim_bench.references import import_object, is_reference, module_of
from optim_bench.tasks._task import Entry, Task
from optim_bench.tasks.built_in import WORKLOADS

ENTRY_POINT_GROUP = "optim_bench.tasks"
# Tasks that were passed as objects live in this process alone.
_OBJECTS: dict[str, Task] = {}
# A task without a name gets one here, and always the same object with it: programs are compiled
# once for each.
_NAMED: dict[tuple[int, str], tuple[Task, Task]] = {}


def find_task(reference: str) -> Entry:
    """Return what a name means.

    Args:
        reference: the name of a built-in workload, `"module:task"`, `"file.py:task"`, the name of
            an entry point of the group `optim_bench.tasks`, or of a task that was entered as an
            object.

    Raises:
        UsageError: nothing is found, or what is found is no task.

    Example:
        >>> find_task("digits-cnn").frameworks
        ('jax', 'torch')
    """
    if reference in WORKLOADS:
        return WORKLOADS[reference]
    if reference in _OBJECTS:
        return _OBJECTS[reference]
    if is_reference(reference):
        try:
            found = import_object(reference, "task")
        except ValueError as error:
            raise UsageError(str(error)) from error
        attribute = reference.rpartition(":")[2]
        stem = module_of(reference).rpartition(".")[2]
        return _checked(found, reference, stem if attribute == "task" else attribute)
    points = {point.name: point for point in metadata.entry_points(group=ENTRY_POINT_GROUP)}
    if reference not in points:
        if reference.endswith(".py"):
            raise UsageError(f"{reference!r} names a file; say which task of it: {reference}:task")
        raise unknown_name("workload", reference, {*WORKLOADS, *points})
    point = points[reference]
    try:
        found = point.load()
    except Exception as error:
        raise UsageError(
            f"the task {reference} of {point.value} fails to load: {type(error).__name__}: {error}"
        ) from error
    return _checked(found, point.value, reference)


def enter_task(task: Task) -> str:
    """Make a task object known to this process and return the reference to it."""
    named = _checked(task, "the task", "task")
    _OBJECTS[f"object {named.name}"] = named
    return f"object {named.name}"


def is_object(reference: str) -> bool:
    """Return whether a reference names a task of this process alone."""
    return reference in _OBJECTS


def _checked(found: Any, reference: str, name: str) -> Task:
    if not isinstance(found, Task):
        raise UsageError(
            f"{reference} is a {type(found).__name__}; it has to be a TorchTask or a JaxTask"
        )
    if found.name in WORKLOADS:
        raise UsageError(
            f"{reference} is called {found.name}, and so is a built-in workload; give it another "
            "name=..."
        )
    if found.name:
        return found
    key = (id(found), name)
    if key not in _NAMED:
        _NAMED[key] = found, dataclasses.replace(found, name=name)
    return _NAMED[key][1]
