"""Lightning: train, save, resume with new objects, and land on the same bits."""

from functools import partial

import lightning
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, BaseFinetuning, ModelCheckpoint
from stac_torch import STAC, param_groups
from torch import nn

# Lightning 2.6 asks torch in words that torch is giving up, and warns of what these tests mean to
# do: a loader without workers, a resumed run that saves beside its checkpoint.
pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]

EPOCHS, SAVED = 4, 2
PARTITION = {"last_n_ratio": 0.5, "weight_decay": 0.1}
BUILDS = {
    "model": lambda net, **options: STAC(net, lr=3e-3, **PARTITION, **options),
    "groups": lambda net, **options: STAC(param_groups(net, **PARTITION), lr=3e-3, **options),
}
# Stored momentum and options that suit the parameters' dtype.
PRECISIONS = {
    "bf16-mixed": {"sign_state_dtype": "int8"},
    "bf16-true": {"stochastic_rounding": True, "adamw_state_dtype": "float32"},
    "32-true": {"sign_state_dtype": "bf16"},
}


class Module(lightning.LightningModule):
    """A small network that notes how large its gradients are after clipping."""

    def __init__(self, build, options):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(64, 66), nn.Tanh(), nn.Linear(66, 2))
        self.build, self.options = build, options
        self.norms = []

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = BUILDS[self.build](self, **self.options)
        steps = self.trainer.estimated_stepping_batches
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }

    def on_before_optimizer_step(self, optimizer):
        # Lightning clips after this hook: what is seen here is the unclipped norm.
        self.norms.append(torch.nn.utils.get_total_norm([p.grad for p in self.parameters()]).item())


def train(build, precision, folder, resume=None):
    module = Module(build, PRECISIONS[precision])
    x = torch.randn(48, 64, generator=torch.Generator().manual_seed(1))
    trainer = lightning.Trainer(
        max_epochs=EPOCHS,
        accelerator="cpu",
        devices=1,
        precision=precision,
        gradient_clip_val=0.01,
        accumulate_grad_batches=2,
        callbacks=[ModelCheckpoint(folder, "{epoch}", save_top_k=-1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=8), ckpt_path=resume)
    return trainer, module


identical = partial(torch.testing.assert_close, rtol=0, atol=0)


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("precision", PRECISIONS)
def test_a_resumed_run_lands_on_the_same_weights(build, precision, tmp_path):
    trainer, whole = train(build, precision, tmp_path)
    checkpoint = tmp_path / f"epoch={SAVED - 1}.ckpt"
    again, resumed = train(build, precision, tmp_path, checkpoint)
    assert len(whole.norms) == 2 * len(resumed.norms) == EPOCHS * 3
    assert min(whole.norms) > 0.01
    identical(dict(resumed.state_dict()), dict(whole.state_dict()))
    ours, theirs = (t.optimizers[0].state_dict() for t in (again, trainer))
    identical(ours["state"], theirs["state"])
    assert ours["param_groups"] == theirs["param_groups"]


def test_the_state_is_what_was_asked_for(tmp_path):
    for precision, dtypes in {
        "bf16-mixed": (torch.float32, torch.int8, torch.float32),
        "bf16-true": (torch.bfloat16, torch.bfloat16, torch.float32),
        "32-true": (torch.float32, torch.bfloat16, torch.float32),
    }.items():
        trainer, module = train("model", precision, tmp_path / precision)
        optimizer = trainer.optimizers[0]
        assert optimizer.partition.sign_layer_names == ("net.0",)
        first, last = module.net[0].weight, module.net[2].weight
        moments = optimizer.state[first]["exp_avg"], optimizer.state[last]["exp_avg"]
        assert (first.dtype, *(m.dtype for m in moments)) == dtypes


class Transfer(lightning.LightningModule):
    """A backbone under a head."""

    def __init__(self, options):
        super().__init__()
        torch.manual_seed(0)
        self.backbone = nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 8), nn.Tanh())
        self.head = nn.Linear(8, 2)
        self.options = options
        self.rates = []

    def training_step(self, batch, _):
        return (self.head(self.backbone(batch)) - 1).square().mean()

    def configure_optimizers(self):
        return STAC(self, lr=0.01, **self.options)

    def on_train_epoch_end(self):
        groups = self.optimizers().param_groups
        self.rates.append([(group["role"], float(group["lr"])) for group in groups])


class Unfreezing(BaseFinetuning):
    """The few lines of a callback of one's own."""

    def freeze_before_training(self, pl_module):
        self.freeze(pl_module.backbone)

    def finetune_function(self, pl_module, epoch, optimizer):
        if epoch == 1:
            self.make_trainable(pl_module.backbone)


FINETUNING = {
    "added": (
        {"hold_frozen": False},
        lambda: BackboneFinetuning(1, lambda _: 2.0, backbone_initial_ratio_lr=0.1),
        [
            [("adamw", 0.01)],
            [("adamw", 0.01), ("sign", 0.001)],
            [("adamw", 0.01), ("sign", 0.002)],
        ],
    ),
    "held": ({}, Unfreezing, [[("sign", 0.01), ("adamw", 0.01)]] * 3),
}


@pytest.mark.parametrize("form", FINETUNING)
def test_an_unfrozen_backbone_trains_by_sign(form, tmp_path):
    options, callback, rates = FINETUNING[form]
    module = Transfer(options)
    before = {name: p.detach().clone() for name, p in module.named_parameters()}
    trainer = lightning.Trainer(
        max_epochs=3,
        accelerator="cpu",
        devices=1,
        callbacks=[callback()],
        default_root_dir=tmp_path,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    x = torch.randn(16, 8, generator=torch.Generator().manual_seed(1))
    trainer.fit(module, torch.utils.data.DataLoader(x, batch_size=8))
    assert [[(r, round(lr, 9)) for r, lr in groups] for groups in module.rates] == rates
    optimizer = trainer.optimizers[0]
    assert optimizer.partition.sign_layer_names == ("backbone.0", "backbone.2")
    assert optimizer.partition.adamw_layer_names == ("head",)
    for name, p in module.named_parameters():
        assert not torch.equal(p, before[name]), name
    assert len(optimizer.state) == len(before)
