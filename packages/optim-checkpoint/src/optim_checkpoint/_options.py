# pyright: strict
"""How a save goes, beside what it saves: stated once for every way to save."""

from dataclasses import dataclass

from optim_checkpoint._files import MAX_SHARD_SIZE
from optim_checkpoint._policy import Best, Policy


@dataclass(frozen=True, slots=True)
class Options:
    """The options of a save, as they were given.

    Attributes:
        keep: How many generations to keep, the new one included; None keeps all.
        keep_every: Keep those of which the step is a multiple of it, too.
        keep_best: Keep the best ones by a metric, too: its name, "min" or "max", and how many.
        replace: Whether a step that exists gets a newer generation instead of an error.
        max_shard_size: Greatest number of bytes of tensors in one file, unless one alone has more.
        incremental: Whether files of which no tensor has changed are shared with an earlier step.
    """

    keep: int | None = None
    keep_every: int | None = None
    keep_best: Best | None = None
    replace: bool = False
    max_shard_size: int = MAX_SHARD_SIZE
    incremental: bool = False

    @property
    def policy(self) -> Policy:
        """What to keep.

        Raises:
            ValueError: If one of the arguments is out of its range, or says nothing without `keep`.
        """
        return Policy.of(self.keep, self.keep_every, self.keep_best)


DEFAULT = Options()
