"""Lightning: trained there, imported, gone on with here; and back, gone on with there."""

import lightning
import pytest
import torch
from optim_checkpoint import UnsupportedStateError
from optim_checkpoint import torch as ckpt
from optim_checkpoint.migrate import export_checkpoint, import_checkpoint
from torch import nn

pytestmark = [
    pytest.mark.filterwarnings("ignore:.isinstance.treespec, LeafSpec.. is deprecated"),
    pytest.mark.filterwarnings("ignore:The 'train_dataloader' does not have many workers"),
]
# One batch: where an epoch had more, Lightning 2.6.6 would go on at the first one.
DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(1))


class Module(lightning.LightningModule):
    def __init__(self, hidden=3):
        super().__init__()
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, hidden), nn.Tanh(), nn.Linear(hidden, 1))

    def training_step(self, batch, _):
        return self.net(batch).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01)
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, 2)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step"},
        }


def fit(module, steps, resume=None):
    trainer = lightning.Trainer(
        max_steps=steps,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, torch.utils.data.DataLoader(DATA, batch_size=12), ckpt_path=resume)
    return trainer


def outcome(model, optimizer):
    state = {n: p.detach().clone() for n, p in model.named_parameters()}
    for n, p in model.named_parameters():
        state |= {f"{n}.{slot}": v.clone() for slot, v in optimizer.state[p].items()}
    return state


def identical(one, other):
    assert one.keys() == other.keys()
    assert [k for k in one if not torch.equal(one[k], other[k])] == []


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A checkpoint after three steps, and what six of Lightning's lead to."""
    file = tmp_path_factory.mktemp("lightning") / "old.ckpt"
    fit(Module(), 3).save_checkpoint(file)
    module = Module()
    trainer = fit(module, 6, file)
    assert trainer.global_step == 6
    return file, outcome(module, trainer.optimizers[0])


def test_a_run_of_lightning_goes_on_here(trained, tmp_path):
    file, expected = trained
    report = import_checkpoint(file, tmp_path, optimizer="torch.optim.AdamW")
    assert report.step == 3
    assert report.left_out == ("generators: Lightning saves none",)
    module = Module()
    settings = module.configure_optimizers()
    optimizer, scheduler = settings["optimizer"], settings["lr_scheduler"]["scheduler"]
    r = ckpt.restore(tmp_path, model=module, optimizer=optimizer, scheduler=scheduler)
    assert r.extra["lightning"]["hyper_parameters"] == {"hidden": 3}
    for _ in range(3):
        optimizer.zero_grad()
        module.training_step(DATA, 0).backward()
        optimizer.step()
        scheduler.step()
    identical(outcome(module, optimizer), expected)


def test_a_run_goes_back_to_lightning(trained, tmp_path):
    file, expected = trained
    import_checkpoint(file, tmp_path, optimizer="torch.optim.AdamW")
    export_checkpoint(tmp_path, tmp_path / "new.ckpt", format="lightning")
    module = Module()
    trainer = fit(module, 6, tmp_path / "new.ckpt")
    assert trainer.global_step == 6
    identical(outcome(module, trainer.optimizers[0]), expected)


def test_loops_of_another_step_are_not_passed_on(trained, tmp_path):
    import_checkpoint(trained[0], tmp_path, optimizer="torch.optim.AdamW")
    module = Module()
    optimizer = module.configure_optimizers()["optimizer"]
    extra = ckpt.restore(tmp_path, model=module, optimizer=optimizer).extra
    ckpt.save(tmp_path, 4, model=module, optimizer=optimizer, extra=extra)
    with pytest.raises(UnsupportedStateError, match="counts 3 steps and the checkpoint 4"):
        export_checkpoint(tmp_path, tmp_path / "new.ckpt", format="lightning")
    assert not (tmp_path / "new.ckpt").exists()
