"""What one optimizer is, as data: its groups' options, and the update of each kind of group."""

from collections.abc import Callable, Mapping, MutableMapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from stac_torch._records import Flags, Slot
from stac_torch._report import Form


class Section(Protocol):
    """The update of the parameters of one kind of group, and the state that it keeps.

    Attributes:
        title: What messages call it.
        keys: Every key that a parameter's state may have.
        numbers: Those of them that hold one number.
        reals: Those of them that are real for a complex parameter too.
    """

    title: str
    keys: frozenset[str]
    numbers: frozenset[str]
    reals: frozenset[str]

    def check(self, group: Mapping[str, Any], parameter: Tensor) -> None:
        """Raise ValueError if a parameter cannot have the state that its group asks for."""
        ...

    def new_state(self, group: Mapping[str, Any], parameter: Tensor) -> dict[str, Tensor]:
        """Return the state of a parameter before its first step; empty if it needs none."""
        ...

    def complete_state(
        self, group: Mapping[str, Any], parameter: Tensor, state: MutableMapping[str, Tensor]
    ) -> None:
        """Give a state what the group's options ask for now and did not when it was made."""
        ...

    def required(self, group: Mapping[str, Any], state: Mapping[str, Any]) -> set[str]:
        """Return the keys that a saved state must have, given those that it has."""
        ...

    def form(self, group: Mapping[str, Any], slots: list[Slot], *, tallied: bool) -> Form:
        """Return the form of the steps to come.

        Args:
            group: The group.
            slots: Its parameters; gradients and states that are not there yet on the meta device.
            tallied: Whether steps count what they do.
        """
        ...

    def step_(self, group: Mapping[str, Any], slots: list[Slot], flags: Flags) -> None:
        """Take one step on the parameters of a group, in place."""
        ...


@dataclass(frozen=True)
class Family:
    """One optimizer.

    Attributes:
        name: Its name in messages.
        sections: The update for each role of a group; None stands for groups without one.
        defaults: Every key of a group, with the default that an older state dict gets.
        check: Returns a complete group with its values checked and in canonical form.
        format: The key of a group that holds the format of its state, and the present one.
    """

    name: str
    sections: Mapping[str | None, Section]
    defaults: Mapping[str, Any]
    check: Callable[[Mapping[str, Any]], dict[str, Any]]
    format: tuple[str, int]

    def section(self, group: Mapping[str, Any]) -> Section:
        """Return the update of a group."""
        return self.sections[group.get("role")]

    def complete(self, groups: Sequence[dict[str, Any]]) -> None:
        """Give loaded groups the options that they lack."""
        for group in groups:
            for key, default in self.defaults.items():
                group.setdefault(key, default)
