"""Checkpoints of PyTorch training: any module, any optimizer, exact and all or nothing."""

from optim_checkpoint._data import Stateful
from optim_checkpoint._partial import Report
from optim_checkpoint.torch._async import AsyncCheckpointer
from optim_checkpoint.torch._restore import Restored, restore
from optim_checkpoint.torch._save import save

__all__ = ["AsyncCheckpointer", "Report", "Restored", "Stateful", "restore", "save"]
