"""Saving a torch training run in the background."""

from collections.abc import Mapping
from typing import Any

from optim_checkpoint._background import BackgroundCheckpointer
from optim_checkpoint.torch._save import Models, Optimizers, Statefuls, build_document


class AsyncCheckpointer(BackgroundCheckpointer):
    """Saves in the background; use it as a context manager.

    `save` returns as soon as the state is copied to host memory, so the next training step may
    change it; the disk is written meanwhile. A failed save is raised by the next `save`, by `wait`
    or at the end of the ``with`` block; one that nothing has asked for is printed when the process
    ends, with exit status 120. In a forked process it saves nothing.

    Args:
        path: The folder of the run; a relative one is that of the working folder now.
        keep: How many generations to keep; None keeps all.
        replace: Whether a step that exists gets a newer generation instead of an error.
    """

    def save(
        self,
        step: int,
        *,
        model: Models = None,
        optimizer: Optimizers = None,
        scheduler: Statefuls = None,
        scaler: Statefuls = None,
        extra: Mapping[str, Any] | None = None,
        rng: bool = True,
    ) -> None:
        """Copy the state and save it in the background; the arguments are those of `save`.

        Raises:
            UnsupportedStateError: For a value that cannot be stored.
            CheckpointError: If the save before this one failed.
        """
        self.wait()
        self._submit(
            build_document(
                step,
                model=model,
                optimizer=optimizer,
                scheduler=scheduler,
                scaler=scaler,
                extra=extra,
                rng=rng,
            )
        )
