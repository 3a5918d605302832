#!/usr/bin/env bash
# jax 0.10.2 (and 0.12.0.1), CPU, x86-64, float32.
# x / s, with one s for a row of 256 entries, differs from the IEEE 754 quotient (numpy's) in about
# a quarter of the entries, by one unit in the last place; x / y with an own divisor for each entry
# is exact. The code maker replaces the shared divisor by its reciprocal.
# One would guess otherwise: XLA's fast-math option for the CPU is off by default, and division is a
# correctly rounded operation. Quantisers that divide by a block's scale write other codes than the
# same formula in numpy or torch, about once in a million entries.
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
rng = np.random.default_rng(0)
x = rng.uniform(0.1, 1, (4096, 256)).astype(np.float32)
scale = rng.uniform(0.1, 1, (4096, 1)).astype(np.float32)
own = rng.uniform(0.1, 1, x.shape).astype(np.float32)
divide = jax.jit(jnp.divide)
shared = np.mean(np.asarray(divide(x, scale)) != x / scale)
each = np.mean(np.asarray(divide(x, own)) != x / own)
print(f"quotients that differ from numpy's: shared divisor {shared:.3f}, own divisors {each:.3f}")
if not (shared > 0.1 and each == 0):
    raise SystemExit("this has changed: expected more than 0.1 and exactly 0")
PY
