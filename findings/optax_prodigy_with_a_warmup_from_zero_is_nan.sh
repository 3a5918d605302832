#!/usr/bin/env bash
# optax 0.2.8 (optax.contrib.prodigy, dadapt_adamw) with jax 0.12.0.1.
#
# Behaviour: the estimate of the step size divides by a sum over what the steps so far weighed, and
# a step with the learning rate 0 weighs nothing: 0 / 0. The nan stays in the state, and every
# update after it is nan. Gradients that are all zero at the first step do the same.
# Seen: with a linear warmup from 0, or warmup_cosine_decay_schedule(0, 1, ...), prodigy is nan
# from its first update on, and dadapt_adamw from its second. A warmup from 1/3, or one gradient
# that is not zero, is enough to make both finite. safeguard_warmup=True, which is off by default
# and which dadapt_adamw does not have, helps against the warmup and not against the gradients.
#
# One would guess that a warmup from 0 works, as with adamw, or is only estimated worse: the
# documentation recommends a warmup for prodigy, says of the option "to avoid issues", and 0 is
# where a warmup usually starts.
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
from functools import partial

import jax.numpy as jnp
import optax

gradient = jnp.array([0.1, 0.2])
from_zero = optax.linear_schedule(0.0, 1.0, 3)
cosine = optax.warmup_cosine_decay_schedule(0.0, 1.0, 3, 10)
later = optax.linear_schedule(1 / 3, 1.0, 3)


def finite(optimizer, first=gradient):
    """Whether the parameters are finite after each of four updates."""
    params, found = jnp.ones(2), []
    state = optimizer.init(params)
    for step in range(4):
        updates, state = optimizer.update(gradient if step else first, state, params)
        params = optax.apply_updates(params, updates)
        found.append(bool(jnp.isfinite(params).all()))
    return found


def show(name, found):
    print(f"{name:38} finite {found}")
    return found


prodigy, dadapt = optax.contrib.prodigy, optax.contrib.dadapt_adamw
guarded = partial(prodigy, safeguard_warmup=True)
good = [
    show("adamw, warmup from 0", finite(optax.adamw(from_zero))),
    show("prodigy, warmup from 1/3", finite(prodigy(later))),
    show("dadapt_adamw, warmup from 1/3", finite(dadapt(later))),
    show("prodigy, one gradient zero", finite(prodigy(1.0), gradient.at[0].set(0))),
    show("prodigy, safeguarded warmup from 0", finite(guarded(from_zero))),
]
if not all(map(all, good)):
    sys.exit("What it is compared with changed: one of the above is no longer finite.")
bad = [
    show("prodigy, warmup from 0", finite(prodigy(from_zero))),
    show("prodigy, cosine with warmup from 0", finite(prodigy(cosine))),
    show("prodigy, gradients zero at first", finite(prodigy(1.0), 0 * gradient)),
    show("prodigy, safeguarded, the same", finite(guarded(1.0), 0 * gradient)),
]
if any(map(any, bad)):
    sys.exit("optax.contrib.prodigy is finite after a step without weight now.")
if show("dadapt_adamw, warmup from 0", finite(dadapt(from_zero))) != [True, False, False, False]:
    sys.exit("optax.contrib.dadapt_adamw is no longer nan from its second update on.")
PY
