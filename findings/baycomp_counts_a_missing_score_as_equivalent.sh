#!/usr/bin/env bash
# baycomp 1.0.3 (baycomp.two_on_multiple) with numpy 2.5.5 and scipy 1.18.1.
#
# Behaviour: with a region of practical equivalence the signed-rank test adds up what lies above the
# region and what lies below it, and gives the rest to the region. A nan compares as neither, so a
# data set without a score is evidence that the methods are equivalent.
# Seen: a method better by 0.05 on ten data sets is better with probability 1.0; with its scores
# missing on six of them the probability of equivalence is 0.97, and with all missing it is 1.0.
# The t test of the same package (two_on_single) returns nan for the same input.
#
# One would guess nan, an error, or that the pair is left out: a run that diverged has a nan for its
# score, and the table then says that the method that diverges is as good as the other.
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

base = np.linspace(0.7, 0.9, 10)
found = {}
for missing in (0, 6, 10):
    better = base + 0.05
    better[:missing] = np.nan
    worse, same, best = baycomp.two_on_multiple(base, better, rope=0.01, random_state=0)
    found[missing] = same
    print(f"{missing:2} scores missing: equivalent with {same:.3f}, better with {best:.3f}")
single = baycomp.two_on_single(base, better, rope=0.01)
print("the t test of the package:", [float(p) for p in single])
if found[0] > 0.01 or not np.isnan(single).all():
    sys.exit("What it is compared with changed.")
if found[6] < 0.9 or found[10] != 1.0:
    sys.exit("baycomp no longer counts a missing score as equivalence.")
PY
