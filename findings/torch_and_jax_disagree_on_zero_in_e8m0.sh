#!/usr/bin/env bash
# torch 2.15.0, jax 0.12.0.1 and ml_dtypes 0.6.0 (float8_e8m0fnu), on the CPU.
#
# Behaviour: the format of the scales of microscaled tensors has powers of two, nan, no zero and no
# sign. Where a number has no place in it, torch takes the nearest magnitude and drops the sign,
# and ml_dtypes and jax give nan. On positive numbers the three agree.
# Seen: 0 becomes 2**-127 in torch and nan in the others; -3 becomes 4 in torch and nan in the
# others. 1.5, 3, 1e-40 and 3e38 are the same in all of them.
#
# One would guess that a dtype of the same name converts the same numbers alike, as float8_e5m2 and
# both fnuz formats do. A block of zeros has the scale 0: computed in torch it is a block of zeros
# afterwards, and in jax a block of nan.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "torch==2.15.0" "ml_dtypes==0.6.0" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" -W ignore - <<'PY'
import sys

import jax.numpy as jnp
import ml_dtypes
import numpy as np
import torch

torch.set_num_threads(1)


def in_each(numbers, name):
    x = np.array(numbers, np.float32)
    return {
        "torch": torch.tensor(x).to(getattr(torch, name)).float().numpy(),
        "ml_dtypes": x.astype(getattr(ml_dtypes, name)).astype(np.float32),
        "jax": np.asarray(jnp.asarray(x).astype(getattr(jnp, name)).astype(jnp.float32)),
    }


def agree(found):
    return all(np.array_equal(found["torch"], other, equal_nan=True) for other in found.values())


rng = np.random.default_rng(0)
random = rng.integers(0, 2**32, 100_000, dtype=np.uint32).view(np.float32)
for name in ("float8_e5m2", "float8_e5m2fnuz", "float8_e4m3fnuz"):
    if not agree(in_each(random, name)):
        sys.exit(f"What it is compared with changed: {name} is no longer converted alike.")
if not agree(in_each([1.5, 3.0, 1e-40, 3e38, np.nan, *random[random > 0]], "float8_e8m0fnu")):
    sys.exit("What it is compared with changed: positive numbers are no longer converted alike.")
found = in_each([0.0, -3.0], "float8_e8m0fnu")
for name, values in found.items():
    print(f"{name:9} 0 becomes {values[0]!s}, -3 becomes {values[1]!s}")
if found["torch"].tolist() != [2.0**-127, 4.0]:
    sys.exit("torch no longer takes the nearest magnitude.")
if not (np.isnan(found["ml_dtypes"]).all() and np.isnan(found["jax"]).all()):
    sys.exit("ml_dtypes or jax no longer gives nan.")
PY
