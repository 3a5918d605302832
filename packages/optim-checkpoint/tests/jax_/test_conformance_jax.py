"""The shared suite of checkpoint formats, through the JAX face."""

import jax.numpy as jnp
import numpy as np
import optim_checkpoint
import optim_checkpoint.jax as ckpt
from optim_conformance import CheckpointConformance


class JaxFace:
    name = "optim-checkpoint jax"
    # Without x64 JAX has no float64.
    dtypes = frozenset({"float32", "bfloat16", "float16", "int8", "int32", "bool", "uint8"})
    corrupt = optim_checkpoint.CorruptCheckpointError
    incompatible = optim_checkpoint.IncompatibleCheckpointError
    not_found = optim_checkpoint.CheckpointNotFoundError

    def save(self, folder, step, tree):
        ckpt.save(folder, step, params={name: jnp.asarray(array) for name, array in tree.items()})

    def restore(self, folder, like, step=None):
        # A float64 template asks for what JAX cannot hold, and must be refused as it stands.
        template = {
            name: array if array.dtype == np.float64 else jnp.asarray(array)
            for name, array in like.items()
        }
        restored = ckpt.restore(folder, params=template, step=step)
        return restored.step, {name: np.array(leaf) for name, leaf in restored.params.items()}


class TestJaxFace(CheckpointConformance):
    adapter = JaxFace()
