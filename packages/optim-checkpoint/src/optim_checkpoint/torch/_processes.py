"""The processes of a torch group, reached through its own collectives; no pickle is sent."""

import contextlib
from collections.abc import Iterator, Mapping
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist

from optim_checkpoint._errors import CheckpointError, CheckpointWriteError
from optim_checkpoint._peers import Team, alone
from optim_checkpoint.torch._dtensor import is_dtensor
from optim_checkpoint.torch._names import unwrap

# How long one waits for another in the background, which may be writing: torch's default.
WAIT = timedelta(minutes=30)


class GroupProcesses:
    """The processes of a `torch.distributed` group.

    Args:
        group: The group; None is the default one.
    """

    def __init__(self, group: Any) -> None:
        self._group = group
        self.rank = dist.get_rank(group)
        self.size = dist.get_world_size(group)
        if self.rank < 0:
            raise ValueError("this process is not in process_group; only its members may call this")
        devices = str(dist.get_backend_config(group))
        self._device = (
            torch.device("cpu") if "cpu:" in devices else torch.device(devices.partition(":")[0])
        )

    @property
    def ranks(self) -> list[int]:
        """Their numbers in the default group."""
        return dist.get_process_group_ranks(self._group)

    def exchange(self, message: bytes) -> list[bytes]:
        """Give every process the messages of all, in the order of their ranks."""
        padded, sizes = self._padded(message)
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.all_gather(gathered, padded, group=self._group)
        return _cut(gathered, sizes)

    def gather(self, message: bytes) -> list[bytes]:
        """Give process 0 the messages of all, in the order of their ranks."""
        padded, sizes = self._padded(message)
        if self.rank:
            dist.gather(padded, group=self._group, group_dst=0)
            return []
        gathered = [torch.empty_like(padded) for _ in range(self.size)]
        dist.gather(padded, gathered, group=self._group, group_dst=0)
        return _cut(gathered, sizes)

    def _padded(self, message: bytes) -> tuple[torch.Tensor, list[int]]:
        length = torch.tensor([len(message)], device=self._device)
        lengths = [torch.empty_like(length) for _ in range(self.size)]
        dist.all_gather(lengths, length, group=self._group)
        sizes = [int(item.item()) for item in lengths]
        padded = torch.zeros(max(sizes), dtype=torch.uint8, device="cpu")
        padded[: len(message)] = torch.frombuffer(bytearray(message), dtype=torch.uint8)
        return padded.to(self._device), sizes


def _cut(gathered: list[torch.Tensor], sizes: list[int]) -> list[bytes]:
    return [item[:size].cpu().numpy().tobytes() for item, size in zip(gathered, sizes, strict=True)]


def _tensors(value: Any) -> Iterator[Any]:
    if isinstance(value, Mapping):
        for item in value.values():
            yield from _tensors(item)
    elif isinstance(value, list | tuple):
        for item in value:
            yield from _tensors(item)
    else:
        yield value


def is_sharded(
    model: torch.nn.Module | None,
    optimizers: Mapping[str, torch.optim.Optimizer],
    extra: Any = None,
) -> bool:
    """Say whether any tensor of a training run is a DTensor."""
    # Their meshes are made of process groups: without any, nothing has to be looked through.
    if not dist.is_available() or not dist.is_initialized():
        return False
    values: list[Any] = [] if extra is None else [extra]
    if model is not None:
        # FSDP2 shards again what a forward pass left whole only when it is asked for its state.
        values.append(unwrap(model).state_dict())
    for optimizer in optimizers.values():
        values += [group["params"] for group in optimizer.param_groups]
    return any(is_dtensor(value) for value in _tensors(values))


class OwnGroup:
    """A gloo group with the processes of another one, for a thread beside the training's.

    Collectives of two threads in one group would meet in any order. It is made by the first call of
    all processes, and anew where training got another group to save with. Where one process cannot
    reach another, it ends the group: gloo tells only those that wait for the one that is gone, and
    who waits for them would wait for as long as a collective may take, 30 minutes.
    """

    def __init__(self) -> None:
        self._of: Any = None
        self._group: Any = None

    def writers(self, group: Any, step: object) -> Team:
        """Return the processes of `group`, or of the default one, reached through the own group.

        Raises:
            CheckpointWriteError: If torch was built without gloo.
        """
        of = dist.group.WORLD if group is None else group
        if self._of is not of:
            if not dist.is_gloo_available():
                raise CheckpointWriteError(
                    f"step {step} was not saved: torch was built without gloo, which saving shards "
                    "in the background needs; save() does with the training's own group"
                )
            # Only who is in it makes it.
            ranks = GroupProcesses(group).ranks
            self._group = dist.new_group(
                ranks, backend="gloo", use_local_synchronization=True, timeout=WAIT
            )
            self._of = of
        if self._group is None:
            raise CheckpointWriteError(
                f"step {step} was not saved: an earlier save lost a process, and the processes are "
                "no group any more; start them anew"
            )
        return Team(_OwnProcesses(self), f"saving step {step}", CheckpointWriteError)

    @property
    def group(self) -> Any:
        """The group."""
        return self._group

    def close(self) -> None:
        """Give the group back."""
        self.end()
        self._of = None

    def end(self) -> None:
        """Give the group back, and make no other one."""
        group, self._group = self._group, None
        # Training may have ended all groups before.
        with contextlib.suppress(ValueError):
            if group is not None and dist.is_initialized():
                dist.destroy_process_group(group)


class _OwnProcesses(GroupProcesses):
    """The processes of an own group, which ends where one of them cannot be reached."""

    def __init__(self, own: OwnGroup) -> None:
        super().__init__(own.group)
        self._own = own

    def exchange(self, message: bytes) -> list[bytes]:
        with self._ending():
            return super().exchange(message)

    def gather(self, message: bytes) -> list[bytes]:
        with self._ending():
            return super().gather(message)

    @contextlib.contextmanager
    def _ending(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError:
            self._own.end()
            raise


def writers(group: Any, step: object, *, sharded: bool) -> Team | None:
    """Return the processes that save together, or None where one saves alone."""
    if group is None and not sharded:
        return None
    return Team(GroupProcesses(group), f"saving step {step}", CheckpointWriteError)


def readers(group: Any, *, sharded: bool) -> Team:
    """Return the processes that restore together."""
    if group is None and not sharded:
        return alone()
    return Team(GroupProcesses(group), "restoring", CheckpointError)
