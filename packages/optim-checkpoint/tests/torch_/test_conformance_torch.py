"""The shared suite of checkpoint formats, through the PyTorch face."""

import ml_dtypes
import numpy as np
import optim_checkpoint
import optim_checkpoint.torch as ckpt
import torch
from optim_conformance import CheckpointConformance


def to_tensor(array):
    if array.dtype == ml_dtypes.bfloat16:
        return torch.from_numpy(array.copy().view(np.uint16)).view(torch.bfloat16)
    return torch.from_numpy(array.copy())


def to_array(tensor):
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
    return tensor.numpy().copy()


class Buffers(torch.nn.Module):
    """A module that holds a tree; module attributes may not have dots in their names."""

    def __init__(self, tree):
        super().__init__()
        self.attribute = {
            name: "buffer_" + name.replace(".", "_").replace("/", "_") for name in tree
        }
        for name, array in tree.items():
            self.register_buffer(self.attribute[name], to_tensor(array))


class TorchFace:
    name = "optim-checkpoint torch"
    dtypes = frozenset(
        {"float32", "float64", "bfloat16", "float16", "int8", "int32", "bool", "uint8"}
    )
    corrupt = optim_checkpoint.CorruptCheckpointError
    incompatible = optim_checkpoint.IncompatibleCheckpointError
    not_found = optim_checkpoint.CheckpointNotFoundError

    def save(self, folder, step, tree):
        ckpt.save(folder, step, model=Buffers(tree))

    def restore(self, folder, like, step=None):
        module = Buffers(like)
        restored = ckpt.restore(folder, model=module, step=step)
        tree = {name: to_array(getattr(module, module.attribute[name])) for name in like}
        return restored.step, tree


class TestTorchFace(CheckpointConformance):
    adapter = TorchFace()
