"""partition="transformer" on models whose names say less than they seem to."""

import re
import warnings

import pytest
import torch
from stac_torch import STAC, param_groups, partition_trainable_layers
from torch import nn
from torch.nn.utils import parametrize


def module(**children):
    """Return a module with these children, of a class that lists nothing."""
    made = nn.Module()
    for name, child in children.items():
        setattr(made, name, child)
    return made


def linear(rows=4, columns=4):
    return nn.Linear(columns, rows, bias=False)


def many(*modules):
    return nn.ModuleList(modules)


def encoder():
    return nn.TransformerEncoder(nn.TransformerEncoderLayer(4, 2, 6, batch_first=True), 1)


def attention():
    heads = many(*(module(key=linear(2), query=linear(2), value=linear(2)) for _ in range(2)))
    return module(heads=heads, proj=linear())


def language_model():
    return module(wte=nn.Embedding(9, 4), blocks=many(attention()), lm_head=linear(9))


ATTENTION = {f"heads.{i}.{x}" for i in range(2) for x in ("key", "query", "value")} | {"proj"}
ENCODER = {
    "layers.0.self_attn.in_proj_weight",
    "layers.0.self_attn.out_proj.weight",
    "layers.0.linear1.weight",
    "layers.0.linear2.weight",
}


def under(prefix, names, suffix=".weight"):
    return {f"{prefix}.{name}{suffix}" for name in names}


# What is built, and which of its parameters train by sign.
MODELS = {
    "heads of an attention": (language_model, under("blocks.0", ATTENTION)),
    "heads of lone matrices": (
        lambda: module(attn=module(heads=many(linear(), linear())), head=linear(9)),
        {"attn.heads.0.weight", "attn.heads.1.weight"},
    ),
    "heads of tasks": (
        lambda: module(
            body=linear(),
            heads=nn.ModuleDict({"a": linear(2), "b": nn.Sequential(linear(), linear(3))}),
            last=linear(),
        ),
        {"body.weight", "heads.b.0.weight", "last.weight"},
    ),
    "a sequence of heads": (
        lambda: module(
            heads=nn.Sequential(linear(), nn.Sequential(nn.Tanh(), linear(9))), last=linear()
        ),
        {"heads.0.weight", "last.weight"},
    ),
    "a head of one matrix": (
        lambda: module(lm_head=module(norm=nn.LayerNorm(4), out=linear(9)), last=linear()),
        {"last.weight"},
    ),
    "an attention as head": (
        lambda: module(sa_head=module(key=linear(), value=linear()), lm_head=linear(9)),
        {"sa_head.key.weight", "sa_head.value.weight"},
    ),
    "an encoder as embedder": (
        lambda: module(embedder=encoder(), out=linear(9)),
        under("embedder", ENCODER, ""),
    ),
    "a model as classifier": (
        lambda: module(classifier=language_model()),
        under("classifier.blocks.0", ATTENTION),
    ),
    "an embedding of patches": (
        lambda: module(patch_embed=module(proj=nn.Conv2d(3, 4, 2)), a=linear(), head=linear()),
        {"a.weight"},
    ),
    "a gated MLP": (
        lambda: module(gate=linear(8), up=linear(8), down=linear(4, 8), head=linear(9)),
        {"gate.weight", "up.weight", "down.weight"},
    ),
    "gated experts": (
        lambda: module(
            gate=linear(2),
            experts=many(*(module(gate=linear(), up=linear(), down=linear()) for _ in range(2))),
            shared_expert_gate=linear(2),
            head=linear(9),
        ),
        {f"experts.{i}.{name}.weight" for i in range(2) for name in ("gate", "up", "down")},
    ),
    "a gate that counts the members": (
        lambda: module(
            gate=nn.Sequential(nn.Dropout(), linear(3)),
            members=many(linear(), linear(), linear()),
            head=linear(9),
        ),
        {f"members.{i}.weight" for i in range(3)},
    ),
    "a gate of another number": (
        lambda: module(gate=linear(), members=many(linear(), linear(), linear()), head=linear(9)),
        {"gate.weight"} | {f"members.{i}.weight" for i in range(3)},
    ),
    "a router with noise": (
        lambda: module(mlp=module(router=module(topk=linear(2), noise=linear(2)), up=linear())),
        set(),
    ),
    "a router that is a model": (
        lambda: module(router=encoder(), head=linear(9)),
        under("router", ENCODER, ""),
    ),
    "what is saved beside adapters": (
        lambda: module(
            classifier=module(
                original_module=linear(), modules_to_save=nn.ModuleDict({"default": linear()})
            ),
            mlp=module(gate=module(base_layer=linear(2)), experts=many(linear(), linear())),
        ),
        {"mlp.experts.0.weight", "mlp.experts.1.weight"},
    ),
}


@pytest.mark.parametrize("case", MODELS)
def test_a_name_speaks_of_the_module_that_has_it(case):
    build, by_sign = MODELS[case]
    model = build()
    found = partition_trainable_layers(model, partition="transformer")
    assert set(found.sign_parameter_names) == by_sign
    rest = {name for name, _ in model.named_parameters()} - by_sign
    assert set(found.adamw_parameter_names) == rest


class Times(nn.Module):
    """A parametrization with a matrix of its own."""

    def __init__(self, rows):
        super().__init__()
        self.left = nn.Parameter(torch.eye(rows))

    def forward(self, tensor):
        return (self.left @ tensor.flatten(1)).reshape(tensor.shape)


def parametrized_model():
    model = module(
        wte=nn.Embedding(9, 4),
        body=linear(),
        depthwise=nn.Conv1d(4, 4, 3, groups=4, bias=False),
        norm=nn.LayerNorm((2, 4)),
        out=linear(9),
    )
    model.register_parameter("gamma", nn.Parameter(torch.ones(2, 4)))
    return model


TENSORS = ("wte.weight", "body.weight", "depthwise.weight", "norm.weight", "out.weight", "gamma")


def test_a_parametrized_tensor_goes_where_the_tensor_goes():
    plain = partition_trainable_layers(parametrized_model(), partition="transformer")
    assert plain.sign_parameter_names == ("body.weight",)
    model = parametrized_model()
    for tensor in TENSORS:
        path, _, name = tensor.rpartition(".")
        owner = model.get_submodule(path)
        parametrize.register_parametrization(owner, name, Times(getattr(owner, name).shape[0]))
    found = partition_trainable_layers(model, partition="transformer")
    assert set(found.sign_parameter_names) == {
        "body.parametrizations.weight.original",
        "body.parametrizations.weight.0.left",
    }


def bigram():
    return nn.Sequential(nn.Embedding(9, 4), nn.LayerNorm(4), linear(9))


@pytest.mark.parametrize("use", [STAC, param_groups])
def test_a_preset_that_leaves_nothing_to_sign_is_warned_of(use):
    message = (
        "partition='transformer' leaves the sign section empty, AdamW trains all, ['0', '1', '2']: "
        "name in sign_modules=[...] what the sign update is to train; last_n_ratio=1.0 instead is "
        "AdamW without this warning"
    )
    with pytest.warns(UserWarning, match=f"^{re.escape(message)}$") as caught:
        use(bigram(), partition="transformer")
    (warning,) = caught
    assert warning.filename == __file__
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        use(bigram(), partition="transformer", sign_modules=["2"])
        use(bigram(), last_n_ratio=1.0)
