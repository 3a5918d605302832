"""Elementwise functions over ``xp``, recorded once and run piece by piece in place.

Called on tensors, a rule makes a new one for each operation: three arrays pass through the cache
where an operation in place needs two, and results are copied into the state. Recorded, an operation
may write over an operand that nothing reads any more, or into the state itself. The values are
those of the calls, bit for bit: the same operations in the same order.

Measured on the CPU, 20 million entries, one thread, against ``torch.optim.AdamW(foreach=True)``:
STAM takes 1.46 times as long called on pieces, and 0.9 times in place.
"""

import operator
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from stac_torch import _namespace

# What writes into a given tensor: a result has the dtype of its operands.
_INTO: dict[Any, Any] = {
    operator.add: torch.add,
    operator.sub: torch.sub,
    operator.mul: torch.mul,
    operator.truediv: torch.true_divide,
    operator.neg: torch.neg,
    _namespace.abs: torch.abs,
    _namespace.sqrt: torch.sqrt,
    _namespace.sign: torch.sign,
    _namespace.maximum: torch.maximum,
    _namespace.where: torch.where,
}
_COMMUTE = (operator.add, operator.mul)


class Recorded:
    """A value of a program: a tensor's entries, or a number of each tensor.

    Attributes:
        program: The program.
        index: Its place there.
        whole: Whether it has the entries of a tensor.
        dtype: What rules see as its dtype.
    """

    __slots__ = ("dtype", "index", "program", "whole")

    def __init__(self, program: "Program", index: int, whole: bool, dtype: torch.dtype) -> None:
        self.program = program
        self.index = index
        self.whole = whole
        self.dtype = dtype

    def _by(self, function: Callable[..., Any], *arguments: Any) -> "Recorded":
        return self.program.record(function, *arguments)

    def __add__(self, other: Any) -> "Recorded":
        return self._by(operator.add, self, other)

    def __radd__(self, other: Any) -> "Recorded":
        return self._by(operator.add, other, self)

    def __sub__(self, other: Any) -> "Recorded":
        return self._by(operator.sub, self, other)

    def __rsub__(self, other: Any) -> "Recorded":
        return self._by(operator.sub, other, self)

    def __mul__(self, other: Any) -> "Recorded":
        return self._by(operator.mul, self, other)

    def __rmul__(self, other: Any) -> "Recorded":
        return self._by(operator.mul, other, self)

    def __truediv__(self, other: Any) -> "Recorded":
        return self._by(operator.truediv, self, other)

    def __rtruediv__(self, other: Any) -> "Recorded":
        return self._by(operator.truediv, other, self)

    def __pow__(self, other: Any) -> "Recorded":
        return self._by(operator.pow, self, other)

    def __rpow__(self, other: Any) -> "Recorded":
        return self._by(operator.pow, other, self)

    def __neg__(self) -> "Recorded":
        return self._by(operator.neg, self)

    def __gt__(self, other: Any) -> "Recorded":
        return self._by(operator.gt, self, other)

    def __lt__(self, other: Any) -> "Recorded":
        return self._by(operator.lt, self, other)


class _Operation:
    """One operation: what to call, on what, and where its result goes."""

    __slots__ = ("arguments", "function", "into", "result", "target")

    def __init__(self, function: Callable[..., Any], arguments: tuple[Any, ...], result: int):
        self.function = function
        self.arguments = arguments
        self.result = result
        # An earlier value whose memory it takes; the name of an input that it replaces.
        self.into: int | None = None
        self.target: str | None = None


