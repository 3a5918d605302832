#!/usr/bin/env bash
# pytorch_optimizer 4.1.0 with torch 2.15.0, on the CPU.
#
# Behaviour: maximize=True negates p.grad in place, and leaves it so. A second step() on the same
# gradient goes downhill, the third uphill again; what reads .grad after step(), such as gradients
# accumulated without zero_grad() or a log of them, has the wrong sign.
# Seen for SGDW, SignSGD and Lion at a rate of 0.1 and the gradient (1, 2, -3): after two steps the
# parameters are back at 0. Adam of torch.optim with maximize=True moves on and keeps the gradient.
#
# One would guess that step() reads gradients and does not write them, as in torch.optim, whose
# keyword of the same name negates a copy. The documentation says only "maximize the objective
# instead of minimizing it".
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "pytorch_optimizer==4.1.0" "torch==2.15.0" "numpy==2.5.5"

TMPDIR=$work "$work/venv/bin/python" - <<'PY'
import sys

import pytorch_optimizer
import torch

torch.set_num_threads(1)
gradient = torch.tensor([1.0, 2.0, -3.0])


def two_steps(optimizer_class):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = optimizer_class([parameter], lr=0.1, maximize=True)
    parameter.grad = gradient.clone()
    optimizer.step()
    first, left = parameter.detach().clone(), parameter.grad.clone()
    optimizer.step()
    second = parameter.detach()
    name = f"{optimizer_class.__module__.partition('.')[0]}.{optimizer_class.__name__}"
    print(name, "parameter", first.tolist(), second.tolist(), "gradient left", left.tolist())
    return first, second, left


_, second, left = two_steps(torch.optim.Adam)
if not (torch.equal(left, gradient) and bool((second * gradient > 0).all())):
    sys.exit("What it is compared with changed: torch.optim.Adam no longer keeps the gradient.")
for name in ("SGDW", "SignSGD", "Lion"):
    first, second, left = two_steps(getattr(pytorch_optimizer, name))
    uphill = bool((first * gradient > 0).all())
    if not (uphill and torch.equal(left, -gradient) and bool((second.abs() < 1e-6).all())):
        sys.exit(f"pytorch_optimizer.{name} no longer negates the gradient it maximizes along.")
PY
