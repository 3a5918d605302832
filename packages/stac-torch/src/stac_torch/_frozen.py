"""Parameters that were frozen when their model was partitioned.

Groups hold them without state, so that they train as soon as they have a gradient; or they are left
out and known by identity, for those who add them later.
"""

import weakref
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from torch import Tensor

from stac_torch._layers import is_trained
from stac_torch._state_dict import saved_names


class FrozenParameters:
    """Names and sections of a model's parameters that were frozen when it was partitioned.

    Known by identity and without keeping them alive: FSDP and ``Module.to`` replace parameters,
    and the old ones must go.

    Args:
        entries: Parameter, name and role of each.
    """

    def __init__(self, entries: Iterable[tuple[Tensor, str, str]] = ()) -> None:
        self._entries = {
            id(parameter): (weakref.ref(parameter), name, role) for parameter, name, role in entries
        }

    def __reduce__(self) -> tuple[Any, ...]:
        alive = ((ref(), name, role) for ref, name, role in self._entries.values())
        return FrozenParameters, ([entry for entry in alive if entry[0] is not None],)

    def find(self, parameters: Sequence[Any]) -> list[tuple[str, str]] | None:
        """Return name and role of each parameter; None unless all are known."""
        found: list[tuple[str, str]] = []
        for parameter in parameters:
            ref, name, role = self._entries.get(id(parameter), (None, "", ""))
            if ref is None or ref() is not parameter:
                return None
            found.append((name, role))
        return found


def common_role(known: Sequence[tuple[str, str]]) -> str:
    """Return the section of known parameters.

    Raises:
        ValueError: They are of both.
    """
    by_role = {role: name for name, role in known}
    if len(by_role) > 1:
        msg = (
            f"these parameters belong to both sections, {by_role['sign']!r} to sign and "
            f"{by_role['adamw']!r} to adamw: add a group for each, or one with a 'role'"
        )
        raise ValueError(msg)
    return known[0][1]


def take_away(groups: Sequence[dict[str, Any]], parameters: Sequence[Tensor]) -> None:
    """Take parameters and their names out of the groups that hold them; the lists are new ones."""
    gone = set(map(id, parameters))
    for group in groups:
        kept = [i for i, p in enumerate(group["params"]) if id(p) not in gone]
        if len(kept) < len(group["params"]):
            for key in ("params", "param_names"):
                if key in group:
                    group[key] = [group[key][i] for i in kept]


def with_frozen(
    state_dict: Mapping[str, Any], groups: Sequence[Mapping[str, Any]]
) -> dict[str, Any]:
    """Return a state dict with the frozen parameters that it lacks, without state.

    Releases before this one left them out. Only names can tell that nothing else is missing.

    Args:
        state_dict: What the user loads; not changed.
        groups: The optimizer's groups.
    """
    saved = list(state_dict.get("param_groups", ()))
    names = saved_names(state_dict) if saved else []
    sizes = [len(group["params"]) for group in saved]
    if None in names or sizes == [len(group["params"]) for group in groups]:
        return dict(state_dict)
    rest = list(zip(saved, names, strict=True))
    new = 1 + max((key for g in saved for key in g["params"] if isinstance(key, int)), default=0)
    filled: list[dict[str, Any]] = []
    for group in groups:
        own = list(zip(group.get("param_names", ()), group["params"], strict=False))
        trained = tuple(name for name, p in own if is_trained(p))
        theirs: Mapping[str, Any] = {**group, "params": []}
        if trained:
            if not rest or rest[0][1] != trained:
                return dict(state_dict)
            theirs = rest.pop(0)[0]
        if len(theirs["params"]) != len(trained):
            return dict(state_dict)
        keys = dict(zip(trained, theirs["params"], strict=True))
        for name, _ in own:
            if name not in keys:
                keys[name], new = new, new + 1
        every = [name for name, _ in own]
        filled.append({**theirs, "params": [keys[n] for n in every], "param_names": every})
    if rest:
        return dict(state_dict)
    return {"state": state_dict.get("state", {}), "param_groups": filled}
