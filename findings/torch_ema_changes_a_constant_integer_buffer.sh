#!/usr/bin/env bash
# torch 2.15.0 (torch.optim.swa_utils.AveragedModel with use_buffers=True) on the CPU.
#
# Behaviour: with get_ema_multi_avg_fn() or get_ema_avg_fn() the average of an integer buffer is
# computed in floating point and cut to an integer. The average of a number with itself can come
# out just below it, and the cut takes a whole one away: a buffer that never changes changes in the
# copy. A boolean buffer that was once True stays True.
# Seen with decay 0.9 and a buffer arange(512), the same at each of five updates: 147 of the 512
# entries of the averaged model are too small by one; with decay 0.9999 it is 99, and with 0.99 and
# 0.999 none. A flag that turns False stays True in the copy.
#
# One would guess that the average of equal numbers is that number. Index tables are such buffers:
# position ids, or the relative positions of a windowed attention; the averaged model then looks up
# its neighbours' rows, in evaluation only. use_buffers=False copies the buffers and is right.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "torch==2.15.0" "numpy==2.5.5"

"$work/venv/bin/python" -W ignore - <<'PY'
import sys

import torch
from torch.optim.swa_utils import AveragedModel, get_ema_avg_fn, get_ema_multi_avg_fn

torch.set_num_threads(1)


class Model(torch.nn.Module):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))
        self.register_buffer("positions", torch.arange(512))
        self.register_buffer("fresh", torch.tensor(True))


def average(use_buffers, **how):
    model = Model()
    averaged = AveragedModel(model, use_buffers=use_buffers, **how)
    for _ in range(5):
        averaged.update_parameters(model)
        model.fresh.fill_(False)
    gap = model.positions - averaged.module.positions
    return int((gap != 0).sum()), int(gap.max()), bool(averaged.module.fresh)


wrong = {}
for decay in (0.9, 0.99, 0.999, 0.9999):
    both = {
        average(True, multi_avg_fn=get_ema_multi_avg_fn(decay)),
        average(True, avg_fn=get_ema_avg_fn(decay)),
    }
    wrong[decay] = both
    print(f"decay {decay}: (entries that differ, largest gap, flag) {both}")
copied = average(False, multi_avg_fn=get_ema_multi_avg_fn(0.9))
print("use_buffers=False:", copied)
if copied != (0, 0, False):
    sys.exit("What it is compared with changed: use_buffers=False no longer copies the buffers.")
if any(count == 0 or gap != 1 for decay in (0.9, 0.9999) for count, gap, _ in wrong[decay]):
    sys.exit("The average of a constant integer buffer is that buffer now.")
if not all(flag for found in wrong.values() for _, _, flag in found):
    sys.exit("A boolean buffer follows the model now.")
PY
