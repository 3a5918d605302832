#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (StandardCheckpointer) with jax 0.12.0.1.
#
# Behaviour: restore() compares the stored shape with the template's for a template of jax arrays,
# and does not for a template of NumPy arrays.
# Seen: from one checkpoint of shape (2, 3), a jax template of shape (3, 2) is refused ("Requested
# shape: (3, 2) is not compatible with the stored shape: (2, 3)"), and a NumPy template of
# shape (3, 2), or (7,), is accepted and answered with an array of shape (2, 3).
#
# One would guess that both are refused: the same call, with strict shapes as the default. A model
# whose layer changed size is so caught only where its template holds jax arrays.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "orbax-checkpoint==0.12.8" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work/saved" <<'PY'
import logging
import sys

import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp

logging.disable(logging.CRITICAL)
checkpointer = ocp.StandardCheckpointer()
checkpointer.save(sys.argv[1], {"w": jnp.arange(6.0).reshape(2, 3)})
checkpointer.wait_until_finished()

try:
    checkpointer.restore(sys.argv[1], {"w": jnp.zeros((3, 2))})
except ValueError as error:
    print("jax template (3, 2):", str(error).partition(". ")[0])
else:
    sys.exit("What it is compared with changed: a jax template of another shape is accepted.")
for shape in ((3, 2), (7,)):
    try:
        restored = checkpointer.restore(sys.argv[1], {"w": np.zeros(shape, np.float32)})["w"]
    except ValueError:
        sys.exit("orbax now refuses a NumPy template whose shape is not the stored one.")
    print(f"NumPy template {shape}: restored with shape {restored.shape}")
    if restored.shape != (2, 3):
        sys.exit("orbax no longer answers a NumPy template with the stored shape.")
PY
