"""Fitting a saved tree into a template: every difference first, then the values."""

import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import jax
import numpy as np

from optim_checkpoint._casts import is_float
from optim_checkpoint._errors import CheckpointWarning, shown
from optim_checkpoint._names import name_differences
from optim_checkpoint._numpy import stored_name
from optim_checkpoint._partial import Fit, Selection
from optim_checkpoint._paths import Path, kind_difference, text
from optim_checkpoint.jax._leaves import Pending, is_key
from optim_checkpoint.jax._sections import SavedLeaf, SavedTree
from optim_checkpoint.jax._tree import leaves, split, structure


def match(
    what: str,
    saved: SavedTree,
    template: Any,
    differences: list[str],
    selection: Selection,
    parameters: Iterable[Path] = (),
) -> tuple[Callable[[], Any], Fit]:
    """Compare a saved tree with a template.

    Args:
        what: What to call it in a difference.
        saved: The decoded section.
        template: A tree of arrays or `jax.ShapeDtypeStruct`; it decides classes and placement, and
            has the values of what is not loaded.
        differences: Receives every difference.
        selection: What of it to load.
        parameters: The live parameters, for an optimizer state.

    Returns:
        What builds the restored tree, to be called after the read and only without differences;
        and which names were loaded.
    """
    shape = structure(template, what)
    rows = leaves(template, what)
    owners = None if what == "params" else {*parameters}
    moved, fit = fitted(what, saved, [path for path, _ in rows], selection, owners)
    differences += fit.differences
    wanted = {id(stored.value) for stored in moved.values()}
    for stored in saved.leaves.values():
        if isinstance(stored.value, Pending) and id(stored.value) not in wanted:
            stored.value.drop()
    live = {path for path, _ in rows if path in moved or not selection.partial}
    _compare_names(what, moved, live, differences)
    for path in sorted(saved.nodes.keys() & shape.nodes.keys()):
        if saved.nodes[path] != shape.nodes[path]:
            differences.append(
                f"{what} {text(path)} is a {saved.nodes[path]} in the checkpoint, a "
                f"{shape.nodes[path]} here"
            )
    makers: list[Callable[[], Any]] = []
    for path, leaf in rows:
        where = f"{what} {text(path)}"
        if path not in moved:
            makers.append(lambda leaf=leaf: leaf)
            if selection.partial and isinstance(leaf, jax.ShapeDtypeStruct):
                differences.append(
                    f"{where} is not loaded, and the template has no value for it: give arrays"
                )
            continue
        stored = moved[path]
        packed = shape.packed.get(path)
        if stored.packed is not None and packed is not None:
            makers.append(_packed(where, stored, packed, leaf, differences, selection, fit))
        elif stored.packed is not None:
            differences.append(f"{where} is packed per parameter in the checkpoint only")
        else:
            if stored.order is not None and stored.order != tuple(packed or ()):
                differences.append(
                    f"{where} is stored as a whole and its parameters came in another order: "
                    f"{shown([text(p) for p in stored.order])}"
                )
            makers.append(_Leaf(where, text(path), selection, fit, differences).maker(stored, leaf))
    treedef = jax.tree.structure(template)
    return lambda: jax.tree.unflatten(treedef, [make() for make in makers]), fit


def fitted(
    what: str,
    saved: SavedTree,
    live: Sequence[Path],
    selection: Selection,
    owners: set[Path] | None,
) -> tuple[dict[Path, SavedLeaf], Fit]:
    """Return what is to be loaded under the paths of the template, and how the names fit.

    Args:
        what: What to call it in a difference.
        saved: The decoded section.
        live: The paths of the template.
        selection: What of it to load.
        owners: For an optimizer state the live parameters, by which it is selected; None else.
    """
    if selection.plain:
        # By path: two of them may print alike.
        there = {text(path): text(path) for path in live if path in saved.leaves}
        return saved.leaves, Fit(there)
    paths = {text(path): path for path in saved.leaves}
    by_text = {text(path): path for path in live}

    def name_of(name: str) -> str:
        path, param = paths[name], saved.leaves[paths[name]].param
        if owners is None:
            return selection.name_of(name)
        if param is None:
            return name
        return ".".join([*map(_text, path[: -len(param)]), selection.name_of(text(param))])

    known = set(owners or ())
    for name, path in paths.items():
        param = saved.leaves[path].param
        if param is not None and name_of(name) in by_text:
            slots = len(path) - len(param)
            known.add(by_text[name_of(name)][slots:])

    def owner_of(name: str) -> str | None:
        if owners is None or name not in by_text:
            return name
        cut = split(by_text[name], known)
        return None if cut is None else text(cut[1])

    fit = selection.fit(what, paths, by_text, name_of, owner_of)
    moved = {
        by_text.get(name_of(name), path): saved.leaves[path]
        for name, path in paths.items()
        if not selection.partial or fit.there.get(name_of(name)) == name
    }
    return moved, fit


def _text(component: tuple[str, str]) -> str:
    return text((component,))


