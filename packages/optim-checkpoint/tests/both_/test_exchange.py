"""The shared suite of checkpoints that cross frameworks: what torch saves JAX reads, and back."""

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import optim_checkpoint
import optim_checkpoint.jax
import optim_checkpoint.torch
import torch
from optim_conformance import CheckpointExchange


class Face:
    corrupt = optim_checkpoint.CorruptCheckpointError
    incompatible = optim_checkpoint.IncompatibleCheckpointError
    not_found = optim_checkpoint.CheckpointNotFoundError
    # Without x64 JAX has no float64, and both faces must store what the suite exchanges.
    dtypes = frozenset({"float32", "bfloat16", "float16", "int8", "int32", "bool", "uint8"})


def parts(name):
    """Return the levels of a name; torch modules have a method bfloat16, hence the "_"."""
    return [f"{part}_" for part in name.replace("/", ".").split(".")]


def nested(tree):
    """Return a tree of dictionaries: dots in names are levels, as in the modules of torch."""
    root = {}
    for name, array in tree.items():
        *path, last = parts(name)
        level = root
        for part in path:
            level = level.setdefault(part, {})
        level[last] = array
    return root


def leaf(root, name):
    for part in parts(name):
        root = root[part]
    return root


class JaxFace(Face):
    name = "jax"

    def save(self, folder, step, tree):
        params = nested({name: jnp.asarray(array) for name, array in tree.items()})
        optim_checkpoint.jax.save(folder, step, params=params)

    def restore(self, folder, like, step=None):
        template = nested({name: jnp.asarray(array) for name, array in like.items()})
        restored = optim_checkpoint.jax.restore(folder, params=template, step=step)
        return restored.step, {name: np.array(leaf(restored.params, name)) for name in like}


class TorchFace(Face):
    name = "torch"

    def module(self, tree):
        root = torch.nn.Module()
        for name, array in tree.items():
            *path, last = parts(name)
            level = root
            for part in path:
                if not hasattr(level, part):
                    level.add_module(part, torch.nn.Module())
                level = getattr(level, part)
            level.register_buffer(last, self.tensor(array))
        return root

    def tensor(self, array):
        if array.dtype == ml_dtypes.bfloat16:
            return torch.from_numpy(array.copy().view(np.uint16)).view(torch.bfloat16)
        return torch.from_numpy(array.copy())

    def array(self, tensor):
        if tensor.dtype is torch.bfloat16:
            return tensor.view(torch.uint16).numpy().view(ml_dtypes.bfloat16).copy()
        return tensor.numpy().copy()

    def save(self, folder, step, tree):
        optim_checkpoint.torch.save(folder, step, model=self.module(tree))

    def restore(self, folder, like, step=None):
        module = self.module(like)
        restored = optim_checkpoint.torch.restore(folder, model=module, step=step)
        found = dict(module.named_buffers())
        return restored.step, {name: self.array(found[".".join(parts(name))]) for name in like}


class TestExchange(CheckpointExchange):
    adapters = (TorchFace(), JaxFace())
