"""Restoring a JAX training run: everything is read and verified, then built."""

import contextlib
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from optim_checkpoint._casts import SAFE, Casting, is_float
from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._data import Data, data_by_key, load_data
from optim_checkpoint._errors import (
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    shown,
)
from optim_checkpoint._folder import StrPath
from optim_checkpoint._generation import Generation
from optim_checkpoint._json import as_array, as_object
from optim_checkpoint._numpy import stored_name
from optim_checkpoint._partial import Fit, Only, Rename, Report, Selection
from optim_checkpoint._paths import Path as TreePath
from optim_checkpoint._paths import text
from optim_checkpoint._peers import Team
from optim_checkpoint._place import Place
from optim_checkpoint._select import Skipped, choose
from optim_checkpoint.jax._from_torch import params_tree, state_tree
from optim_checkpoint.jax._leaves import decode_leaf, pending_leaf, settle_jax
from optim_checkpoint.jax._match import match
from optim_checkpoint.jax._processes import readers
from optim_checkpoint.jax._sections import decode_tree
from optim_checkpoint.jax._tree import leaves


@dataclass(frozen=True)
class Restored:
    """A restored training run.

    Attributes:
        step: The step that was restored.
        params: The parameters, or None where no template was given.
        opt_state: The optimizer state, or None where no template was given.
        rng: What `save` got as `rng`, or None.
        extra: What `save` got as `extra`, or None.
        path: The generation it came from.
        skipped: Newer generations that were damaged, with the reasons.
        report: What was loaded, missing, unexpected, left out, renamed and cast, under "params" and
            "opt_state".
    """

    step: int
    params: Any
    opt_state: Any
    rng: Any
    extra: dict[str, Any] | None
    path: Place
    skipped: tuple[Skipped, ...]
    report: Mapping[str, Report] = field(default_factory=dict)


def _read(
    generation: Generation,
    templates: dict[str, Any],
    loaders: Collection[str],
    selection: Selection,
    team: Team,
) -> dict[str, Any]:
    framework = generation.manifest.framework.get("name")
    if framework not in ("jax", "torch"):
        raise IncompatibleCheckpointError([f"it was saved by {shown(framework)}, not by jax"])
    sections = generation.manifest.sections
    stagings: list[Staging] = []
    makers: dict[str, Any] = {}
    fits: dict[str, Fit] = {}
    parameters = [path for path, _ in leaves(templates["params"], "params")]
    differences: list[str] = []
    for name, part, what in (
        ("model", "model", "params"),
        ("optimizer", "optim", "opt_state"),
    ):
        if templates[what] is None:
            continue
        if name not in sections:
            differences.append(f"the checkpoint holds no {what}")
            continue
        staging = Staging.of(generation, part)
        stagings.append(staging)
        if framework == "jax":
            saved = decode_tree(sections[name], staging)
        elif what == "params":
            entries, fits[what] = _renamed(sections[name], parameters, selection)
            differences += fits[what].differences
            saved = params_tree(entries, templates[what], staging, differences)
        else:
            if not selection.plain:
                differences.append(
                    "the optimizer was saved by torch: it is restored whole or not at all, without "
                    "strict=False, rename, only and cast"
                )
            number = generation.name.step
            saved = state_tree(sections[name], templates[what], number, staging, differences)
        # Names that were translated are those of the template.
        translated = selection.translated() if what in fits else selection
        makers[what], fit = match(what, saved, templates[what], differences, translated, parameters)
        fits.setdefault(what, fit).cast |= fit.cast
    differences += selection.unused()
    train = as_object(sections.get("train"))
    if train is None:
        raise CorruptCheckpointError(str(generation.name), "the train section is malformed")
    staging = Staging.of(generation, "train")
    stagings.append(staging)
    loose = {
        name: decode_leaf(train[name], staging, pending_leaf(staging))
        for name in ("rng", "extra", *loaders)
        if name in train and framework == "jax"
    }
    stored = {name for name in train if name.partition("/")[0] == "data"}
    if loaders and stored != {*loaders}:
        there = ", ".join(sorted(stored)) or "no data"
        differences.append(
            f"the checkpoint of step {generation.name.step} holds {there}, asked for was "
            f"{', '.join(sorted(loaders))}"
        )
    if differences:
        raise IncompatibleCheckpointError(differences)
    read_staged(generation, *stagings, rank=team.rank, size=team.size)
    values: dict[str, Any] = {name: settle_jax(value) for name, value in loose.items()}
    report = {what: fit.report() for what, fit in fits.items()}
    return values | {what: make() for what, make in makers.items()} | {"report": report}


