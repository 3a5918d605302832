"""Checkpoints of PyTorch training: any module, any optimizer, exact and all or nothing."""

from optim_checkpoint.torch._async import AsyncCheckpointer
from optim_checkpoint.torch._restore import Restored, restore
from optim_checkpoint.torch._save import Stateful, save

__all__ = ["AsyncCheckpointer", "Restored", "Stateful", "restore", "save"]
