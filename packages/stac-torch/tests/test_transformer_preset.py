"""partition="transformer", and the warning about partitions that leave the head to sign."""

import re
import warnings

import pytest
import torch
from stac_torch import STAC, param_groups, partition_trainable_layers
from torch import nn


class Block(nn.Module):
    """What the layers of real models hold, under their names there."""

    def __init__(self):
        super().__init__()
        self.attn = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm((2, 8))
        self.gate = nn.Linear(8, 4)
        self.gate_proj = nn.Linear(8, 8, bias=False)
        self.conv1d = nn.Conv1d(8, 8, 4, groups=8)
        self.conv = nn.Conv1d(8, 8, 4)
        self.experts_up = nn.Parameter(torch.ones(4, 8, 8))
        self.experts_up_bias = nn.Parameter(torch.ones(4, 8))
        self.A_log = nn.Parameter(torch.ones(8, 4))
        self.D = nn.Parameter(torch.ones(8))
        self.gamma = nn.Parameter(torch.ones(1, 1, 8))


class Model(nn.Module):
    """A model whose head is registered first."""

    def __init__(self, head="lm_head"):
        super().__init__()
        self.add_module(head, nn.Linear(8, 11, bias=False))
        self.wte = nn.Embedding(11, 8)
        self.cls_token = nn.Parameter(torch.ones(1, 1, 8))
        self.pos_embed = nn.Parameter(torch.ones(2, 5, 8))
        self.patch_embed = nn.Conv2d(3, 8, 4)
        self.block = Block()


BY_SIGN = (
    "block.experts_up",
    "block.attn.in_proj_weight",
    "block.attn.out_proj.weight",
    "block.gate_proj.weight",
    "block.conv.weight",
)


def test_each_parameter_goes_where_it_belongs():
    model = Model()
    partition = STAC(model, partition="transformer").partition
    assert partition.sign_parameter_names == BY_SIGN
    names = {name for name, _ in model.named_parameters()}
    assert set(partition.adamw_parameter_names) == names - set(BY_SIGN)
    # A layer may stand in both sections.
    assert "block.attn" in partition.sign_layer_names
    assert "block.attn" in partition.adamw_layer_names
    found = partition_trainable_layers(model, partition="transformer")
    assert found.sign_parameter_names == BY_SIGN
    assert [g["role"] for g in param_groups(model, partition="transformer")] == ["sign", "adamw"]


def test_selectors_come_first():
    model = Model()
    options = {"adamw_modules": ["block.attn"], "sign_modules": ["wte", "block.gate"]}
    partition = partition_trainable_layers(model, partition="transformer", **options)
    assert set(partition.sign_parameter_names) == {
        *(name for name in BY_SIGN if "attn" not in name),
        "wte.weight",
        "block.gate.weight",
        "block.gate.bias",
    }


def test_without_a_name_for_it_the_head_is_the_last_matrix():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2), nn.LayerNorm(2))
    partition = STAC(model, partition="transformer").partition
    assert partition.sign_parameter_names == ("0.weight",)


class Tied(nn.Module):
    """An embedding that is the head, named as transformers names it."""

    def __init__(self, tied=True):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.out = nn.Linear(4, 7, bias=False)
        self.last = nn.Linear(4, 4)
        if tied:
            self.out.weight = self.embed.weight

    def get_output_embeddings(self):
        return self.out


def test_the_output_embedding_is_the_head():
    for owner in ("first", "last"):
        options = {"shared_owner": owner, "partition": "transformer"}
        partition = STAC(Tied(), **options).partition
        assert partition.sign_parameter_names == ("body.0.weight", "last.weight")
    untied = partition_trainable_layers(Tied(tied=False), partition="transformer")
    assert untied.sign_parameter_names == ("body.0.weight", "last.weight")


def test_it_trains():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Embedding(9, 8), nn.Linear(8, 8), nn.Tanh(), nn.Linear(8, 9))
    optimizer = STAC(model, lr=0.01, partition="transformer", weight_decay=0.01)
    tokens = torch.arange(9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 5
    again = STAC(model, partition="transformer")
    again.load_state_dict(optimizer.state_dict())
    assert again.partition == optimizer.partition


REMEDY = (
    "partition='transformer' puts head, embeddings and norms on AdamW, shared_owner='last' a tied "
    "head, and adamw_modules=[...] what it names; last_n_layers=0 trains all by sign without this "
    "warning"
)


def norm_last():
    return nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), nn.LayerNorm(4))


