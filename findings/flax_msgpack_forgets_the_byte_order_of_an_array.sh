#!/usr/bin/env bash
# flax 0.12.12 (flax.serialization) with numpy 2.5.5.
#
# Behaviour: to_bytes() and msgpack_serialize() store the raw bytes of a NumPy array next to the
# name of its dtype. That name has no byte order ('float32' for '<f4' and for '>f4' alike), so a
# big-endian array comes back with each value's bytes reversed, without an error or a warning.
# Seen: int32 1, 2, 3 saved as '>i4' is restored as 16777216, 33554432, 50331648.
#
# One would guess that the values survive: big-endian arrays are ordinary (IDX, FITS and NetCDF
# files hold them), a scalar of the same dtype does survive, and numpy.save keeps the array too.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "flax==0.12.12" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PY'
import io
import sys

import numpy as np
from flax import serialization

values = np.array([1, 2, 3], dtype=">i4")
state = {"array": values, "scalar": values[0]}
restored = serialization.from_bytes(state, serialization.to_bytes(state))
print("saved   ", values.tolist(), "restored", restored["array"].tolist())
print("saved   ", int(values[0]), "restored", int(restored["scalar"]), "(scalar)")

buffer = io.BytesIO()
np.save(buffer, values)
buffer.seek(0)
if np.load(buffer).tolist() != [1, 2, 3] or int(restored["scalar"]) != 1:
    sys.exit("What the array is compared with changed: numpy.save or a scalar loses its value.")
if restored["array"].tolist() != [1 << 24, 2 << 24, 3 << 24]:
    sys.exit("flax no longer restores a big-endian array with reversed bytes.")
PY
