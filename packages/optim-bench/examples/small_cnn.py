"""A convolutional network on scikit-learn's digits, judged by its error rate.

optim-bench run examples/small_cnn.py:task --optimizer muon --budget 10min
"""

import torch
from optim_bench import TorchTask
from sklearn.datasets import load_digits
from torch import nn

digits = load_digits()
order = torch.randperm(1797, generator=torch.Generator().manual_seed(0))
x = torch.tensor(digits.images, dtype=torch.float32)[order, None] / 16
y = torch.tensor(digits.target)[order]
split = {"val": slice(0, 300), "test": slice(300, 600)}


def model(seed):
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 16, 3, stride=2), nn.ReLU(),
        nn.Flatten(), nn.Linear(144, 10),
    )  # fmt: skip


def batches(seed):
    rng = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(600, 1797, (32,), generator=rng)
        yield x[rows], y[rows]


def evaluate(model, name):
    wrong = (model(x[split[name]]).argmax(1) != y[split[name]]).sum() + 0.5  # never exactly 0
    return {"error": wrong.item() / 300}


def loss(model, batch):
    return nn.functional.cross_entropy(model(batch[0]), batch[1])


task = TorchTask(model, batches, loss, evaluate, steps=150, judged="error")
