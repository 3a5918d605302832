#!/usr/bin/env bash
# optax 0.2.8 (optax.contrib.ademamix) with jax 0.12.0.1.
#
# Behaviour: mu_dtype decides the dtype of the state that init() makes, and update() returns all of
# it in the dtype of the gradients: the option is gone after one step. It is also applied to the
# second moment, which the documentation ("the first order accumulator") does not say.
# Seen with mu_dtype=bfloat16 and float32 gradients: m1, m2 and nu are bfloat16 after init() and
# float32 after update(); optax.adam keeps its mu in bfloat16 and has nu in float32 throughout.
#
# One would guess that it works as in optax.adam, whose docstring has the same sentence: the option
# exists to halve that memory. A state whose dtypes change is besides no carry for jax.lax.scan.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "optax==0.2.8" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" - <<'PY'
import sys

import jax.numpy as jnp
import optax

parameter = jnp.ones(3)


def dtypes(state, names):
    return [str(getattr(state[0], name).dtype) for name in names]


def before_and_after(optimizer, names):
    start = optimizer.init(parameter)
    _, state = optimizer.update(jnp.ones(3), start, parameter)
    return dtypes(start, names), dtypes(state, names)


adam = before_and_after(optax.adam(0.1, mu_dtype=jnp.bfloat16), ("mu", "nu"))
mixed = before_and_after(optax.contrib.ademamix(0.1, mu_dtype=jnp.bfloat16), ("m1", "m2", "nu"))
print("adam      mu nu    ", *adam)
print("ademamix  m1 m2 nu ", *mixed)
if adam != (["bfloat16", "float32"], ["bfloat16", "float32"]):
    sys.exit("What it is compared with changed: optax.adam treats mu_dtype otherwise.")
if mixed != (["bfloat16"] * 3, ["float32"] * 3):
    sys.exit("optax.contrib.ademamix no longer loses mu_dtype after one update.")
PY