def _compare_names(
    what: str, saved: Mapping[Path, SavedLeaf], live: set[Path], differences: list[str]
) -> None:
    lost, new = sorted(saved.keys() - live), sorted(live - saved.keys())
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


@dataclass(frozen=True)
class _Leaf:
    """What a leaf is compared and built with; `name` is what it is called in the report."""

    where: str
    name: str
    selection: Selection
    fit: Fit
    differences: list[str]

    def maker(self, stored: SavedLeaf, template: Any) -> Callable[[], Any]:
        """Compare a saved leaf with that of the template, and return what builds it."""
        saved, here = stored.value, _describe(template)
        there = saved.describe() if isinstance(saved, Pending) else _describe(saved)
        if there is not None and here is None:
            self.differences.append(
                f"{self.where} is an array in the checkpoint, a {type(template).__name__} here"
            )
        elif there is not None and here is not None:
            fits = self._compare(there, here)
            if fits and isinstance(saved, Pending):
                saved.narrow(template)
            if fits and there != here:
                return lambda: _like(_cast(saved, here[1], self.where), template)
        elif here is None and type(saved) is not type(template):
            self.differences.append(
                f"{self.where} is {shown(saved)} in the checkpoint, {shown(template)} here"
            )
        elif here is not None and not isinstance(template, jax.ShapeDtypeStruct):
            self.differences.append(
                f"{self.where} is {shown(saved)} in the checkpoint, an array here"
            )
        elif here is not None and here != _described_by_jax(saved):
            self.differences.append(
                f"{self.where} is the {type(saved).__name__} {shown(saved)} in the checkpoint, "
                f"{here[1]}{list(here[0])} here"
            )
        return lambda: _like(saved, template)

    def _compare(
        self, there: tuple[tuple[int, ...], str], here: tuple[tuple[int, ...], str]
    ) -> bool:
        if there[0] != here[0]:
            self.differences.append(
                f"{self.where} has shape {list(there[0])} in the checkpoint, {list(here[0])} here"
            )
        old, new = stored_name(there[1]), stored_name(here[1])
        allowed = there[1] == here[1]
        if not allowed and old is not None and new is not None:
            allowed = self.selection.casting.allows(old, new)
            self.fit.cast[self.name] = (old, new)
        if not allowed:
            self.differences.append(
                f"{self.where} has dtype {there[1]} in the checkpoint, {here[1]} here"
            )
        return allowed and there[0] == here[0]


def _cast(saved: Any, dtype: str, where: str) -> Any:
    array = saved.array if isinstance(saved, Pending) else saved
    with np.errstate(over="ignore"):
        made = array.astype(np.dtype(dtype))
    floats = is_float(stored_name(dtype) or "")
    if floats and not all(np.array_equal(is_(array), is_(made)) for is_ in (np.isinf, np.isnan)):
        warnings.warn(
            f"cast: {where} had values beyond the range of {dtype}, in which it is now",
            CheckpointWarning,
            stacklevel=2,
        )
    return Pending(made, weak=saved.weak) if isinstance(saved, Pending) else made


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


def _packed(
    where: str,
    saved: SavedLeaf,
    parameters: list[Path],
    template: Any,
    differences: list[str],
    selection: Selection,
    fit: Fit,
) -> Callable[[], Any]:
    by_text = {text(path): path for path in parameters}
    names = {path: selection.name_of(text(path)) for path in saved.packed or {}}
    stored = {by_text.get(names[p], p): array for p, array in (saved.packed or {}).items()}
    if selection.plain:
        stored = saved.packed or {}
    stays = [path for path in parameters if path not in stored]
    for path in sorted(stored.keys() - set(parameters)):
        if not selection.partial:
            differences.append(f"{where} has an entry for {text(path)}, which is not here")
        else:
            fit.unexpected.append(f"{where} of {text(path)}")
    if not selection.partial:
        for path in stays:
            differences.append(f"{where} has no entry for {text(path)} in the checkpoint")
    else:
        fit.missing += [f"{where} of {text(path)}" for path in stays]
        left_out = [p for p in parameters if p in stored and not selection.wants(text(p))]
        fit.left_out += [f"{where} of {text(path)}" for path in left_out]
        stays += left_out
        if stays and isinstance(template, jax.ShapeDtypeStruct):
            differences.append(
                f"{where} is not loaded for {text(stays[0])}, and the template has no value for "
                "it: give arrays"
            )
    here = _describe(template)
    if here is None or here[0][:1] != (len(parameters),) or here[1] != saved.dtype:
        differences.append(
            f"{where} is {saved.dtype} with {len(stored)} entries in the checkpoint, {here} here"
        )
    elif any(stored[p].shape != here[0][1:] for p in parameters if p in stored and p not in stays):
        differences.append(f"{where} has entries of another shape in the checkpoint")

    def make() -> Any:
        shape = here[0] if here else ()
        vector = np.empty(shape, np.dtype(saved.dtype))
        if stays:
            vector[...] = np.asarray(template)
        for i, path in enumerate(parameters):
            if path not in stays:
                vector[i] = stored[path]
        return _like(Pending(vector) if saved.is_jax else vector, template)

    return make
