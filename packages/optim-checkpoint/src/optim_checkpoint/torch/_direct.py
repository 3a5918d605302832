"""Restoring without staging: what is read goes into the live tensors at once.

Staging is a copy of the state beside the live one, which lets a restore change nothing before all
of it has been verified. Without it the digests are compared while the live tensors are written: the
memory and the second copy are saved, and what is found too late is said to be.
"""

import bisect
from dataclasses import dataclass, field

import torch

from optim_checkpoint._header import TensorInfo
from optim_checkpoint.torch._memory import no_memory
from optim_checkpoint.torch._tensors import DTYPES, is_plain


@dataclass
class Direct:
    """The live tensors that are read into.

    Attributes:
        written: Where the tensors lie that any attempt has begun to write, with their ends.
        given: The same for those of this attempt.
    """

    written: dict[int, int] = field(default_factory=dict[int, int])
    given: dict[int, int] = field(default_factory=dict[int, int])
    _begins: list[int] = field(default_factory=list[int])
    _tensors: list[torch.Tensor] = field(default_factory=list[torch.Tensor])

    def begin(self) -> None:
        """Begin with another generation."""
        self.given, self._begins, self._tensors = {}, [], []

    def take(self, live: object, info: TensorInfo) -> bool:
        """Say whether a stored tensor can be read into a live one, which is then to be read."""
        if (
            not isinstance(live, torch.Tensor)
            or not is_plain(live)
            or no_memory(live) is not None
            or DTYPES.get(live.dtype) != info.dtype
            or tuple(live.shape) != info.shape
            or not info.nbytes
        ):
            return False
        begin = live.data_ptr()
        end = begin + info.nbytes
        place = bisect.bisect_left(self._begins, begin)
        # Two stored tensors may not be read into one memory at a time.
        before, after = self._begins[place - 1 : place], self._begins[place : place + 1]
        if any(self.given[other] > begin for other in before) or any(o < end for o in after):
            return False
        self._begins.insert(place, begin)
        self.given[begin] = end
        self._tensors.append(live)
        return True

    def write(self) -> None:
        """Say that the reading begins."""
        self.written |= self.given
        for tensor in self._tensors:
            if not tensor.is_inference():
                # As copy_ does: autograd refuses to use what it saved before the change.
                torch.autograd.graph.increment_version(tensor)

    def left(self) -> bool:
        """Say whether an earlier attempt wrote what this one did not."""
        return not self.written.keys() <= self.given.keys()