WARNED = [
    (norm_last, {}, "the AdamW section holds no trainable matrix, only ['2']: "),
    (Tied, {}, "the output embedding 'embed.weight' is trained by sign: "),
    (lambda: Tied(tied=False), {}, "the output embedding 'out.weight' is trained by sign: "),
    (
        lambda: nn.Sequential(nn.Linear(2, 2), *(nn.LayerNorm(2) for _ in range(5))),
        {"last_n_layers": 5},
        "the AdamW section holds no trainable matrix, only ['1', '2', '3'] and 2 more: ",
    ),
]
SILENT = [
    (norm_last, {"last_n_layers": 0}),
    (norm_last, {"last_n_layers": 2}),
    (norm_last, {"sign_modules": ["1"]}),
    (norm_last, {"partition": "transformer"}),
    (Tied, {"shared_owner": "last", "adamw_modules": ["out"]}),
    (Tied, {"last_n_layers": 9}),
    (lambda: nn.Sequential(nn.LayerNorm(4), nn.LayerNorm(4)), {}),
]


@pytest.mark.parametrize(("build", "options", "message"), WARNED)
@pytest.mark.parametrize("use", [STAC, param_groups])
def test_warned_once(use, build, options, message):
    with pytest.warns(UserWarning, match=f"^{re.escape(message + REMEDY)}$") as caught:
        use(build(), **options)
    (warning,) = caught
    assert warning.filename == __file__


@pytest.mark.parametrize(("build", "options"), SILENT)
def test_not_warned(build, options):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        STAC(build(), **options)


def test_both_findings_are_one_warning():
    model = Tied()
    del model.last
    expected = (
        "the AdamW section holds no trainable matrix, only ['body.1'], and the output embedding "
        "'embed.weight' is trained by sign: "
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(expected)}"):
        STAC(model)


class LoRA(nn.Linear):
    """An adapter of a frozen matrix, its parts named as PEFT names them."""

    def __init__(self, rows, columns):
        super().__init__(columns, rows, bias=False)
        self.weight.requires_grad_(False)
        self.lora_A = nn.ModuleDict({"default": nn.Linear(columns, 2, bias=False)})
        self.lora_B = nn.ModuleDict({"default": nn.Linear(2, rows, bias=False)})
        nn.init.zeros_(self.lora_B["default"].weight)

    def forward(self, x):
        return super().forward(x) + self.lora_B["default"](self.lora_A["default"](x))


def adapted(head_trains):
    torch.manual_seed(0)
    body = nn.Sequential(
        nn.Embedding(9, 8).requires_grad_(False), LoRA(8, 8), nn.Tanh(), LoRA(8, 8)
    )
    return nn.Sequential(body, nn.Linear(8, 9).requires_grad_(head_trains))


def test_adapters():
    """By default all of them train by sign, and where the head is frozen nothing by AdamW."""
    with pytest.warns(UserWarning, match=r"no trainable matrix, only \['1'\]"):
        STAC(adapted(head_trains=False))
    adapters = {f"0.{i}.lora_{x}.default.weight" for i in (1, 3) for x in "AB"}
    for options, by_adamw in (
        ({"adamw_modules": ["*.lora_B"]}, {n for n in adapters if "lora_B" in n}),
        (
            {"partition": "transformer", "adamw_modules": ["*.lora_B"]},
            {n for n in adapters if "lora_B" in n},
        ),
        ({"last_n_layers": 0}, set()),
    ):
        optimizer = STAC(adapted(head_trains=False), hold_frozen=False, **options)
        assert set(optimizer.partition.adamw_parameter_names) == by_adamw
        assert set(optimizer.partition.sign_parameter_names) == adapters - by_adamw
    model = adapted(head_trains=True)
    optimizer = STAC(model, lr=0.01, hold_frozen=False)
    assert optimizer.partition.adamw_parameter_names == ("1.weight", "1.bias")
    tokens = torch.arange(9)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(tokens), tokens.roll(1))
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] / 2
