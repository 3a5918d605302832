#!/usr/bin/env bash
# equinox 0.13.8 (tree_deserialise_leaves) with jax 0.12.0.1.
#
# Behaviour: the leaves are read one after the other for as long as the template has leaves, and
# what is left in the file is not looked at. Names are not stored: which leaf is which is their
# order alone.
# Seen: a file of {"mu": a, "nu": b, "params": c} loads into {"params": ...} without a word and
# gives a, the momentum, as the parameters. A leaf of another shape or dtype is refused with its
# path, and so is a file that has too few leaves.
#
# One would guess that a file with leaves that belong nowhere is refused as well, as a missing leaf
# is: the usual case is a template that lost its optimizer state or a layer since the file was
# written, and moments have the shapes of their parameters.
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
leaf = jnp.zeros(3)
eqx.tree_serialise_leaves(file, {"mu": leaf + 1, "nu": leaf + 2, "params": leaf + 3})


def refused(template):
    try:
        eqx.tree_deserialise_leaves(file, template)
    except Exception as error:
        print("refused:", str(error).partition("\n")[0])
        return True
    return False


same = eqx.tree_deserialise_leaves(file, {"mu": leaf, "nu": leaf, "params": leaf})
if same["params"].tolist() != [3, 3, 3]:
    sys.exit("What it is compared with changed: the template of the saved tree is not restored.")
if not refused({"mu": jnp.zeros(4), "nu": leaf, "params": leaf}):
    sys.exit("What it is compared with changed: another shape is no longer refused.")
if not refused({"mu": leaf, "nu": leaf, "params": leaf, "step": leaf}):
    sys.exit("What it is compared with changed: a file with too few leaves is no longer refused.")
if refused({"params": leaf}):
    sys.exit("equinox refuses a file that holds more leaves than the template now.")
loaded = eqx.tree_deserialise_leaves(file, {"params": leaf})
print("params of the longer file:", loaded["params"].tolist())
if loaded["params"].tolist() != [1, 1, 1]:
    sys.exit("equinox no longer reads the first leaf of a longer file as the only one.")
PY
