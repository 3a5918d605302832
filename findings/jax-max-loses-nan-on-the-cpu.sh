#!/usr/bin/env bash
# jax 0.12.0.1 (and 0.10.2) with numpy 2.5.1, CPU, x86-64.
# jnp.max over the last axis of a (64, 256) array that holds one nan returns 64 finite numbers; the
# same reduction of a (256,) or a (3, 5) array returns nan, as does numpy for all three.
# One would guess otherwise: the documentation says that jnp.max follows numpy.max, which hands nan
# on, and small examples confirm it. A check such as `jnp.isfinite(jnp.abs(x).max(-1))` passes on
# bad rows; jnp.isnan(x).any(-1) sees them.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/env"
"$folder/env/bin/pip" install --quiet "jax==0.10.2" "jaxlib==0.10.2" "numpy==2.4.1"
JAX_PLATFORMS=cpu "$folder/env/bin/python" - <<'PY'
import jax
import jax.numpy as jnp
import numpy as np

print("jax", jax.__version__, "numpy", np.__version__)
kept = {}
for shape in ((256,), (3, 5), (64, 256)):
    x = np.ones(shape, np.float32)
    x[(0,) * len(shape)] = np.nan
    assert np.isnan(x.max(-1)).any()
    kept[shape] = bool(jnp.isnan(jnp.max(jnp.asarray(x), -1)).any())
    assert bool(jnp.isnan(jnp.asarray(x)).any(-1).any())
print("nan kept by jnp.max over the last axis:", kept)
expected = {(256,): True, (3, 5): True, (64, 256): False}
if kept != expected:
    raise SystemExit(f"this has changed: expected {expected}")
PY