class Program:
    """A recorded function of the entries of tensors, and of numbers of each.

    Args:
        wholes: Names of the inputs that have the entries of a tensor.
        numbers: Names of those that are numbers, and what rules see as their dtype.
        dtype: What they see as the dtype of the entries.
    """

    def __init__(
        self, wholes: Sequence[str], numbers: Mapping[str, torch.dtype], dtype: torch.dtype
    ) -> None:
        self.wholes = tuple(wholes)
        self.numbers = tuple(numbers)
        self.dtype = dtype
        self.inputs: dict[str, Recorded] = {}
        for name in self.wholes:
            self.inputs[name] = Recorded(self, len(self.inputs), True, dtype)
        for name, seen in numbers.items():
            self.inputs[name] = Recorded(self, len(self.inputs), False, seen)
        self._count = len(self.inputs)
        self._once: list[_Operation] = []
        self._each: list[_Operation] = []
        self._outputs: dict[str, Recorded] = {}
        self._sums: tuple[Recorded, ...] = ()
        self._spread: tuple[int, ...] = ()

    def __getattr__(self, name: str) -> Any:
        """Return a function of the namespace that records: a program is the ``xp`` of its rule."""
        if name.startswith("_"):
            raise AttributeError(name)
        function = getattr(_namespace, name)
        if name == "isdtype" or not callable(function):
            return function
        return lambda *arguments: self.record(function, *arguments)

    def record(self, function: Callable[..., Any], *arguments: Any) -> Recorded:
        """Add an operation."""
        used = [a for a in arguments if isinstance(a, Recorded)]
        whole = any(a.whole for a in used)
        seen = arguments[1] if function is _namespace.astype else used[0].dtype
        result = Recorded(self, self._count, whole, seen)
        self._count += 1
        operation = _Operation(function, arguments, result.index)
        (self._each if whole else self._once).append(operation)
        return result

    def total(self, x: Recorded) -> Recorded:
        """Record the sum over each tensor; rules take it for a mean."""
        return self.record(Tensor.sum, x)

    def close(self, outputs: Mapping[str, Recorded], sums: Sequence[Recorded] = ()) -> "Program":
        """Say what the results are, and where each operation may write.

        Args:
            outputs: By the name of the input that each replaces.
            sums: Sums over each tensor.
        """
        self._outputs = dict(outputs)
        self._sums = tuple(sums)
        uses: dict[int, list[int]] = {}
        spread: dict[int, None] = {}
        for at, operation in enumerate(self._each):
            for a in operation.arguments:
                if isinstance(a, Recorded):
                    uses.setdefault(a.index, []).append(at)
                    if not a.whole:
                        spread[a.index] = None
        self._spread = tuple(spread)
        self._place(uses)
        return self

    def _place(self, uses: Mapping[int, list[int]]) -> None:
        """Choose the memory of each result: its own, or what holds a value that was read last."""
        names = {value.index: name for name, value in self._outputs.items()}
        # Of each input that is replaced: the operation that does it.
        finals = {
            self.inputs[names[operation.result]].index: at
            for at, operation in enumerate(self._each)
            if operation.result in names
        }
        owned: set[int] = set()
        free: list[int] = []
        for at, operation in enumerate(self._each):
            read_last = {
                a.index
                for a in operation.arguments
                if isinstance(a, Recorded) and uses[a.index][-1] == at
            }
            dying = sorted(read_last & owned)
            if operation.function in _INTO:
                name = names.get(operation.result)
                # An input that only waits to be replaced by what is made of this result.
                waiting = [i for i in read_last if [finals.get(i)] == uses.get(operation.result)]
                if name is not None:
                    if uses.get(self.inputs[name].index, [-1])[-1] <= at:
                        operation.target = name
                elif waiting:
                    operation.into = waiting[0]
                else:
                    if dying:
                        operation.into = dying.pop(0)
                    elif free:
                        operation.into = free.pop()
                    owned.add(operation.result)
            free += dying

    def prepare(self, numbers: Mapping[str, Any]) -> dict[int, Any]:
        """Compute what has no entries, for all tensors at once.

        Args:
            numbers: By name a vector with one number for each tensor, or one for all.

        Returns:
            What :meth:`run` needs of it, by place.
        """
        values: dict[int, Any] = {self.inputs[n].index: numbers[n] for n in self.numbers}
        for operation in self._once:
            values[operation.result] = operation.function(*_taken(operation.arguments, values))
        return {index: values[index] for index in self._spread}

    def run(
        self,
        wholes: Mapping[str, Tensor],
        numbers: Mapping[int, Any],
        total: Callable[[Tensor], Tensor],
    ) -> list[Tensor]:
        """Compute on one piece, in place.

        Args:
            wholes: The inputs with entries, by name; results replace them.
            numbers: What :meth:`prepare` returned, made to broadcast against the piece.
            total: Returns the sums over each tensor of the piece.

        Returns:
            The sums.
        """
        values: dict[int, Any] = {self.inputs[n].index: wholes[n] for n in self.wholes}
        values.update(numbers)
        for operation in self._each:
            function = operation.function
            arguments = _taken(operation.arguments, values)
            if function is Tensor.sum:
                values[operation.result] = total(*arguments)
                continue
            out = None
            if operation.target is not None:
                out = wholes[operation.target]
            elif operation.into is not None:
                out = values[operation.into]
            if function in _COMMUTE and not isinstance(arguments[0], Tensor):
                arguments.reverse()
            if out is None or not isinstance(arguments[0], Tensor):
                values[operation.result] = function(*arguments)
            else:
                values[operation.result] = _INTO[function](*arguments, out=out)
        for name, output in self._outputs.items():
            value = values[output.index]
            if value is not wholes[name]:
                wholes[name].copy_(value)
        return [values[each.index] for each in self._sums]


def _taken(arguments: tuple[Any, ...], values: Mapping[int, Any]) -> list[Any]:
    return [values[a.index] if isinstance(a, Recorded) else a for a in arguments]
