"""Checkpoints of JAX training: any pytree, any optax state, typed keys and packed statistics."""

from optim_checkpoint._partial import Report
from optim_checkpoint.jax._async import AsyncCheckpointer
from optim_checkpoint.jax._restore import Restored, restore
from optim_checkpoint.jax._save import save

__all__ = ["AsyncCheckpointer", "Report", "Restored", "restore", "save"]
