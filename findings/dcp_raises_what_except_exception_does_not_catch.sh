#!/usr/bin/env bash
# torch 2.15.0 (torch.distributed.checkpoint).
#
# Behaviour: what goes wrong in dcp.load() and dcp.save() is raised as a CheckpointException, which
# derives from BaseException and not from Exception.
# Seen: loading a key that the checkpoint does not have goes through `except Exception` and ends the
# process, where the same in torch.load() would have been caught.
#
# One would guess that only what ends a process on purpose (KeyboardInterrupt, SystemExit) is no
# Exception: a loop that catches a failed load to take an older checkpoint ends instead.
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

folder = f"{sys.argv[1]}/saved"
dcp.save({"weight": torch.ones(2)}, checkpoint_id=folder)
try:
    try:
        dcp.load({"bias": torch.ones(2)}, checkpoint_id=folder)
    except Exception as error:
        sys.exit(f"`except Exception` catches what dcp.load() raises now: {type(error).__name__}")
    sys.exit("dcp.load() takes a key that the checkpoint does not have.")
except dcp.api.CheckpointException as error:
    print(f"went through `except Exception`: {type(error).__name__}, of {type(error).__mro__[1:3]}")
PY