def _renamed(
    section: object, parameters: Iterable[TreePath], selection: Selection
) -> tuple[object, Fit]:
    """Return the entries of a torch model that are to be loaded, under their live names."""
    entries = {str(item[0]): item[1] for item in map(as_array, as_array(section) or ()) if item}
    fit = selection.fit("params", entries, map(text, parameters))
    if selection.plain:
        return section, fit
    if selection.partial:
        return [[new, entries[old]] for new, old in fit.there.items()], fit
    return [[selection.name_of(name), value] for name, value in entries.items()], fit


def restore(
    path: StrPath,
    step: int | None = None,
    *,
    params: Any = None,
    opt_state: Any = None,
    data: Data = None,
    strict: bool = True,
    rename: Rename | None = None,
    only: Only | None = None,
    cast: Any = None,
) -> Restored:
    """Restore a training run: everything is read and verified, then built.

    The templates decide tree structure, classes, dtypes, shapes and placement: an array goes where
    the template's is sharded. They may be the freshly initialised trees or the result of
    `jax.eval_shape`; their values are not used. Packed statistics go to their parameters by name.

    Where a template is spread over several processes, every process makes this call and reads the
    shards it will hold, from a checkpoint of any mesh or of one process; together they verify all
    of it and take the same generation. `rng` and `extra` come back as arrays of each process.

    A checkpoint of PyTorch is read too, where the parameters have the same dotted names and shapes
    and the optimizers are a pair (AdamW, sign momentum, SGD with momentum); its `extra` and its
    generators are not.

    A part of a checkpoint is loaded with `strict`, `rename`, `only` and `cast`, which go for the
    dotted names of parameters, and for the optimizer state of each. Shapes must agree all the same.
    What is not loaded has the template's value, which then has to be an array, and is listed in the
    result's `report`.

    Args:
        path: The folder of the run.
        step: The step; None takes the newest generation that verifies, with a
            `CheckpointWarning` for each one skipped.
        params: Template of the parameters, if wanted.
        opt_state: Template of the optimizer state, if wanted.
        data: The iterator or loader to set to where it was, or several by name, if wanted; it alone
            is changed in place, when everything else has been built.
        strict: Whether names that only one side has are an error.
        rename: Names in the template by saved ones, where ``{"encoder": "backbone.encoder"}`` goes
            for all that starts with ``encoder.`` and an empty new name takes a prefix away; or a
            function of the saved name.
        only: Patterns of names in the template as in a shell, for instance ``["backbone.*"]``;
            nothing else is loaded, but for what belongs to no parameter, as counts of steps do.
            Patterns that start with "!" leave out.
        cast: None wants the saved dtypes; "safe" converts to the template's dtype where that holds
            every value; a dtype converts floating-point values to it, with rounding, where the
            template has it.

    Returns:
        The restored trees, keys and extra values, and the report.

    Raises:
        CheckpointNotFoundError: If there is no such generation.
        CorruptCheckpointError: If every candidate is damaged.
        CheckpointReadError: If the generation cannot be read; no older one is taken for it.
        IncompatibleCheckpointError: With every difference between checkpoint and templates.
        UnsupportedStateError: If a template has keys that cannot be stored.
        TypeError: If an argument is of another kind.
        ValueError: If `cast` is nothing that can be converted to.
    """
    casting = _casting(cast)

    def read(generation: Generation) -> dict[str, Any]:
        selection = Selection(strict=strict, rename=rename, only=only, casting=casting)
        return _read(generation, templates, loaders, selection, team)

    # What is wrong with the arguments is no matter of the checkpoint.
    Selection(rename=rename, only=only)
    loaders = data_by_key(data)
    templates = {"params": params, "opt_state": opt_state}
    team = readers(params, opt_state)
    chosen = choose(path, step, read, team)
    value = chosen.value
    load_data([(loader, value[name]) for name, loader in loaders.items()])
    return Restored(
        chosen.step,
        value.get("params"),
        value.get("opt_state"),
        value.get("rng"),
        value.get("extra"),
        chosen.path,
        chosen.skipped,
        value["report"],
    )


def _casting(cast: Any) -> Casting:
    rule = SAFE if isinstance(cast, str) and cast == SAFE else None
    if cast is not None and not isinstance(cast, str):
        with contextlib.suppress(TypeError):
            rule = stored_name(np.dtype(cast).name)
    if cast is not None and (rule is None or (rule != SAFE and not is_float(rule))):
        raise ValueError(f'cast is {cast!r}; it must be None, "safe" or a floating-point dtype')
    return Casting(rule)
