"""Trajectories against the published package, stac-optimizer 0.1.5 (Python 3.13 and newer).

Not collected by default: it needs the published package beside this one.
"""

import copy
import math

import pytest
import torch
from stac_optimizer import STAC as PUBLISHED
from stac_optimizer import partition_trainable_layers as published_partition
from stac_torch import STAC, partition_trainable_layers
from torch import nn

# Ours says where the default partition leaves the head of a transformer to sign.
pytestmark = pytest.mark.filterwarnings("ignore:.*partition='transformer'")
STEPS = 200


def mlp():
    return nn.Sequential(nn.Linear(6, 16), nn.LayerNorm(16), nn.Tanh(), nn.Linear(16, 4))


def cnn():
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, padding=1), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(256, 4)
    )


class Transformer(nn.Module):
    """Two layers over tokens, the head tied to the embedding."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(11, 8)
        self.layers = nn.ModuleList(
            nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True) for _ in range(2)
        )
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 11, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, tokens):
        x = self.embed(tokens)
        for layer in self.layers:
            x = layer(x)
        return self.head(self.norm(x))


class Partial(nn.Module):
    """A frozen layer, and one that takes no part."""

    def __init__(self):
        super().__init__()
        self.frozen = nn.Linear(6, 8).requires_grad_(False)
        self.body = nn.Linear(8, 8)
        self.unused = nn.Linear(8, 8)
        self.last = nn.Linear(8, 4)

    def forward(self, x):
        return self.last(self.body(self.frozen(x)).tanh())


def vectors(generator):
    return torch.randn(8, 6, generator=generator)


def images(generator):
    return torch.randn(4, 1, 8, 8, generator=generator)


def tokens(generator):
    return torch.randint(0, 11, (4, 5), generator=generator)


MODELS = {
    "mlp": (mlp, vectors),
    "cnn": (cnn, images),
    "tied transformer": (Transformer, tokens),
    "frozen and unused": (Partial, vectors),
}
OPTIONS = {
    "default": {},
    "no momentum": {"sign_momentum": 0.0},
    "decay": {"weight_decay": 0.05, "sign_weight_decay": 0.2, "lr": 3e-3},
    "two last layers, amsgrad": {"last_n_layers": 2, "amsgrad": True},
    "all sign": {"last_n_layers": 0},
    "all adamw": {"last_n_layers": 99, "weight_decay": 0.1},
    "maximize": {"maximize": True, "lr": 1e-5},
}


def start(name):
    build, batch = MODELS[name]
    torch.manual_seed(0)
    model = build()
    return model, copy.deepcopy(model), batch


def gradients_of(model, batch, generator):
    model.zero_grad()
    out = model(batch(generator))
    target = torch.randn(out.shape, generator=generator)
    (out - target).square().mean().backward()


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("name", MODELS)
def test_float32_trajectory(name, options):
    """200 steps on the same gradients: parameters within rounding, moments too."""
    ours, theirs, batch = start(name)
    # The published package does not hold frozen parameters.
    one = STAC(ours, hold_frozen=False, **OPTIONS[options])
    other = PUBLISHED(theirs, **OPTIONS[options])
    assert one.partition.sign_parameter_names == other.partition.sign_parameter_names
    assert one.partition.adamw_layer_names == other.partition.adamw_layer_names
    generator = torch.Generator().manual_seed(1)
    for _ in range(STEPS):
        gradients_of(theirs, batch, generator)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        one.step()
        other.step()
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
        moments = other.state.get(q, {})
        for key, value in moments.items():
            key = {"sign_momentum_buffer": "exp_avg"}.get(key, key)
            torch.testing.assert_close(
                one.state[p][key].float(), value.float(), rtol=1e-5, atol=1e-7
            )


@pytest.mark.parametrize("name", MODELS)
def test_bfloat16_state_agrees_in_most_elements(name):
    """There the moment is computed in bfloat16; here in float32, and rounded once."""
    ours, theirs, batch = start(name)
    options = {"sign_state_dtype": torch.bfloat16}
    one, other = STAC(ours, hold_frozen=False, **options), PUBLISHED(theirs, **options)
    generator = torch.Generator().manual_seed(1)
    agreeing = entries = 0
    for _ in range(STEPS):
        gradients_of(theirs, batch, generator)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = None if q.grad is None else q.grad.clone()
        before = [
            (p.detach().clone(), q.detach().clone())
            for p, q in zip(
                one.partition.sign_parameters, other.partition.sign_parameters, strict=True
            )
        ]
        one.step()
        other.step()
        for (p0, q0), p, q in zip(
            before, one.partition.sign_parameters, other.partition.sign_parameters, strict=True
        ):
            if p.grad is not None:
                agreeing += ((p - p0).sign() == (q - q0).sign()).sum().item()
                entries += p.numel()
    assert agreeing / entries >= 0.95


@pytest.mark.parametrize("count", [0, 1, 2, 5])
@pytest.mark.parametrize("name", MODELS)
def test_partitions_are_the_published_ones(name, count):
    model, _, _ = start(name)
    ours = partition_trainable_layers(model, last_n_layers=count)
    theirs = published_partition(model, last_n_layers=count)
    for section in ("sign", "adamw"):
        found = [
            (layer.name, name)
            for layer in getattr(ours, f"{section}_layers")
            for name, parameter in zip(layer.parameter_names, layer.parameters, strict=True)
            if parameter.requires_grad
        ]
        names = dict.fromkeys(layer for layer, _ in found)
        assert tuple(names) == getattr(theirs, f"{section}_layer_names")
        assert tuple(name for _, name in found) == getattr(theirs, f"{section}_parameter_names")


@pytest.mark.parametrize("options", ["default", "decay", "all sign", "all adamw"])
@pytest.mark.parametrize("dtype", [None, torch.bfloat16])
def test_published_state_dicts_load_and_go_on(options, dtype):
    ours, theirs, batch = start("mlp")
    settings = {**OPTIONS[options], "sign_state_dtype": dtype}
    other = PUBLISHED(theirs, **settings)
    schedule = torch.optim.lr_scheduler.StepLR(other, 20, 0.5)
    generator = torch.Generator().manual_seed(1)
    for _ in range(50):
        gradients_of(theirs, batch, generator)
        other.step()
        schedule.step()
    ours.load_state_dict(theirs.state_dict())
    one = STAC(ours, lr=1.0)
    if len(one.param_groups) != len(other.param_groups):
        one = STAC(ours, **{**settings, "lr": 1.0})
    one.load_state_dict(copy.deepcopy(other.state_dict()))
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        for key, value in other.state.get(q, {}).items():
            key = {"sign_momentum_buffer": "exp_avg"}.get(key, key)
            torch.testing.assert_close(one.state[p][key], value, rtol=0, atol=0)
    for _ in range(5):
        gradients_of(theirs, batch, generator)
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = q.grad.clone()
        one.step()
        other.step()
        if dtype is None:
            for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
                torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)


def test_both_skip_and_count_alike():
    ours, theirs, batch = start("mlp")
    one, other = STAC(ours), PUBLISHED(theirs)
    generator = torch.Generator().manual_seed(1)
    for step in range(6):
        gradients_of(theirs, batch, generator)
        if step % 2:
            next(theirs.parameters()).grad[0, 0] = math.nan
        for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
            p.grad = q.grad.clone()
        one.step()
        other.step()
    assert one.nonfinite_skipped_steps == other.nonfinite_skipped_steps == 3
    for p, q in zip(ours.parameters(), theirs.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-6, atol=1e-6)
