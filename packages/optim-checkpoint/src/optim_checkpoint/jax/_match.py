"""Fitting a saved tree into a template: every difference first, then the values."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from optim_checkpoint._errors import shown
from optim_checkpoint._names import name_differences
from optim_checkpoint._paths import Path, kind_difference, text
from optim_checkpoint.jax._leaves import Pending, is_key
from optim_checkpoint.jax._sections import SavedLeaf, SavedTree
from optim_checkpoint.jax._tree import leaves, structure


def match(what: str, saved: SavedTree, template: Any, differences: list[str]) -> Callable[[], Any]:
    """Compare a saved tree with a template.

    Args:
        what: What to call it in a difference.
        saved: The decoded section.
        template: A tree of arrays or `jax.ShapeDtypeStruct`; it decides classes and placement.
        differences: Receives every difference.

    Returns:
        Builds the restored tree; to be called after the read and only without differences.
    """
    shape = structure(template, what)
    rows = leaves(template, what)
    live = {path for path, _ in rows}
    _compare_names(what, saved, live, differences)
    for path in sorted(saved.nodes.keys() & shape.nodes.keys()):
        if saved.nodes[path] != shape.nodes[path]:
            differences.append(
                f"{what} {text(path)} is a {saved.nodes[path]} in the checkpoint, a "
                f"{shape.nodes[path]} here"
            )
    makers: list[Callable[[], Any]] = []
    for path, leaf in rows:
        if path not in saved.leaves:
            continue
        where = f"{what} {text(path)}"
        stored = saved.leaves[path]
        parameters = shape.packed.get(path)
        if stored.packed is not None and parameters is not None:
            makers.append(_packed(where, stored, parameters, leaf, differences))
        elif stored.packed is not None:
            differences.append(f"{where} is packed per parameter in the checkpoint only")
        else:
            if stored.order is not None and stored.order != tuple(parameters or ()):
                differences.append(
                    f"{where} is stored as a whole and its parameters came in another order: "
                    f"{shown([text(p) for p in stored.order])}"
                )
            makers.append(_leaf(where, stored.value, leaf, differences))
    treedef = jax.tree.structure(template)
    return lambda: jax.tree.unflatten(treedef, [make() for make in makers])


def _compare_names(what: str, saved: SavedTree, live: set[Path], differences: list[str]) -> None:
    lost, new = sorted(saved.leaves.keys() - live), sorted(live - saved.leaves.keys())
    # What prints alike is told apart by what it is: a key "0" is not the key 0.
    spelled = {text(path): path for path in new}
    alike = {path: spelled[text(path)] for path in lost if text(path) in spelled}
    differences += [f"{what} {text(p)}: {kind_difference(p, other)}" for p, other in alike.items()]
    differences += name_differences(
        what,
        [text(path) for path in lost if path not in alike],
        [text(path) for path in new if path not in alike.values()],
        "the template",
    )


def _describe(value: Any) -> tuple[tuple[int, ...], str] | None:
    if is_key(value):
        impl = (
            str(jax.random.key_impl(value))
            if isinstance(value, jax.Array)
            else str(value.dtype._impl.name)
        )
        return tuple(value.shape), f"key<{impl}>"
    if hasattr(value, "shape") and hasattr(value, "dtype"):
        return tuple(value.shape), np.dtype(value.dtype).name
    return None


def _leaf(where: str, saved: Any, template: Any, differences: list[str]) -> Callable[[], Any]:
    here = _describe(template)
    if isinstance(saved, Pending):
        there = saved.describe()
        if here is None:
            differences.append(
                f"{where} is an array in the checkpoint, a {type(template).__name__} here"
            )
        else:
            _compare(where, there, here, differences)
            if there == here:
                saved.narrow(template)
        return lambda: _like(saved, template)
    there = _describe(saved)
    if there is not None:
        if here is None:
            differences.append(
                f"{where} is an array in the checkpoint, a {type(template).__name__} here"
            )
        else:
            _compare(where, there, here, differences)
    elif here is None and type(saved) is not type(template):
        differences.append(f"{where} is {shown(saved)} in the checkpoint, {shown(template)} here")
    elif here is not None and not isinstance(template, jax.ShapeDtypeStruct):
        differences.append(f"{where} is {shown(saved)} in the checkpoint, an array here")
    elif here is not None and here != _described_by_jax(saved):
        differences.append(
            f"{where} is the {type(saved).__name__} {shown(saved)} in the checkpoint, "
            f"{here[1]}{list(here[0])} here"
        )
    return lambda: _like(saved, template)


def _like(saved: Any, template: Any) -> Any:
    """Return a restored leaf in the class of its template, and placed as that is.

    A `jax.ShapeDtypeStruct` without a sharding, as `jax.eval_shape` makes it of NumPy arrays too,
    says nothing of the class: it is the saved one.
    """
    if isinstance(saved, Pending):
        if not isinstance(template, np.ndarray | np.generic):
            return saved.value(template)
        # A tied leaf may be a JAX array elsewhere, which nobody may write into.
        array = np.array(saved.array)
        return array[()] if isinstance(template, np.generic) else array
    if not isinstance(saved, np.ndarray | np.generic):
        return saved
    if getattr(template, "sharding", None) is not None:
        weak = bool(getattr(template, "weak_type", False))
        return Pending(np.array(saved), weak=weak).value(template)
    if isinstance(template, np.ndarray):
        return np.asarray(saved)
    return saved[()] if isinstance(template, np.generic) else saved


def _described_by_jax(value: Any) -> tuple[tuple[int, ...], str] | None:
    """Return what `jax.eval_shape` makes of a Python number."""
    if type(value) not in (bool, int, float, complex):
        return None
    return (), jax.dtypes.canonicalize_dtype(type(value)).name


def _compare(
    where: str,
    there: tuple[tuple[int, ...], str],
    here: tuple[tuple[int, ...], str],
    differences: list[str],
) -> None:
    if there[0] != here[0]:
        differences.append(
            f"{where} has shape {list(there[0])} in the checkpoint, {list(here[0])} here"
        )
    if there[1] != here[1]:
        differences.append(f"{where} has dtype {there[1]} in the checkpoint, {here[1]} here")


def _packed(
    where: str,
    saved: SavedLeaf,
    parameters: list[Path],
    template: Any,
    differences: list[str],
) -> Callable[[], Any]:
    stored = saved.packed or {}
    for path in sorted(stored.keys() - set(parameters)):
        differences.append(f"{where} has an entry for {text(path)}, which is not here")
    missing = [path for path in parameters if path not in stored]
    for path in missing:
        differences.append(f"{where} has no entry for {text(path)} in the checkpoint")
    here = _describe(template)
    if here is None or here[0][:1] != (len(parameters),) or here[1] != saved.dtype:
        differences.append(
            f"{where} is {saved.dtype} with {len(stored)} entries in the checkpoint, {here} here"
        )
    elif any(array.shape != here[0][1:] for array in stored.values()):
        differences.append(f"{where} has entries of another shape in the checkpoint")

    def make() -> Any:
        shape = here[0] if here else ()
        vector = np.empty(shape, np.dtype(saved.dtype))
        for i, path in enumerate(parameters):
            vector[i] = stored[path]
        return _like(Pending(vector) if saved.is_jax else vector, template)

    return make
