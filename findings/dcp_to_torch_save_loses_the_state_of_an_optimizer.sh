#!/usr/bin/env bash
# torch 2.15.0 (torch.distributed.checkpoint).
#
# Behaviour: DCP makes text of the integer keys of a dictionary. `optimizer.state_dict()` numbers its
# parameters, so that what dcp_to_torch_save() writes has the state under "0", "1", ... and the
# parameters in param_groups as 0, 1, ...: load_state_dict() of the optimizer takes it without a word
# and finds no state for any parameter.
# Seen: after one step of AdamW, save with dcp.save(), convert, load into a new AdamW: every
# parameter has no state, and the moments begin anew at the next step.
#
# One would guess that a converter of torch's own gives what torch.save() would have given, or that
# load_state_dict() refuses a state that belongs to no parameter.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "torch==2.15.0" "numpy==2.5.5"

"$work/venv/bin/python" -W ignore - "$work" <<'PY'
import sys

import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.format_utils import dcp_to_torch_save


def build():
    model = torch.nn.Linear(3, 2)
    return model, torch.optim.AdamW(model.parameters())


folder, file = f"{sys.argv[1]}/saved", f"{sys.argv[1]}/converted.pt"
model, optimizer = build()
model(torch.ones(1, 3)).sum().backward()
optimizer.step()
dcp.save({"optimizer": optimizer.state_dict()}, checkpoint_id=folder)
dcp_to_torch_save(folder, file)
converted = torch.load(file, weights_only=False)["optimizer"]
print("saved keys    ", list(optimizer.state_dict()["state"]))
print("converted keys", list(converted["state"]), "params", converted["param_groups"][0]["params"])
model, other = build()
other.load_state_dict(converted)
with_state = [bool(other.state[p]) for p in model.parameters()]
print("has state after load_state_dict():", with_state)
if list(converted["state"]) != ["0", "1"]:
    sys.exit("DCP keeps the integer keys of an optimizer's state now.")
if any(with_state):
    sys.exit("load_state_dict() finds the state under text keys, or DCP keeps them, now.")
PY
