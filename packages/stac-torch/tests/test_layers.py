"""What counts as one layer: parametrizations, shared modules, containers, two models."""

import re

import pytest
import torch
from stac_torch import STAC, partition_trainable_layers
from torch import nn
from torch.nn.utils import parametrizations, parametrize


class LowRank(nn.Module):
    """A parametrization with parameters of its own."""

    def __init__(self, rows, columns):
        super().__init__()
        self.down = nn.Parameter(torch.zeros(1, columns))
        self.up = nn.Parameter(torch.ones(rows, 1))

    def forward(self, weight):
        return weight + self.up @ self.down


def custom(module):
    rows, columns = module.weight.shape
    return parametrize.register_parametrization(module, "weight", LowRank(rows, columns))


MAKERS = {
    "weight_norm": parametrizations.weight_norm,
    "spectral_norm": parametrizations.spectral_norm,
    "orthogonal": parametrizations.orthogonal,
    "custom": custom,
    "twice": lambda m: custom(parametrizations.weight_norm(m)),
    "both": lambda m: parametrize.register_parametrization(m, "bias", nn.Softplus(), unsafe=True),
}


@pytest.mark.parametrize("maker", MAKERS)
@pytest.mark.parametrize("named", [False, True])
def test_a_parametrized_layer_is_one_layer(maker, named):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4), MAKERS[maker](nn.Linear(4, 4)))
    if not named:
        partition = partition_trainable_layers(model)
        assert partition.sign_layer_names == ("0", "1")
        assert partition.adamw_layer_names == ("2",)
    optimizer = STAC(model.named_parameters() if named else model, last_n_layers=2)
    assert optimizer.partition.sign_layer_names == ("0",)
    assert optimizer.partition.adamw_layer_names == ("1", "2")
    mine = {name for name, _ in model.named_parameters() if name.startswith("2.")}
    assert set(optimizer.partition.adamw_parameter_names) == mine | {"1.weight", "1.bias"}
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()
    assert len(optimizer.state) == len(list(model.parameters()))


def test_selectors_see_the_parametrized_module():
    model = nn.Sequential(nn.Linear(4, 4), nn.LayerNorm(4), nn.Linear(4, 2))
    parametrizations.weight_norm(model[0])
    parametrize.register_parametrization(model[1], "weight", nn.Softplus(), unsafe=True)
    found = partition_trainable_layers(model, norms_on_adamw=True)
    assert found.sign_layer_names == ("0",)
    assert partition_trainable_layers(model, adamw_modules=[nn.Linear]).sign_layer_names == ("1",)


def test_a_parametrized_root():
    model = parametrizations.weight_norm(nn.Linear(3, 3))
    partition = partition_trainable_layers(model)
    assert partition.adamw_layer_names == ("<root>",)
    assert len(partition.adamw_parameters) == 3
    assert STAC(model.named_parameters()).partition.adamw_layer_names == ("<root>",)


class Shared(nn.Module):
    """One block used twice, a shared matrix, containers of parameters, and some at the root."""

    def __init__(self):
        super().__init__()
        block = nn.Linear(3, 3)
        self.scale = nn.Parameter(torch.ones(3))
        self.blocks = nn.ModuleList([block, block])
        self.list = nn.ParameterList([torch.ones(3, 3), torch.ones(3, 3)])
        self.dict = nn.ParameterDict({"a": torch.ones(3, 3), "b": torch.ones(3)})
        self.tied = nn.Linear(3, 3)
        self.tied.weight = block.weight
        self.head = nn.Linear(3, 2)


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_shared_modules_and_containers(device):
    # Moving a model to the meta device would untie its weights.
    with torch.device(device):
        model = Shared()
    partition = STAC(model).partition
    assert partition.sign_layer_names == ("<root>", "blocks.0", "list", "dict", "tied")
    assert partition.sign_parameter_names == (
        "scale",
        "blocks.0.weight",
        "blocks.0.bias",
        "list.0",
        "list.1",
        "dict.a",
        "dict.b",
        "tied.bias",
    )
    assert partition.adamw_layer_names == ("head",)
    last = partition_trainable_layers(model, shared_owner="last")
    assert last.sign_layer_names == ("<root>", "blocks.1", "list", "dict", "tied")
    assert last.adamw_layer_names == ("head",)
    assert last.sign_parameter_names[1:2] + last.sign_parameter_names[-2:] == (
        "blocks.1.bias",
        "tied.weight",
        "tied.bias",
    )
    assert [line.split()[0] for line in STAC(model).describe().splitlines()].count("total") == 1


def gan():
    generator = nn.Sequential(nn.Linear(2, 3), nn.Linear(3, 4), nn.Linear(4, 5))
    return generator, nn.Sequential(nn.Linear(5, 3), nn.Linear(3, 1))


def test_two_models_keep_their_layers_apart():
    generator, critic = gan()
    both = nn.ModuleDict({"generator": generator, "critic": critic})
    assert STAC(both).partition.adamw_layer_names == ("critic.1",)
    by_head = STAC(both, adamw_modules=["generator.2", "critic.1"]).partition
    assert by_head.adamw_layer_names == ("generator.2", "critic.1")
    one = [*generator.named_parameters(prefix="g"), *critic.named_parameters(prefix="d")]
    assert STAC(one).partition.sign_layer_names == ("g.0", "g.1", "g.2", "d.0")
    alike = [*generator.named_parameters(), *critic.named_parameters()]
    message = (
        "two parameters are called '0.weight', so their layers cannot be told apart: give each "
        "model a prefix of its own, model.named_parameters(prefix='generator')"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        STAC(alike)
