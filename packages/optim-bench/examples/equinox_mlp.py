"""An Equinox network on scikit-learn's breast-cancer data.

optim-bench run examples/equinox_mlp.py:task --optimizer stam --budget 10min
"""

import equinox as eqx
import jax
import numpy as np
import optax
from optim_bench import JaxTask
from sklearn.datasets import load_breast_cancer

x, y = load_breast_cancer(return_X_y=True)
order = np.random.default_rng(0).permutation(len(x))
x, y = x[order].astype(np.float32), y[order]
x = (x - x[200:].mean(0)) / x[200:].std(0)
split = {"val": slice(0, 100), "test": slice(100, 200)}


def init(key):
    return eqx.nn.MLP(30, 2, width_size=32, depth=2, key=key)


def batches(seed):
    rng = np.random.default_rng(seed)
    while True:
        rows = rng.integers(200, len(x), 16)
        yield x[rows], y[rows]


def loss(model, batch, key):
    logits = jax.vmap(model)(batch[0])
    return optax.softmax_cross_entropy_with_integer_labels(logits, batch[1]).mean()


@eqx.filter_jit
def judge(model, x, y):
    return loss(model, (x, y), None)


def evaluate(model, name):
    return {"loss": judge(model, x[split[name]], y[split[name]])}


task = JaxTask(init, batches, loss, evaluate, steps=200, steps_per_call=8)
