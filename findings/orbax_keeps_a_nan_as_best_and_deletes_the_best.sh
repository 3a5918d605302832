#!/usr/bin/env bash
# orbax-checkpoint 0.12.8 (CheckpointManager with best_fn) with jax 0.12.0.1.
#
# Behaviour: checkpoints are ranked by sorting their metrics, and NaN has no place in a sort. After
# a NaN the order is arbitrary: the checkpoint with the smallest loss is deleted, or the one with the
# NaN is kept and reported by best_step().
# Seen with best_mode="min" and max_to_keep=2: losses 3, 1, NaN, 2 leave the NaN and the 2 and
# delete the 1; losses 1, NaN, NaN, NaN leave two NaN, and best_step() is one of them.
# An infinite loss is ranked last, as one expects.
#
# One would guess that a diverged step never displaces a good one: keeping the best is what best_fn
# is for, and a NaN loss is the commonest way in which a run goes wrong.
set -euo pipefail

work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
# pyenv offers only the versions that this variable names.
if command -v pyenv >/dev/null; then
    export PYENV_VERSION=${PYENV_VERSION:-$(pyenv versions --bare | paste -sd:)}
fi
uv venv --quiet --no-project --no-python-downloads --python ">=3.12" "$work/venv"
uv pip install --quiet --python "$work/venv/bin/python" "orbax-checkpoint==0.12.8" "jax==0.12.0.1" "jaxlib==0.12.0.1" "numpy==2.5.5"

JAX_PLATFORMS=cpu "$work/venv/bin/python" - "$work" <<'PY'
import sys

import numpy as np
import orbax.checkpoint as ocp

nan, inf = float("nan"), float("inf")


def kept(name, losses):
    options = ocp.CheckpointManagerOptions(
        max_to_keep=2,
        best_fn=lambda metrics: metrics["loss"],
        best_mode="min",
        enable_async_checkpointing=False,
    )
    with ocp.CheckpointManager(f"{sys.argv[1]}/{name}", options=options) as manager:
        for step, loss in enumerate(losses):
            arguments = ocp.args.StandardSave({"step": np.array([step])})
            manager.save(step, args=arguments, metrics={"loss": loss})
        steps, best = sorted(manager.all_steps()), manager.best_step()
    print(f"losses {losses} keep", [losses[step] for step in steps], "best", losses[best])
    return steps, best


if kept("infinite", [1.0, inf, 2.0]) != ([0, 2], 0):
    sys.exit("What it is compared with changed: an infinite loss is no longer ranked last.")
if 1 in kept("one", [3.0, 1.0, nan, 2.0])[0]:
    sys.exit("orbax no longer deletes the best checkpoint when another one's metric is NaN.")
steps, best = kept("many", [1.0, nan, nan, nan])
if 0 in steps or best == 0:
    sys.exit("orbax no longer keeps NaN checkpoints instead of the only finite one.")
PY
