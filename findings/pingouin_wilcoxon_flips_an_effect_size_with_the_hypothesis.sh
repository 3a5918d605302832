#!/usr/bin/env bash
# pingouin 0.7.0 (pingouin.wilcoxon) with numpy 2.5.5, scipy 1.18.1 and pandas 3.1.1.
#
# Behaviour: the rank-biserial correlation that wilcoxon() returns changes its sign with
# alternative="less". pingouin.mwu(), which returns an effect size of the same name, keeps it.
# Seen for x below y everywhere: RBC -1 with "two-sided" and with "greater", +1 with "less"; mwu
# gives -0.222 for all three.
#
# One would guess that an effect size belongs to the data and not to the hypothesis. The notes of
# wilcoxon() announce a flip under "less" for the other effect size, CLES, and define RBC as
# favourable minus unfavourable evidence; mwu's say that a negative RBC means y > x. A table that
# mixes one-sided and two-sided rows shows one and the same data with opposite signs.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "pingouin==0.7.0" "numpy==2.5.5" "scipy==1.18.1" "pandas==3.1.1"

MPLCONFIGDIR=$work "$work/venv/bin/python" - <<'PY'
import sys

import pingouin

x = [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
y = [1.5, 2.9, 3.2, 5.1, 5.7, 8.0]
alternatives = ("two-sided", "greater", "less")


def effects(test):
    found = [
        round(float(test(x, y, alternative=alternative)["RBC"].iloc[0]), 3)
        for alternative in alternatives
    ]
    print(f"{test.__name__:9}", *(f"{a}: {r}" for a, r in zip(alternatives, found, strict=True)))
    return found


paired, independent = effects(pingouin.wilcoxon), effects(pingouin.mwu)
if independent != [-0.222] * 3:
    sys.exit("What it is compared with changed: mwu no longer gives one RBC for one data set.")
if paired != [-1.0, -1.0, 1.0]:
    sys.exit("pingouin.wilcoxon no longer flips the sign of RBC with alternative='less'.")
PY
