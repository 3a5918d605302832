#!/usr/bin/env bash
# baycomp 1.0.3 (baycomp.two_on_multiple) with numpy 2.5.5 and scipy 1.18.1.
#
# Behaviour: the Bayesian signed-rank test without a region of practical equivalence (rope=0, its
# default) draws the share theta that favours the second method, takes 1 - theta for the first, and
# counts in how many draws which is larger. Where all scores are equal, theta is one half in every
# draw but for the rounding of its sum, and the rounding decides.
# Seen: for one method against itself the two probabilities are 0.68 and 0.32 and not 0.5 each, with
# 50,000 draws and for every seed; with rope=1e-9 it is (0, 1, 0), as it should be. SignTest.probs
# of the same scores divides 0 by 0.
#
# One would guess 0.5 and 0.5, or an error: exchanging the arguments changes nothing, so no
# probability but one half is possible. Two optimizers that end at the same accuracy on every data
# set are no rare case in a table that is rounded to a digit.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "baycomp==1.0.3" "numpy==2.5.5" "scipy==1.18.1"

MPLCONFIGDIR=$work "$work/venv/bin/python" - <<'PY'
import sys

import baycomp
import numpy as np

scores = np.linspace(0.7, 0.9, 10)
for seed in (0, 1):
    first, _, second = baycomp.two_on_multiple(scores, scores, rope=0, random_state=seed)
    print(f"seed {seed}: the first is better with {first:.3f}, the second with {second:.3f}")
    if abs(first - 0.5) < 0.05:
        sys.exit("baycomp no longer prefers one of two equal methods.")
wide = [float(p) for p in baycomp.two_on_multiple(scores, scores, rope=1e-9, random_state=0)]
print("with a region of 1e-9:", wide)
if wide != [0.0, 1.0, 0.0]:
    sys.exit("What it is compared with changed: equal methods are no longer equivalent.")
PY
