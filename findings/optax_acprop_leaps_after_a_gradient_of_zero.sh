#!/usr/bin/env bash
# optax 0.2.8 (optax.contrib.acprop) with jax 0.12.0.1.
#
# Behaviour: the denominator is that of the step before. A parameter whose gradient was exactly
# zero so far has the denominator sqrt(1e-16) there, and its first gradient of another value is
# divided by that. The first step of all is an exception that the code makes, and only that one.
# Seen at a learning rate of 0.001, gradient 0 and then 0.1: the parameter moves by -316. adam
# moves it by 0.0007, adabelief, whose second moment is the same, by 0.0008, and adopt, which
# divides by the step before as well and clips, by 0.0001.
#
# One would guess a step of about the learning rate, which is what Adam and its kin are used for. A
# row of an embedding that the first batch did not contain is such a parameter, and so is a unit
# behind a dead ReLU.
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

RATE = 1e-3
rules = {
    "adam": optax.adam,
    "adabelief": optax.adabelief,
    "adopt": optax.contrib.adopt,
    "acprop": optax.contrib.acprop,
}


def largest(rule, gradients):
    optimizer, params = rule(RATE), jnp.ones(1)
    state, steps = optimizer.init(params), []
    for gradient in gradients:
        updates, state = optimizer.update(jnp.array([gradient]), state, params)
        steps.append(abs(float(updates[0])))
    return max(steps)


seen = {name: largest(rule, [0.1, 0.1]) for name, rule in rules.items()}
unseen = {name: largest(rule, [0.0, 0.1]) for name, rule in rules.items()}
for name in rules:
    print(f"{name:9} largest step {seen[name]:.2g}, after a gradient of 0 {unseen[name]:.3g}")
if max(seen.values()) > 2 * RATE:
    sys.exit("What it is compared with changed: a constant gradient makes steps above the rate.")
if max(unseen[name] for name in rules if name != "acprop") > 2 * RATE:
    sys.exit("What it is compared with changed: another rule leaps after a gradient of zero.")
if unseen["acprop"] < 1e5 * RATE:
    sys.exit("optax.contrib.acprop no longer leaps after a gradient of zero.")
PY
