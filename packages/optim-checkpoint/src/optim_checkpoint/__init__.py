"""Checkpoints of JAX and PyTorch training that lose no step, load no wrong bit and need no pickle.

``optim_checkpoint.torch`` and ``optim_checkpoint.jax`` save and restore; this module looks at
folders of checkpoints and loads neither framework.
"""

from optim_checkpoint._api import (
    Inspection,
    Retained,
    TensorSummary,
    VerifyReport,
    inspect,
    latest_step,
    retained,
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
    TornRestoreError,
    UnsupportedStateError,
)
from optim_checkpoint._pins import pin, unpin
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
    "Retained",
    "Skipped",
    "TensorSummary",
    "TornRestoreError",
    "UnsupportedStateError",
    "VerifyReport",
    "inspect",
    "latest_step",
    "pin",
    "retained",
    "steps",
    "unpin",
    "verify",
]
__version__ = "0.1.0"
