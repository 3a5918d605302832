#!/usr/bin/env bash
# ml_dtypes 0.6.0 with numpy 2.5.5.
#
# Behaviour: casting float64 to bfloat16, float8_e4m3fn or float8_e5m2 goes through float32, so a
# value just above the middle between two neighbours is first rounded down onto the middle and then,
# as a tie, to the even neighbour: the farther one.
# Seen: 1 + 2**-8 + 2**-40 becomes bfloat16 1.0, although 1.0078125 is nearer; the float8 types do
# the same above their own middles. NumPy's own float16 rounds such a value up, as it should.
#
# One would guess a single, correct rounding: the result of astype() is elsewhere the nearest value.
# A float64 oracle that is cast for a comparison can so be one unit off, with nobody to blame.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "ml-dtypes==0.6.0" "numpy==2.5.5"

"$work/venv/bin/python" - <<'PY'
import sys
from fractions import Fraction

import ml_dtypes
import numpy as np


def cast(dtype, bits):
    """The value just above the middle of [1, 1 + 2**-bits], its cast and the nearer neighbour."""
    value = 1 + 2.0 ** -(bits + 1) + 2.0**-40
    got = float(np.array([value]).astype(dtype)[0])
    low, high = 1.0, 1 + 2.0**-bits
    nearest = min(low, high, key=lambda x: abs(Fraction(x) - Fraction(value)))
    print(f"{np.dtype(dtype).name:14} got {got!r:12} nearest {nearest!r}")
    return got, nearest


for dtype, bits in (
    (ml_dtypes.bfloat16, 7),
    (ml_dtypes.float8_e4m3fn, 3),
    (ml_dtypes.float8_e5m2, 2),
):
    got, nearest = cast(dtype, bits)
    if not (got == 1.0 and nearest > 1.0):
        sys.exit(f"ml_dtypes no longer rounds float64 to {np.dtype(dtype).name} twice.")
got, nearest = cast(np.float16, 10)
if got != nearest:
    sys.exit("What it is compared with changed: NumPy's float16 is no longer the nearest value.")
PY
