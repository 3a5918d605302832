#!/usr/bin/env bash
# mlxtend 0.25.0 (mlxtend.evaluate.mcnemar) with numpy 2.5.5 and scipy 1.18.1.
#
# Behaviour: with its default arguments the McNemar test of two models that agree on every example
# divides (|0 - 0| - 1)**2 by 0 and makes a p-value of the infinity: 0, the strongest evidence of a
# difference there can be. NumPy's warning about the division is the only trace.
# Seen: a model compared with itself gives chi2 inf and p 0.0; exact=True gives p 1.0, and one
# disagreement (in favour of either) gives p 1.0 in both variants.
#
# One would guess p = 1, as in the exact test, or NaN at worst: two optimizers that end in equal
# predictions are a common outcome of a small benchmark, and "p < 0.05" then calls them different.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "mlxtend==0.25.0" "numpy==2.5.5" "scipy==1.18.1"

MPLCONFIGDIR=$work "$work/venv/bin/python" - <<'PY'
import sys
import warnings

import numpy as np
from mlxtend.evaluate import mcnemar, mcnemar_table

warnings.simplefilter("ignore", RuntimeWarning)
truth = np.array([0, 1, 1, 0, 1, 0, 0, 1])
predicted = np.array([0, 1, 0, 0, 1, 0, 1, 1])
other = predicted.copy()
other[0] = 1

same = mcnemar_table(truth, predicted, predicted)
differing = mcnemar_table(truth, predicted, other)
p_same, p_exact = float(mcnemar(same)[1]), float(mcnemar(same, exact=True)[1])
p_differing = float(mcnemar(differing)[1])
print(f"the same model twice: p = {p_same} (default), {p_exact} (exact)")
print(f"one disagreement:     p = {p_differing} (default)")
if (p_exact, p_differing) != (1.0, 1.0):
    sys.exit("What it is compared with changed: no evidence no longer gives p = 1.")
if p_same != 0.0:
    sys.exit("mlxtend's mcnemar no longer gives p = 0 for two models that always agree.")
PY
