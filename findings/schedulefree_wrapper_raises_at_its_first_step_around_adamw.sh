#!/usr/bin/env bash
# schedulefree 1.4.1 with torch 2.15.0, on the CPU.
#
# Behaviour: ScheduleFreeWrapper(base) raises KeyError at its first step() where the base optimizer of
# torch makes its state at its own first step: 'exp_avg' for Adam and AdamW, 'square_avg' for RMSprop,
# which is the example of the wrapper in its README. The wrapper puts its own 'z' into
# base.state[p] first, and these optimizers make their buffers only where a state is empty.
# Seen for both wrappers of the package; around SGD, with or without momentum, they work.
#
# One would guess that what "can wrap any base optimizer" wraps the one of its own example.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "schedulefree==1.4.1" "torch==2.15.0" "numpy==2.5.5"

TMPDIR=$work "$work/venv/bin/python" - <<'PY'
import sys

import torch
from schedulefree import ScheduleFreeWrapper, ScheduleFreeWrapperReference

torch.set_num_threads(1)


def first_step(wrapper, base_class):
    parameter = torch.nn.Parameter(torch.ones(3))
    base = base_class([parameter], lr=0.0025)
    optimizer = wrapper(base, momentum=0.9, weight_decay_at_y=0.1)
    optimizer.train()
    parameter.grad = torch.ones(3)
    try:
        optimizer.step()
    except KeyError as error:
        found = f"KeyError: {error}"
    else:
        found = "stepped"
    print(wrapper.__name__, base_class.__name__, found)
    return found


for wrapper in (ScheduleFreeWrapper, ScheduleFreeWrapperReference):
    if first_step(wrapper, torch.optim.SGD) != "stepped":
        sys.exit("What it is compared with changed: it no longer wraps SGD.")
    for name, key in (("RMSprop", "square_avg"), ("AdamW", "exp_avg"), ("Adam", "exp_avg")):
        if first_step(wrapper, getattr(torch.optim, name)) != f"KeyError: '{key}'":
            sys.exit(f"{wrapper.__name__} no longer raises around {name}.")
PY
