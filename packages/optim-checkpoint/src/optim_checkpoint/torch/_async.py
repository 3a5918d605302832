"""Saving a torch training run in the background."""

from typing import Any, Unpack

from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint._folder import StrPath
from optim_checkpoint._place import on_disk
from optim_checkpoint._policy import Best
from optim_checkpoint.torch._named import by_name, one_model
from optim_checkpoint.torch._processes import OwnGroup, is_sharded
from optim_checkpoint.torch._save import TrainingState, build_document


class AsyncCheckpointer(BackgroundCheckpointer):
    """Saves in the background; use it as a context manager.

    `save` returns as soon as the state is copied to host memory, so the next training step may
    change it; the disk is written meanwhile. A failed save is raised by the next `save`, by `wait`
    or at the end of the ``with`` block; one that nothing has asked for is printed when the process
    ends, with exit status 120. In a forked process it saves nothing.

    Where the model or the optimizer has DTensors, every process makes the same calls, and what
    `optim_checkpoint.torch.save` promises for several processes holds: all have saved, or all raise
    and nothing is committed. `save` waits for no other process but in its first call, which makes a
    gloo group of its own: the thread's messages do not meet those of the training.

    Args:
        path: The folder of the run; a relative one is that of the working folder now.
        keep: How many generations to keep; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many.
        replace: Whether a step that exists gets a newer generation instead of an error.
        incremental: Whether files of which no tensor has changed are shared with an earlier step;
            as in `optim_checkpoint.torch.save`.
        process_group: The processes that save together; as in `optim_checkpoint.torch.save`.
    """

    def __init__(
        self,
        path: StrPath,
        *,
        keep: int | None = None,
        keep_every: int | None = None,
        keep_best: Best | None = None,
        replace: bool = False,
        incremental: bool = False,
        process_group: Any = None,
    ) -> None:
        super().__init__(
            path,
            keep=keep,
            keep_every=keep_every,
            keep_best=keep_best,
            replace=replace,
            incremental=incremental,
        )
        self._process_group = process_group
        self._own_group = OwnGroup()

    def save(self, step: int, **state: Unpack[TrainingState]) -> None:
        """Copy the state and save it in the background; the arguments are those of `save`.

        Raises:
            UnsupportedStateError: For a value that cannot be stored.
            CheckpointError: If the save before this one failed.
        """
        self.wait()
        group = self._process_group
        model, optimizers = (
            one_model(state.get("model")),
            by_name("optimizer", state.get("optimizer")),
        )
        if group is None and not is_sharded(model, optimizers, state.get("extra")):
            self._submit(build_document(step, **state))
            return
        self._check_process(step)
        on_disk(self._path, "a save by several processes")
        team = self._own_group.writers(group, step)
        self._submit_together(lambda: build_document(step, rank=team.rank, **state), team)

    def _end(self) -> None:
        self._own_group.close()
