#!/usr/bin/env bash
# statsmodels 0.15.0 (statsmodels.stats.multitest.multipletests) with numpy 2.5.5.
#
# Behaviour: one nan among the p-values makes every corrected p-value of method="fdr_bh" nan, and
# the array of rejections next to them still says True. method="holm" keeps the numbers of the
# other tests, and method="hommel" loses them with the rejection.
# Seen: for p = [0.01, nan, 0.03, 0.2] fdr_bh returns reject [True, False, False, False] with
# corrected values [nan, nan, nan, nan]; holm returns the same rejections with [0.04, nan, 0.09, 0.4];
# hommel returns no rejection and four nan.
#
# One would guess that the two arrays of one result say the same, and that a missing p-value is
# treated alike by all methods. A pair of optimizers whose runs failed has a nan in a table of
# tests: code that filters by reject keeps a row whose p-value is nan, and code that compares the
# corrected p with alpha drops it.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "statsmodels==0.15.0" "numpy==2.5.5"

"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
from statsmodels.stats.multitest import multipletests

p = [0.01, np.nan, 0.03, 0.2]
found = {}
for method in ("holm", "fdr_bh", "hommel"):
    reject, corrected = multipletests(p, alpha=0.05, method=method)[:2]
    found[method] = reject.tolist(), corrected.tolist()
    print(f"{method:7} reject {found[method][0]}, corrected {found[method][1]}")
reject, corrected = found["holm"]
if not (reject[0] and np.isclose(corrected[0], 0.04)):
    sys.exit("What it is compared with changed: holm no longer keeps the other tests.")
reject, corrected = found["fdr_bh"]
if not (reject[0] and np.isnan(corrected[0])):
    sys.exit("statsmodels' fdr_bh no longer rejects with a corrected p-value of nan.")
PY
