"""The Trainer of transformers: trained there, imported, gone on with here.

The batches are read in order, so that the loop here gives the model what the Trainer's gives it.
"""

import os

os.environ["HF_HUB_OFFLINE"] = "1"  # Before transformers is imported, which reads it then.

import json

import pytest
import torch
from optim_checkpoint import UnsupportedStateError
from optim_checkpoint import torch as ckpt
from optim_checkpoint.migrate import import_checkpoint, names_of
from transformers import GPT2Config, GPT2LMHeadModel, Trainer, TrainingArguments

TOKENS = torch.randint(32, (24, 8), generator=torch.Generator().manual_seed(1))


class InOrder(Trainer):
    def _get_train_sampler(self, *_):
        return torch.utils.data.SequentialSampler(self.train_dataset)


def trainer(folder):
    """Return a Trainer of a GPT-2 with tied embeddings and dropout, in two groups of AdamW."""
    torch.manual_seed(0)
    sizes = {"vocab_size": 32, "n_positions": 8, "n_embd": 16, "n_layer": 1, "n_head": 2}
    config = GPT2Config(**sizes, bos_token_id=0, eos_token_id=0, loss_type="ForCausalLM")
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=6,
        save_steps=3,
        per_device_train_batch_size=4,
        learning_rate=0.01,
        weight_decay=0.1,
        max_grad_norm=0.0,
        use_cpu=True,
        report_to=[],
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in TOKENS]
    return InOrder(GPT2LMHeadModel(config), arguments, train_dataset=data)


def outcome(model, optimizer):
    state = {n: v.clone() for n, v in model.state_dict().items()}
    for n, p in model.named_parameters():
        state |= {f"{n}.{slot}": v.clone() for slot, v in optimizer.state[p].items()}
    return state


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A folder after three steps, and what six of the Trainer's lead to."""
    folder = tmp_path_factory.mktemp("trainer")
    whole = trainer(folder)
    whole.train()
    return folder / "checkpoint-3", outcome(whole.model, whole.optimizer.optimizer)


def test_a_run_of_the_trainer_goes_on_here(trained, tmp_path):
    source, expected = trained
    fresh = trainer(tmp_path / "unused")
    fresh.create_optimizer_and_scheduler(6)
    model, optimizer, scheduler = fresh.model, fresh.optimizer, fresh.lr_scheduler
    with pytest.raises(UnsupportedStateError, match="over 2 groups, in an order of its own"):
        import_checkpoint(source, tmp_path, optimizer="torch.optim.AdamW")
    report = import_checkpoint(source, tmp_path, optimizer=optimizer, model=model)
    tie = "model lm_head.weight is tied to transformer.wte.weight, under which it was stored"
    assert report.notes == (tie,)
    assert [line.partition(":")[0] for line in report.left_out] == ["training_args.bin"]

    r = ckpt.restore(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert (r.step, r.extra["trainer_state"]["global_step"]) == (3, 3)
    model.train()
    for batch in TOKENS[12:].split(4):
        model.zero_grad()
        inputs = iter([{"input_ids": batch, "labels": batch}])
        samples, items = fresh.get_batch_samples(inputs, 1, batch.device)
        fresh.compute_loss(model, samples[0], num_items_in_batch=items).backward()
        optimizer.step()
        scheduler.step()
    resumed = outcome(model, optimizer)
    assert resumed.keys() == expected.keys()
    assert [k for k in resumed if not torch.equal(resumed[k], expected[k])] == []


def test_names_and_ties_can_be_given_as_text(trained, tmp_path):
    fresh = trainer(tmp_path / "unused")
    fresh.create_optimizer()
    names = json.loads(json.dumps(names_of(fresh.optimizer, fresh.model)))
    tie = {"lm_head.weight": "transformer.wte.weight"}
    options = {"optimizer": "torch.optim.AdamW", "names": names}
    import_checkpoint(trained[0], tmp_path, ties=tie, **options)
    ckpt.restore(tmp_path, model=fresh.model, optimizer=fresh.optimizer)
    with pytest.raises(UnsupportedStateError, match="the source has no 'b'"):
        import_checkpoint(trained[0], tmp_path / "b", ties={"a": "b"}, **options)
