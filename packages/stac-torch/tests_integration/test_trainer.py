"""The Trainer of transformers: train, save, resume elsewhere, and land on the same bits.

`python test_trainer.py BUILD FOLDER` is the fresh process that a resumed run of one test is.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # Before transformers is imported, which reads it then.

import json
import subprocess
import sys
from functools import partial
from pathlib import Path

import pytest
import torch
from stac_torch import STAC, param_groups
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainerCallback, TrainingArguments

STEPS, SAVED = 6, 3
OPTIONS = {"lr": 3e-3, "sign_momentum": 0.8, "sign_state_dtype": "int8"}
PARTITION = {"shared_owner": "last", "norms_on_adamw": True, "weight_decay": 0.1}


def model():
    """Return a GPT-2 of 43,000 parameters with tied embeddings and dropout."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 96, "n_positions": 16, "n_embd": 64, "n_layer": 1, "n_head": 2}
    return GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0))


def data():
    tokens = torch.randint(96, (32, 16), generator=torch.Generator().manual_seed(1))
    return [{"input_ids": row, "labels": row} for row in tokens]


def from_model(net):
    return {"optimizers": (STAC(net, **PARTITION, **OPTIONS), None)}


def from_groups(net):
    return {"optimizers": (STAC(param_groups(net, **PARTITION), **OPTIONS), None)}


def own_schedule(net):
    optimizer = STAC(net, **PARTITION, **OPTIONS)
    return {"optimizers": (optimizer, torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS))}


def class_and_model(net):
    return {"optimizer_cls_and_kwargs": (STAC, {"model": net, **PARTITION, **OPTIONS})}


def class_and_groups(net):
    groups = param_groups(net, **PARTITION)
    return {"optimizer_cls_and_kwargs": (STAC, {"params": groups, **OPTIONS})}


BUILDS = {
    build.__name__: build
    for build in (from_model, from_groups, own_schedule, class_and_model, class_and_groups)
}


class Norms(TrainerCallback):
    """Note the gradient norm of every step, as the Trainer reports it before clipping."""

    def __init__(self):
        self.seen = []

    def on_log(self, args, state, control, logs=None, **kwargs):
        self.seen += [logs["grad_norm"]] if "grad_norm" in (logs or {}) else []


def train(build, folder, resume=None, seed=0):
    """Train to the last step, from the start or from a checkpoint, with a new object of each."""
    net = model()
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=STEPS,
        save_steps=SAVED,
        logging_steps=1,
        per_device_train_batch_size=4,
        gradient_accumulation_steps=2,
        learning_rate=3e-3,
        warmup_steps=2,
        lr_scheduler_type="cosine",
        max_grad_norm=0.05,
        bf16=True,
        use_cpu=True,
        seed=seed,
        report_to=[],
        disable_tqdm=True,
    )
    norms = Norms()
    trainer = Trainer(net, arguments, train_dataset=data(), callbacks=[norms], **build(net))
    trainer.train(resume_from_checkpoint=None if resume is None else str(resume))
    return trainer, norms.seen


def weights(trainer):
    return {k: v.clone() for k, v in trainer.model.state_dict().items()}


def stac(trainer):
    # Accelerate wraps the optimizer while it trains.
    return getattr(trainer.optimizer, "optimizer", trainer.optimizer)


identical = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """Uninterrupted runs, one per build, with the checkpoint after step 3."""
    runs = {}

    def run(name):
        if name not in runs:
            folder = tmp_path_factory.mktemp(name)
            runs[name] = folder / f"checkpoint-{SAVED}", *train(BUILDS[name], folder)
        return runs[name]

    return run


@pytest.mark.parametrize("name", BUILDS)
def test_a_resumed_run_lands_on_the_same_weights(whole, name, tmp_path):
    checkpoint, trainer, _ = whole(name)
    resumed, norms = train(BUILDS[name], tmp_path, checkpoint)
    assert len(norms) == STEPS - SAVED
    identical(weights(resumed), weights(trainer))
    ours, theirs = (stac(t).state_dict()["state"] for t in (resumed, trainer))
    identical(ours, theirs)


def test_a_fresh_process_lands_on_the_same_weights(whole, tmp_path):
    checkpoint, trainer, _ = whole("from_model")
    command = [sys.executable, __file__, "from_model", str(tmp_path), str(checkpoint)]
    subprocess.run(command, check=True, capture_output=True, timeout=300)
    identical(torch.load(tmp_path / "weights.pt"), weights(trainer))


def test_every_way_to_build_it_is_the_same_training(whole):
    first = weights(whole("from_model")[1])
    for name in ("from_groups", "class_and_model", "class_and_groups"):
        identical(weights(whole(name)[1]), first)
    other = weights(whole("own_schedule")[1])
    assert not torch.equal(other["lm_head.weight"], first["lm_head.weight"])


def test_the_state_is_what_was_asked_for(whole):
    checkpoint, trainer, _ = whole("class_and_model")
    optimizer = stac(trainer)
    assert optimizer.partition.adamw_layer_names == (
        "transformer.h.0.ln_1",
        "transformer.h.0.ln_2",
        "transformer.ln_f",
        "lm_head",
    )
    matrix = trainer.model.transformer.h[0].mlp.c_fc.weight
    assert optimizer.state[matrix]["exp_avg"].dtype is torch.int8
    saved = torch.load(checkpoint / "optimizer.pt", weights_only=True)
    assert torch.int8 in {s["exp_avg"].dtype for s in saved["state"].values()}


def test_the_schedule_and_the_clipping_are_at_work(whole):
    checkpoint, trainer, norms = whole("from_model")
    assert min(norms) > 0.05
    history = json.loads((checkpoint / "trainer_state.json").read_text())["log_history"]
    rates = [entry["learning_rate"] for entry in history]
    assert rates == pytest.approx([0.0, 1.5e-3, 3e-3])
    assert {group["lr"] for group in stac(trainer).param_groups} == {0.0}


def test_weight_decay_of_the_arguments_is_not_seen(tmp_path):
    """The Trainer writes it into groups of its own, which the given model replaces."""
    net = model()
    arguments = TrainingArguments(str(tmp_path), weight_decay=0.1, use_cpu=True, report_to=[])
    for options, expected in (
        ({}, {0.0}),
        ({"weight_decay": arguments.weight_decay}, {0.1}),
    ):
        options |= {"model": net, "lr": 1e-3, "partition": "transformer"}
        trainer = Trainer(net, arguments, optimizer_cls_and_kwargs=(STAC, options))
        optimizer = trainer.create_optimizer()
        assert {group["weight_decay"] for group in optimizer.param_groups} == expected


if __name__ == "__main__":
    name, folder, resume = sys.argv[1:]
    torch.save(weights(train(BUILDS[name], folder, resume)[0]), Path(folder, "weights.pt"))
