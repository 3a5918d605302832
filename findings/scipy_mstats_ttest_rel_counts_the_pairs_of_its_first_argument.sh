#!/usr/bin/env bash
# scipy 1.18.1 (scipy.stats.mstats.ttest_rel) with numpy 2.5.5.
#
# Behaviour: mean and variance are those of the pairs in which neither value is masked, and the
# number of pairs is the number of values that are not masked in the first argument. What is masked
# in the second one alone is left out of the differences and still counted.
# Seen with 12 pairs of which 5 are masked: masked in the first argument, or in both, t = -3.24 and
# p = 0.018, as scipy.stats.ttest_rel has it for the same arrays; masked in the second one alone, t
# = -4.24 and p = 0.0014. Exchanging the arguments exchanges which of the two one gets.
#
# One would guess that a paired test counts pairs, and that exchanging its arguments changes
# nothing but the sign. The mask is how a failed run is left out of a comparison of two optimizers:
# p is then too small by a factor of ten, but only if the second one failed.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "scipy==1.18.1" "numpy==2.5.5"

"$work/venv/bin/python" - <<'PY'
import sys

import numpy as np
from scipy import stats

rng = np.random.default_rng(0)
first = rng.normal(size=12)
second = first + rng.normal(0.3, 0.5, size=12)
failed = np.arange(12) < 5
pairs = stats.ttest_rel(first[~failed], second[~failed])
first_masked, second_masked = np.ma.array(first, mask=failed), np.ma.array(second, mask=failed)

found = {
    "the seven pairs": pairs,
    "masked in the first": stats.mstats.ttest_rel(first_masked, second),
    "masked in the second": stats.mstats.ttest_rel(first, second_masked),
    "masked in both": stats.mstats.ttest_rel(first_masked, second_masked),
    "second, arguments exchanged": stats.mstats.ttest_rel(second_masked, first),
    "second, scipy.stats.ttest_rel": stats.ttest_rel(first, second_masked),
}
for name, result in found.items():
    print(f"{name:30} t = {float(result.statistic):6.3f}  p = {float(result.pvalue):.4f}")
right = float(pairs.pvalue)
for name, result in found.items():
    if name != "masked in the second" and not np.isclose(float(result.pvalue), right):
        sys.exit(f"What it is compared with changed: {name}.")
# The statistic of 7 differences with the count of 12.
t = float(pairs.statistic) * np.sqrt(12 / 7)
wrong = found["masked in the second"]
if not np.isclose(float(wrong.statistic), t):
    sys.exit("mstats.ttest_rel no longer counts the values of its first argument.")
if not np.isclose(float(wrong.pvalue), 2 * stats.t.sf(abs(t), 11)):
    sys.exit("mstats.ttest_rel no longer has the degrees of freedom of its first argument.")
PY
