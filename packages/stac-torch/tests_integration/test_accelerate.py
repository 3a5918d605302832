"""Accelerate: train, save, resume with new objects; and how it swaps parameters for FSDP2."""

from functools import partial

import pytest
import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils.fsdp_utils import fsdp2_switch_optimizer_parameters
from stac_torch import STAC, param_groups
from torch import nn
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

STEPS, SAVED = 6, 3
OPTIONS = {"lr": 3e-3, "sign_state_dtype": "int8"}
PARTITION = {"last_n_ratio": 0.3, "weight_decay": 0.1}
BUILDS = {
    "model": lambda net: STAC(net, **PARTITION, **OPTIONS),
    "groups": lambda net: STAC(param_groups(net, **PARTITION), **OPTIONS),
}
identical = partial(torch.testing.assert_close, rtol=0, atol=0)


def model():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 66), nn.Tanh(), nn.Linear(66, 64), nn.Linear(64, 3))


def train(build, precision="bf16", folder=None, resume=None):
    """Train to the last step, save after the third, or resume from there, all objects new."""
    AcceleratorState._reset_state(reset_partial_state=True)
    accelerator = Accelerator(cpu=True, mixed_precision=precision, gradient_accumulation_steps=2)
    net = model()
    optimizer = BUILDS[build](net)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, 3e-3, STEPS)
    x = torch.randn(2 * STEPS * 8, 64, generator=torch.Generator().manual_seed(1))
    batches = torch.utils.data.DataLoader(x, batch_size=8)
    net, optimizer, schedule, batches = accelerator.prepare(net, optimizer, schedule, batches)
    if resume is not None:
        accelerator.load_state(str(resume))
        batches = accelerator.skip_first_batches(batches, 2 * SAVED)
    norms = []
    for number, batch in enumerate(batches, 2 * SAVED if resume is not None else 0):
        with accelerator.accumulate(net):
            with accelerator.autocast():
                loss = net(batch).square().mean()
            accelerator.backward(loss)
            if accelerator.sync_gradients:
                norms.append(float(accelerator.clip_grad_norm_(net.parameters(), 0.01)))
            optimizer.step()
            schedule.step()
            optimizer.zero_grad()
        if folder is not None and number + 1 == 2 * SAVED:
            accelerator.save_state(str(folder))
    assert min(norms) > 0.01
    return net, optimizer.optimizer, schedule.scheduler


def outcome(net, optimizer):
    """Return whole weights and states, by name."""

    def whole(t):
        return (t.full_tensor() if isinstance(t, DTensor) else t.detach()).clone()

    named = list(net.named_parameters())
    return (
        {name: whole(p) for name, p in named},
        {name: {k: whole(v) for k, v in optimizer.state[p].items()} for name, p in named},
    )


@pytest.mark.parametrize("build", BUILDS)
@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_a_resumed_run_lands_on_the_same_weights(build, precision, tmp_path):
    whole, optimizer, schedule = train(build, precision, tmp_path)
    resumed, other, again = train(build, precision, resume=tmp_path)
    identical(outcome(resumed, other), outcome(whole, optimizer))
    assert again.state_dict() == schedule.state_dict()
    assert other.state[resumed[0].weight]["exp_avg"].dtype is torch.int8


@pytest.fixture
def one_rank(tmp_path):
    dist.init_process_group("gloo", init_method=f"file://{tmp_path}/meet", rank=0, world_size=1)
    yield dist.device_mesh.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


def test_parameters_swapped_for_fsdp2_are_the_ones_that_train(one_rank):
    """Accelerate builds the optimizer first, and replaces its parameters by sharded ones.

    Its Accelerator does so on accelerators alone, so this follows its steps on the CPU.
    """
    net, twin = model(), model()
    optimizer = BUILDS["model"](net)
    old = dict(net.named_parameters())
    addresses = {name: p.data_ptr() for name, p in old.items()}
    for group in optimizer.param_groups:
        for i, p in enumerate(group["params"]):
            group["params"][i] = torch.empty(1, dtype=p.dtype)
            group["params"][i].data_ptr = p.data_ptr()
    fully_shard(net, mesh=one_rank)
    new = dict(net.named_parameters())
    fsdp2_switch_optimizer_parameters(optimizer, {addresses[name]: new[name] for name in new})
    assert all(isinstance(p, DTensor) for group in optimizer.param_groups for p in group["params"])
    plain = BUILDS["model"](twin)
    for _ in range(3):
        for trained, using in ((net, optimizer), (twin, plain)):
            using.zero_grad()
            trained(torch.ones(4, 64)).square().mean().backward()
            using.step()
    identical(outcome(net, optimizer), outcome(twin, plain))
    assert optimizer.partition.adamw_layer_names == plain.partition.adamw_layer_names


def test_the_report_is_behind_the_wrapper():
    AcceleratorState._reset_state(reset_partial_state=True)
    _, wrapped = Accelerator(cpu=True).prepare(model(), STAC(model()))
    assert not hasattr(wrapped, "describe")
    assert wrapped.optimizer.describe().startswith("layer  role")
    assert wrapped.optimizer.diagnostics()["skipped_steps"] == 0
    assert [len(group["param_names"]) for group in wrapped.param_groups] == [4, 2]
