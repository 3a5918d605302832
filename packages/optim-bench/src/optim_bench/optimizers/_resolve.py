"""From a user's words to an `OptimizerInfo`: registered name, entry point or `module:factory`."""

import difflib
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib import metadata
from types import MappingProxyType
from typing import Any

from optim_bench.optimizers._calls import convention, name_of
from optim_bench.optimizers._info import OptimizerInfo, learning_rate
from optim_bench.optimizers._jax_entries import ENTRIES as _JAX
from optim_bench.optimizers._torch_entries import ENTRIES as _TORCH
from optim_bench.optimizers._torch_entries import OPTIONAL as _TORCH_OPTIONAL
from optim_bench.references import import_object, is_reference

# What this package brings.
OPTIMIZERS: Mapping[str, OptimizerInfo] = MappingProxyType(
    {info.key: info for info in (*_JAX, *_TORCH)}
)
# Known, but entered only where the distribution that each requires is installed.
OPTIONAL: Mapping[str, OptimizerInfo] = MappingProxyType(
    {info.key: info for info in _TORCH_OPTIONAL}
)


ENTRY_POINT_GROUP = "optim_bench.optimizers"


@dataclass(frozen=True)
class Discovery:
    """What installed packages offer.

    Args:
        optimizers: by `framework/name`.
        problems: entry points that cannot be used, with the reason in one line.
    """

    optimizers: Mapping[str, OptimizerInfo]
    problems: Mapping[str, str]


def discover() -> Discovery:
    """Load every entry point of the group `optim_bench.optimizers`.

    Each has to name an `OptimizerInfo` or a sequence of them. A broken one is reported, never
    raised: somebody else's package must not stop a run that does not use it.
    """
    found: dict[str, OptimizerInfo] = {}
    problems: dict[str, str] = {}
    for point in metadata.entry_points(group=ENTRY_POINT_GROUP):
        try:
            loaded: Any = point.load()
        except Exception as error:  # noqa: BLE001 - third-party import: anything can happen, all of it is reported
            problems[point.name] = f"{point.value} fails to load: {type(error).__name__}: {error}"
            continue
        infos = [loaded] if isinstance(loaded, OptimizerInfo) else loaded
        if not isinstance(infos, list | tuple) or not all(
            isinstance(info, OptimizerInfo) for info in infos
        ):
            problems[point.name] = f"{point.value} is no OptimizerInfo and no sequence of them"
            continue
        for info in infos:
            if info.key in {*OPTIMIZERS, *OPTIONAL, *found}:
                problems[point.name] = f"{point.value}: the name {info.key} is already taken"
            else:
                found[info.key] = info
    return Discovery(found, problems)


# Optimizers that were passed as objects live in this process alone.
_OBJECTS: dict[str, OptimizerInfo] = {}


def enter_optimizer(given: OptimizerInfo | Callable[..., Any], framework: str) -> str:
    """Make an optimizer known to this process and return the name that it then has.

    Args:
        given: a declaration, or a factory as `OptimizerInfo` describes it.
        framework: where a factory belongs.

    Raises:
        ValueError: a registered optimizer has the name.
    """
    if isinstance(given, OptimizerInfo):
        info = given
    else:
        info = _from_factory(name_of(given), framework, given)
    if info.key in {*OPTIMIZERS, *OPTIONAL}:
        raise ValueError(
            f"{info.key} is a registered optimizer; give yours another name, "
            "or name it 'module:function'"
        )
    _OBJECTS[info.key] = info
    return info.name


def is_object(name: str) -> bool:
    """Return whether an optimizer of this name lives in this process alone."""
    return any(info.name == name for info in _OBJECTS.values())


def resolve(name: str, framework: str) -> OptimizerInfo:
    """Return the optimizer that `name` means in a framework.

    Args:
        name: a registry name ("adamw"), the name of an installed entry point, or
            `"module:factory"` or `"file.py:factory"`. What the last ones name is an
            `OptimizerInfo`, or a factory as `OptimizerInfo` describes it, whose hyperparameters are
            then passed on unchecked, with a tuning grid centred on the learning rate that is the
            default of its signature, or else on 1e-3.
        framework: `"jax"` or `"torch"`.

    Raises:
        ValueError: nothing is found; the message names what comes closest.

    Example:
        >>> resolve("adamw", "torch").title, resolve("adamw", "torch").learning_rate
        ('AdamW', 0.001)
        >>> resolve("adamv", "torch")
        Traceback (most recent call last):
        ...
        ValueError: no torch optimizer named 'adamv'; did you mean adamw?
    """
    if is_reference(name):
        return _from_reference(name, framework)
    key = f"{framework}/{name}"
    for registry in (OPTIMIZERS, OPTIONAL, _OBJECTS):
        if key in registry:
            return registry[key]
    discovery = discover()
    if key in discovery.optimizers:
        return discovery.optimizers[key]
    everything = {**OPTIMIZERS, **OPTIONAL, **discovery.optimizers}
    known = [info.name for info in everything.values() if info.framework == framework]
    close = difflib.get_close_matches(name, known, n=1)
    hint = f"did you mean {close[0]}?" if close else f"there are {', '.join(sorted(known))}"
    if not close and name in {info.name for info in everything.values()}:
        hint += f" ({name} exists only in the other framework)"
    broken = "".join(f"; plugin {point}: {why}" for point, why in discovery.problems.items())
    raise ValueError(f"no {framework} optimizer named {name!r}; {hint}{broken}")


def _from_reference(reference: str, framework: str) -> OptimizerInfo:
    found = import_object(reference)
    if isinstance(found, OptimizerInfo):
        if found.framework != framework:
            raise ValueError(f"{reference} is a {found.framework} optimizer, not a {framework} one")
        return found
    if not callable(found):
        # What a user typed is wrong, not what a caller passed: a ValueError like the others here.
        raise ValueError(  # noqa: TRY004
            f"{reference} is a {type(found).__name__}; it has to be a factory or an OptimizerInfo"
        )
    return _from_factory(reference, framework, found)


# Where the signature of a factory has no learning rate of its own.
_CENTRE = 1e-3


def _from_factory(name: str, framework: str, factory: Callable[..., Any]) -> OptimizerInfo:
    return OptimizerInfo(
        name=name,
        framework=framework,
        title=name,
        family="third-party",
        factory=factory,
        parameters={"learning_rate": learning_rate(convention(factory).default or _CENTRE)},
        open_parameters=True,
    )
