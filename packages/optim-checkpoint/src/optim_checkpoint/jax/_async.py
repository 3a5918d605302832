"""Saving a JAX training run in the background."""

from typing import Unpack

from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint.jax._save import TrainingState, build_document


class AsyncCheckpointer(BackgroundCheckpointer):
    """Saves in the background; use it as a context manager.

    `save` returns as soon as the state is copied to host memory; its arrays may then be donated.
    A failed save is raised by the next `save`, by `wait` or at the end of the ``with`` block; one
    that nothing has asked for is printed when the process ends, with exit status 120. In a forked
    process it saves nothing.

    Args:
        path: The folder of the run; a relative one is that of the working folder now.
        keep: How many generations to keep; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many.
        replace: Whether a step that exists gets a newer generation instead of an error.
        incremental: Whether files of which no array has changed are shared with an earlier step;
            as in `optim_checkpoint.jax.save`.
    """

    def save(self, step: int, **state: Unpack[TrainingState]) -> None:
        """Copy the state and save it in the background; the arguments are those of `save`.

        Raises:
            UnsupportedStateError: For a leaf that cannot be stored.
            CheckpointError: If the save before this one failed.
        """
        self.wait()
        self._submit(build_document(step, **state))
