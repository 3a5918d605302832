"""Which layer goes where."""

import re

import pytest
import torch
from stac_torch import STAC, LayerGroup, STACPartition, param_groups, partition_trainable_layers
from torch import nn


def mlp():
    return nn.Sequential(
        nn.Linear(4, 3), nn.LayerNorm(3), nn.ReLU(), nn.Linear(3, 3), nn.Linear(3, 2)
    )


class Tied(nn.Module):
    """An embedding whose weight is also the head's."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(7, 4)
        self.body = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4))
        self.head = nn.Linear(4, 7, bias=False)
        self.head.weight = self.embed.weight
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, tokens):
        return self.head(self.body(self.embed(tokens))) * self.scale


CASES = [
    ({}, ("0", "1", "3"), ("4",)),
    ({"last_n_layers": 0}, ("0", "1", "3", "4"), ()),
    ({"last_n_layers": 2}, ("0", "1"), ("3", "4")),
    ({"last_n_layers": 99}, (), ("0", "1", "3", "4")),
    ({"last_n_ratio": 0.5}, ("0", "1"), ("3", "4")),
    ({"last_n_ratio": 0.1}, ("0", "1", "3"), ("4",)),
    ({"last_n_ratio": 1.0}, (), ("0", "1", "3", "4")),
    ({"adamw_modules": ["0"]}, ("1", "3"), ("0", "4")),
    ({"adamw_modules": [nn.LayerNorm]}, ("0", "3"), ("1", "4")),
    ({"adamw_modules": ["[01]"]}, ("3",), ("0", "1", "4")),
    ({"sign_modules": ["4"]}, ("0", "1", "3", "4"), ()),
    ({"sign_modules": [nn.Linear], "last_n_layers": 4}, ("0", "3", "4"), ("1",)),
    ({"norms_on_adamw": True}, ("0", "3"), ("1", "4")),
    ({"norms_on_adamw": True, "sign_modules": ["1"]}, ("0", "1", "3"), ("4",)),
]


@pytest.mark.parametrize(("options", "sign", "adamw"), CASES)
def test_sections(options, sign, adamw):
    model = mlp()
    partition = partition_trainable_layers(model, **options)
    assert partition.sign_layer_names == sign
    assert partition.adamw_layer_names == adamw
    live = STAC(model, **options).partition
    assert (live.sign_layer_names, live.adamw_layer_names) == (sign, adamw)


def test_parameters_follow_their_layers():
    model = mlp()
    partition = partition_trainable_layers(model)
    assert isinstance(partition, STACPartition)
    assert partition.adamw_layers == (
        LayerGroup("4", ("4.weight", "4.bias"), (model[4].weight, model[4].bias)),
    )
    assert partition.sign_parameter_names[:3] == ("0.weight", "0.bias", "1.weight")
    assert partition.sign_parameters[2] is model[1].weight
    assert partition.adamw_parameter_names == ("4.weight", "4.bias")
    assert partition.adamw_parameters[0] is model[4].weight


def test_root_and_shared_parameters():
    model = Tied()
    first = partition_trainable_layers(model)
    assert first.sign_layer_names == ("<root>", "embed", "body.0")
    assert first.adamw_layer_names == ("body.1",)
    last = partition_trainable_layers(model, shared_owner="last")
    assert last.sign_layer_names == ("<root>", "body.0", "body.1")
    assert last.adamw_parameter_names == ("head.weight",)
    assert last.adamw_parameters[0] is model.embed.weight


def test_a_module_registered_twice_has_its_last_name_too():
    model = nn.Module()
    model.one = nn.Linear(2, 2)
    model.two = nn.Linear(2, 2)
    model.three = model.one
    assert partition_trainable_layers(model).adamw_layer_names == ("two",)
    assert partition_trainable_layers(model, shared_owner="last").adamw_layer_names == ("three",)


def test_freezing_moves_no_layer():
    """A head that is frozen when the optimizer is built would train by sign once unfrozen."""
    model = mlp()
    model[4].requires_grad_(False)
    assert partition_trainable_layers(model).adamw_layer_names == ("4",)


def test_selectors_reach_into_containers():
    model = Tied()
    partition = partition_trainable_layers(model, adamw_modules=["body"])
    assert partition.adamw_layer_names == ("body.0", "body.1")
    partition = partition_trainable_layers(model, adamw_modules=[nn.Sequential])
    assert partition.adamw_layer_names == ("body.0", "body.1")


def test_names_tell_the_layers():
    model = mlp()
    by_name = STAC(model.named_parameters(), last_n_layers=2).partition
    assert by_name == STAC(model, last_n_layers=2).partition


@pytest.mark.parametrize(
    "prefix", ["_orig_mod.", "module.", "_fsdp_wrapped_module.", "module._orig_mod."]
)
def test_names_of_wrappers_are_stripped(prefix):
    model = mlp()
    named = [(prefix + name, p) for name, p in model.named_parameters()]
    assert STAC(named).partition == STAC(model).partition


# Torch 2.10 says so of itself when dynamo is imported.
@pytest.mark.parametrize(
    "wrap",
    [
        torch.compile,
        nn.DataParallel,
        lambda m: torch.compile(nn.DataParallel(m)),
        lambda m: nn.DataParallel(torch.compile(m)),
    ],
    ids=["compiled", "parallel", "compiled parallel", "parallel compiled"],
)
def test_wrapped_models_are_looked_through(wrap):
    model = mlp()
    assert STAC(wrap(model)).partition == STAC(model).partition


def test_partition_lives_in_the_groups():
    """FSDP and Module.to may replace the parameters that the groups hold."""
    model = mlp()
    optimizer = STAC(model)
    replaced = nn.Parameter(torch.zeros(3, 4))
    optimizer.param_groups[0]["params"][0] = replaced
    assert optimizer.partition.sign_parameters[0] is replaced
    assert optimizer.partition.sign_layer_names == ("0", "1", "3")


def test_layers_keep_their_order_when_decay_splits_the_groups():
    optimizer = STAC(mlp(), weight_decay=0.1, exclude_bias_and_norm_from_weight_decay=True)
    assert optimizer.partition.sign_layer_names == ("0", "1", "3")
    found = [(g["role"], g["weight_decay"], len(g["params"])) for g in optimizer.param_groups]
    assert found == [("sign", 0.1, 2), ("sign", 0.0, 4), ("adamw", 0.1, 1), ("adamw", 0.0, 1)]


def test_no_group_is_empty():
    model = nn.Linear(2, 2)
    assert [g["role"] for g in param_groups(model)] == ["adamw"]
    assert [g["role"] for g in param_groups(model, last_n_layers=0)] == ["sign"]


def test_param_groups_can_be_named():
    model = mlp()
    optimizer = STAC(param_groups(model, named=True))
    assert optimizer.partition.sign_parameter_names[0] == "0.weight"
    assert optimizer.partition == STAC(model).partition
    unnamed = STAC(param_groups(model)).partition
    assert unnamed.sign_layer_names == ("<group 0>",)
    assert unnamed.sign_parameter_names[1] == "<group 0>.1"


REFUSED = [
    (
        {"last_n_layers": -1},
        ValueError,
        "last_n_layers must be >= 0, got -1: 0 trains every layer by sign",
    ),
    ({"last_n_layers": 1.0}, TypeError, "last_n_layers must be an integer, got 1.0 (float)"),
    ({"last_n_layers": True}, TypeError, "last_n_layers must be an integer, got True (bool)"),
    (
        {"last_n_ratio": 0.0},
        ValueError,
        "last_n_ratio must be in (0, 1], got 0.0: last_n_layers=0 is all sign",
    ),
    (
        {"last_n_layers": 1, "last_n_ratio": 0.5},
        ValueError,
        "give last_n_layers=1 or last_n_ratio=0.5, not both",
    ),
    (
        {"adamw_modules": ["head"]},
        ValueError,
        "adamw_modules: 'head' matches no trainable layer; the layers are ['0', '1', '3', '4']",
    ),
    (
        {"adamw_modules": "0"},
        TypeError,
        "adamw_modules must be a sequence, got the string '0': write ['0']",
    ),
    (
        {"sign_modules": [3]},
        TypeError,
        "sign_modules: 3 is neither a name nor a torch.nn.Module class",
    ),
    (
        {"adamw_modules": ["0"], "sign_modules": [nn.Linear]},
        ValueError,
        "adamw_modules and sign_modules both claim ['0']: take each layer out of one of them",
    ),
    ({"shared_owner": "any"}, ValueError, "shared_owner must be 'first' or 'last', got 'any'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
def test_refused(options, error, message):
    for build in (partition_trainable_layers, param_groups, STAC):
        with pytest.raises(error, match=f"^{re.escape(message)}$"):
            build(mlp(), **options)


NEED_MODULES = [
    ({"adamw_modules": [nn.LayerNorm]}, "adamw_modules=LayerNorm needs the modules"),
    ({"norms_on_adamw": True}, "norms_on_adamw=True needs the modules"),
    ({"shared_owner": "last"}, "shared_owner='last' needs the modules"),
]


@pytest.mark.parametrize(("options", "message"), NEED_MODULES)
def test_names_alone_do_not_suffice(options, message):
    with pytest.raises(ValueError, match=message):
        STAC(mlp().named_parameters(), **options)


def test_nothing_to_train():
    message = "STAC needs at least one trainable parameter, the model has none: check requires_grad"
    with pytest.raises(ValueError, match=message):
        STAC(mlp().requires_grad_(False))


def test_not_a_model():
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, got list"):
        partition_trainable_layers([])


def test_groups_that_others_replaced_have_made_up_names():
    optimizer = STAC(mlp())
    optimizer.param_groups[0]["params"] = optimizer.param_groups[0]["params"][:2]
    assert optimizer.partition.sign_parameter_names == ("<group 0>.0", "<group 0>.1")
    assert optimizer.partition.adamw_parameter_names == ("4.weight", "4.bias")
