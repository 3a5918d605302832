"""A Hugging Face sequence classifier with random weights: from which module is this line of code?

optim-bench run examples/hugging_face.py:task --optimizer stac --budget 10min
"""

import argparse
import decimal
import inspect

import torch
from optim_bench import TorchTask
from transformers import BertConfig, BertForSequenceClassification

LENGTH = 32
lines = [
    (line.strip(), label)
    for label, module in enumerate((argparse, decimal))
    for line in inspect.getsource(module).splitlines()
    if len(line.strip()) > 15
]
codes = [[min(ord(sign), 127) for sign in text[:LENGTH].ljust(LENGTH)] for text, _ in lines]
order = torch.randperm(len(lines), generator=torch.Generator().manual_seed(0))
x, y = torch.tensor(codes)[order], torch.tensor([label for _, label in lines])[order]
split = {"val": slice(0, 200), "test": slice(200, 400)}


def model(seed):
    sizes = {"hidden_size": 32, "intermediate_size": 64, "num_attention_heads": 4}
    config = BertConfig(
        vocab_size=128, num_hidden_layers=2, max_position_embeddings=LENGTH, **sizes
    )
    return BertForSequenceClassification(config)


def batches(seed):
    rng = torch.Generator().manual_seed(seed)
    while True:
        rows = torch.randint(400, len(x), (16,), generator=rng)
        yield {"input_ids": x[rows], "labels": y[rows]}


def evaluate(model, name):
    found = model(input_ids=x[split[name]], labels=y[split[name]])
    right = (found.logits.argmax(-1) == y[split[name]]).float().mean()
    return {"loss": found.loss.item(), "accuracy": right.item()}


task = TorchTask(
    model, batches, lambda model, batch: model(**batch).loss, evaluate, steps=60, evaluate_every=30
)
