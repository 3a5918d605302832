"""A plain MLP on scikit-learn's diabetes data, with clipped gradients.

optim-bench run examples/tabular.py:task --optimizer examples/tabular.py:mine --budget 5min
"""

import torch
from optim_bench import TorchTask
from sklearn.datasets import load_diabetes
from torch import nn

x, y = (torch.tensor(a, dtype=torch.float32) for a in load_diabetes(return_X_y=True, scaled=True))
x, y = x / x.std(), ((y - y.mean()) / y.std())[:, None]
split = {"val": slice(0, 80), "test": slice(80, 160)}


def batches(seed):
    rng = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(160, len(x), (16,), generator=rng)
        yield x[rows], y[rows]


task = TorchTask(
    lambda seed: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 1)),
    batches,
    lambda model, batch: nn.functional.mse_loss(model(batch[0]), batch[1]),
    lambda model, name: {"loss": nn.functional.mse_loss(model(x[split[name]]), y[split[name]])},
    steps=200,
    clip_norm=1.0,
)


def mine(model, learning_rate):
    return torch.optim.NAdam(model.parameters(), lr=learning_rate)
