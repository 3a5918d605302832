"""Folders of Orbax: a step of a CheckpointManager, or one tree.

Differs from `StandardCheckpointer.restore` with a template in: the arrays come back as they were
stored, and shapes, dtypes and paths are compared with the template by this package.
"""

import warnings
from collections.abc import Collection
from pathlib import Path
from typing import Any

import jax

from optim_checkpoint._collect import Collector
from optim_checkpoint._errors import (
    CheckpointNotFoundError,
    CorruptCheckpointError,
    UnsupportedStateError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint.jax._leaves import array_leaf, is_key
from optim_checkpoint.jax._save import save
from optim_checkpoint.migrate._found import Report, listed, storable

_PARTS = ("params", "opt_state", "rng")
_ITEM = "_METADATA"


def import_tree(
    source: Path,
    path: StrPath,
    step: int | None,
    keys: dict[str, str],
    leave_out: Collection[str],
    template: Any,
    *,
    replace: bool,
) -> Report:
    """Import a folder of Orbax; the arguments are those of `import_checkpoint`."""
    folder, number = _step_folder(source, step)
    if number is None:
        raise ValueError(f"{source} does not say which step it is of: give step (--step)")
    left_out = [f"{name}: was to be left out" for name in leave_out]
    tree = _tree(folder)
    for name in leave_out:
        if name not in tree:
            raise ValueError(f"nothing to leave out is called {name!r}; there is {listed(tree)}")
        del tree[name]
    wanted = {}
    if template is not None:
        if not isinstance(template, dict):
            raise ValueError(f"template is a {type(template).__name__}; it must be a dict of trees")
        wanted = {name: template[name] for name in template if name not in leave_out}
        unknown = [name for name in wanted if name not in tree]
        if unknown:
            raise UnsupportedStateError(
                str(folder), f"has no {shown(unknown[0])}, it has {listed(tree)}"
            )
    parts: dict[str, Any] = {}
    for what in _PARTS:
        key = keys.get(what, what)
        if key in tree:
            parts[what] = _filled(tree.pop(key), wanted.get(key), what, str(folder))
        elif what in keys:
            raise UnsupportedStateError(str(folder), f"has no {shown(key)}, it has {listed(tree)}")
    if "params" not in parts and "opt_state" not in parts:
        raise UnsupportedStateError(
            str(folder), f"has no params: it has {listed(tree)}; give keys (--key params=...)"
        )
    extra = storable(tree, array_leaf(Collector(), ""), left_out)
    written = save(path, number, **parts, extra=extra or None, replace=replace)
    holds = [f"{what}: {len(jax.tree.leaves(value))} leaves" for what, value in parts.items()]
    holds += [f"extra: {listed(extra)}"] if extra else []
    if "rng" not in parts:
        left_out.append("generators: the source has none called rng")
    return Report(written, number, "orbax", tuple(holds), tuple(left_out), ())


def _step_folder(source: Path, step: int | None) -> tuple[Path, int | None]:
    """Return the folder of a step, and its number where the folder says it."""
    numbers = sorted(int(each.name) for each in source.iterdir() if each.name.isdecimal())
    if (source / _ITEM).exists() or not numbers:
        named = int(source.name) if source.name.isdecimal() else None
        return source, named if step is None else step
    number = numbers[-1] if step is None else step
    if number not in numbers:
        raise CheckpointNotFoundError(f"{source} has no step {number}; it has {listed(numbers)}")
    return source / str(number), number


def _tree(folder: Path) -> dict[str, Any]:
    """Return what a step holds: of several items each under its name."""
    if (folder / _ITEM).exists():
        return _restored(folder)
    items = sorted(each.name for each in folder.iterdir() if (each / _ITEM).exists())
    if not items:
        raise CheckpointNotFoundError(f"{folder} holds no tree of Orbax")
    if len(items) == 1:
        return _restored(folder / items[0])
    return {name: _restored(folder / name) for name in items}


def _restored(folder: Path) -> dict[str, Any]:
    try:
        import orbax.checkpoint as ocp
    except ModuleNotFoundError:
        raise UnsupportedStateError(
            str(folder), "needs orbax-checkpoint, which is not installed"
        ) from None
    try:
        with (
            warnings.catch_warnings(),
            ocp.Checkpointer(ocp.PyTreeCheckpointHandler()) as checkpointer,
        ):
            # That no template says where the arrays are to be.
            warnings.simplefilter("ignore")
            tree = checkpointer.restore(folder.absolute())
    except Exception as error:
        text = " ".join(str(error).split())
        raise CorruptCheckpointError(str(folder), f"Orbax says: {shown(text)}") from error
    return tree if isinstance(tree, dict) else {"params": tree}


def _filled(tree: Any, template: Any, what: str, where: str) -> Any:
    """Return a tree with the classes of a template; without one it may have none of its own."""
    if template is None:
        if what == "opt_state":
            raise UnsupportedStateError(
                where,
                "holds opt_state, of which Orbax keeps no classes: import it in Python with "
                'template={"opt_state": tx.init(params)}, or leave it out (--leave-out opt_state)',
            )
        return tree
    stored = {_path(p): v for p, v in jax.tree_util.tree_flatten_with_path(tree)[0]}
    rows, structure = jax.tree_util.tree_flatten_with_path(template)
    live = {_path(p): v for p, v in rows}
    differences = [f"{'.'.join(p)} is only in the source" for p in stored if p not in live]
    differences += [f"{'.'.join(p)} is only in the template" for p in live if p not in stored]
    for path in stored.keys() & live.keys():
        here, there = _kind(live[path]), _kind(stored[path])
        if here != there:
            differences.append(f"{'.'.join(path)} is {there} in the source, {here} in the template")
    if differences:
        raise UnsupportedStateError(where, f"{what} does not fit: {'; '.join(differences[:8])}")
    return jax.tree.unflatten(structure, [stored[_path(p)] for p, _ in rows])


def _path(entries: Any) -> tuple[str, ...]:
    """Return a path as Orbax keeps it, which makes dict keys of fields and text of all keys."""
    return tuple(
        str(getattr(entry, "key", getattr(entry, "idx", getattr(entry, "name", entry))))
        for entry in entries
    )


def _kind(value: Any) -> str:
    shape, dtype = getattr(value, "shape", None), getattr(value, "dtype", None)
    if shape is None or dtype is None:
        return type(value).__name__
    return f"{'key' if is_key(value) else dtype}{list(shape)}"
