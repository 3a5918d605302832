#!/usr/bin/env bash
# equinox 0.13.8 (tree_deserialise_leaves) with jax 0.12.0.1.
#
# Behaviour: an array of another dtype is refused, and a Python number is converted to the type of
# the number at its place in the template.
# Seen: 0.9 loads into a template with 0 as 0, into one with False as True, and 0 loads into True
# as False. A float32 array into an int32 template is refused: "has changed dtype".
#
# One would guess that the check of arrays holds for numbers too, or that the stored number comes
# back. A hyperparameter written as 0 in the constructor, momentum=0, is an int in the template: a
# run that was saved with 0.9 resumes with 0.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "equinox==0.13.8" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work" <<'PY'
import sys

import equinox as eqx
import jax.numpy as jnp

file = f"{sys.argv[1]}/saved.eqx"


def reload(stored, template):
    eqx.tree_serialise_leaves(file, {"momentum": stored})
    return eqx.tree_deserialise_leaves(file, {"momentum": template})["momentum"]


if reload(0.9, 0.0) != 0.9:
    sys.exit("What it is compared with changed: a float does not come back as it was.")
try:
    reload(jnp.float32(0.9), jnp.int32(0))
except Exception as error:
    print("refused:", str(error).partition("\n")[0])
else:
    sys.exit("What it is compared with changed: an array of another dtype is no longer refused.")
found = []
for stored, template in ((0.9, 0), (0.9, False), (0, True)):
    found.append(repr(reload(stored, template)))
    print(f"stored {stored!r}, template {template!r}: {found[-1]}")
if found != ["0", "True", "False"]:
    sys.exit("equinox no longer converts a stored number to the type of the template's.")
PY
