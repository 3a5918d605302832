"""Checkpoints of JAX and PyTorch training that lose no step, load no wrong bit and need no pickle.

``optim_checkpoint.torch`` and ``optim_checkpoint.jax`` save and restore; this module looks at
folders of checkpoints and loads neither framework.
"""

from optim_checkpoint._api import (
    Inspection,
    TensorSummary,
    VerifyReport,
    inspect,
    latest_step,
    steps,
    verify,
)
from optim_checkpoint._errors import (
    CheckpointError,
    CheckpointExistsError,
    CheckpointNotFoundError,
    CheckpointReadError,
    CheckpointWarning,
    CheckpointWriteError,
    CorruptCheckpointError,
    IncompatibleCheckpointError,
    UnsupportedStateError,
)
from optim_checkpoint._select import Skipped

__all__ = [
    "CheckpointError",
    "CheckpointExistsError",
    "CheckpointNotFoundError",
    "CheckpointReadError",
    "CheckpointWarning",
    "CheckpointWriteError",
    "CorruptCheckpointError",
    "IncompatibleCheckpointError",
    "Inspection",
    "Skipped",
    "TensorSummary",
    "UnsupportedStateError",
    "VerifyReport",
    "inspect",
    "latest_step",
    "steps",
    "verify",
]
__version__ = "0.1.0"
