"""Parameters that are frozen when the optimizer is built."""

import copy
import gc
import pickle
import re
import weakref

import pytest
import torch
from stac_torch import STAC, param_groups
from torch import nn


def mlp():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 3), nn.LayerNorm(3), nn.Linear(3, 3), nn.Linear(3, 2))


def trunk_frozen():
    model = mlp()
    model[:3].requires_grad_(False)
    return model


def step(model, optimizer):
    optimizer.zero_grad()
    model(torch.ones(2, 4)).square().sum().backward()
    optimizer.step()


@pytest.mark.parametrize("named", [False, True])
def test_they_train_once_unfrozen(named):
    model = trunk_frozen()
    optimizer = STAC(model.named_parameters() if named else model, lr=0.01)
    assert optimizer.partition.sign_layer_names == ("0", "1", "2")
    assert optimizer.partition.adamw_layer_names == ("3",)
    before = model[0].weight.clone()
    step(model, optimizer)
    assert torch.equal(model[0].weight, before)
    assert set(optimizer.state) == {model[3].weight, model[3].bias}
    model.requires_grad_(True)
    step(model, optimizer)
    moved = (model[0].weight - before).detach().abs()
    torch.testing.assert_close(moved[moved > 0], torch.full_like(moved[moved > 0], 0.0075))
    assert moved.max() > 0
    assert len(optimizer.state) == 8


def test_a_frozen_head_stays_on_adamw():
    model = mlp()
    model[3].requires_grad_(False)
    with pytest.warns(UserWarning, match="no trainable matrix"):
        optimizer = STAC(model)
    assert optimizer.partition.adamw_layer_names == ("3",)


def test_frozen_parameters_cost_no_state():
    optimizer = STAC(trunk_frozen())
    assert optimizer.describe().splitlines() == [
        "layer  role   form  parameters  state bytes",
        "0      sign                 15            0",
        "1      sign                  6            0",
        "2      sign                 12            0",
        "3      adamw  loop           8           72",
        "total                       41           72",
        "adamw, loop: torch's fused AdamW rounds otherwise than its loop",
    ]


def test_what_can_never_train_is_left_out():
    """Packed weights of quantized layers are integer parameters."""
    model = mlp()
    model[0].packed = nn.Parameter(torch.zeros(9, dtype=torch.uint8), requires_grad=False)
    assert "0.packed" not in STAC(model).partition.sign_parameter_names


def test_a_frozen_complex_parameter_does_not_forbid_a_narrow_state():
    model = mlp()
    table = nn.Parameter(torch.ones(4, dtype=torch.complex64), requires_grad=False)
    model[0].register_parameter("rotary", table)
    optimizer = STAC(model, sign_state_dtype="bf16")
    step(model, optimizer)
    table.requires_grad_(True).grad = torch.ones_like(table)
    with pytest.raises(ValueError, match="cannot hold the moment of a complex parameter"):
        optimizer.step()


ADDED = [
    {},
    {"role": "sign"},
    {"role": "adamw"},
]


@pytest.mark.parametrize("hold_frozen", [True, False])
@pytest.mark.parametrize("options", ADDED)
def test_they_can_be_added_without_names(options, hold_frozen):
    model = trunk_frozen()
    optimizer = STAC(model, lr=0.1, sign_weight_decay=0.3, hold_frozen=hold_frozen)
    model.requires_grad_(True)
    optimizer.add_param_group({"params": model[:3].parameters(), "lr": 0.01, **options})
    group = optimizer.param_groups[-1]
    assert group["role"] == options.get("role", "sign")
    assert group["param_names"] == [
        "0.weight",
        "0.bias",
        "1.weight",
        "1.bias",
        "2.weight",
        "2.bias",
    ]
    assert group["weight_decay"] == (0.3 if group["role"] == "sign" else 0.0)
    held = [p for g in optimizer.param_groups for p in g["params"]]
    assert len(held) == len({id(p) for p in held}) == 8
    step(model, optimizer)
    assert len(optimizer.state) == 8


def test_only_what_is_unused_moves():
    model = trunk_frozen()
    optimizer = STAC(model)
    model.requires_grad_(True)
    step(model, optimizer)
    before = [list(group["params"]) for group in optimizer.param_groups]
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": model[:3].parameters(), "role": "sign"})
    optimizer.state.pop(model[0].weight)
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group({"params": model[0].parameters(), "role": "sign"})
    assert [list(map(id, g["params"])) for g in optimizer.param_groups] == [
        list(map(id, params)) for params in before
    ]
    assert optimizer.partition.sign_layer_names == ("0", "1", "2")


def test_two_sections_at_once_need_a_role():
    model = mlp()
    model[2:].requires_grad_(False)
    model[0].requires_grad_(True)
    with pytest.warns(UserWarning, match="no trainable matrix"):
        optimizer = STAC(model, hold_frozen=False)
    message = (
        "these parameters belong to both sections, '2.bias' to sign and '3.bias' to adamw: add a "
        "group for each, or one with a 'role'"
    )
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        optimizer.add_param_group({"params": model[2:].parameters()})
    assert len(optimizer.param_groups) == 1


def test_left_out_they_are_in_no_group():
    model = trunk_frozen()
    groups = param_groups(model, hold_frozen=False)
    assert [(g["role"], len(g["params"])) for g in groups] == [("adamw", 2)]
    assert [len(g["params"]) for g in param_groups(model)] == [6, 2]


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda x: pickle.loads(pickle.dumps(x))])
def test_copies_know_them(copied):
    model, optimizer = copied((lambda m: (m, STAC(m, hold_frozen=False)))(trunk_frozen()))
    optimizer.add_param_group({"params": model[0].parameters()})
    assert optimizer.partition.sign_layer_names == ("0",)


def test_replaced_parameters_are_let_go():
    model = trunk_frozen()
    optimizer = STAC(model)
    old = weakref.ref(model[0].weight)
    model[0].weight = nn.Parameter(torch.zeros(3, 4), requires_grad=False)
    optimizer.param_groups[0]["params"][0] = model[0].weight
    gc.collect()
    assert old() is None


def test_states_from_before_they_were_held_load():
    model = mlp()
    model[1].requires_grad_(False)
    old = STAC(model, lr=0.5, hold_frozen=False)
    step(model, old)
    optimizer = STAC(model)
    saved = copy.deepcopy(old.state_dict())
    optimizer.load_state_dict(saved)
    assert [len(g["params"]) for g in optimizer.param_groups] == [6, 2]
    assert optimizer.param_groups[0]["lr"] == 0.5
    for p in model.parameters():
        kept = optimizer.state.get(p, {})
        torch.testing.assert_close(dict(kept), dict(old.state.get(p, {})), rtol=0, atol=0)
    # Which of the two groups is missing is told by names.
    model = trunk_frozen()
    head = STAC(model, lr=0.5, hold_frozen=False)
    step(model, head)
    optimizer = STAC(model)
    optimizer.load_state_dict(head.state_dict())
    assert [g["lr"] for g in optimizer.param_groups] == [1e-3, 0.5]
    assert set(optimizer.state) == {model[3].weight, model[3].bias}


def test_states_that_lack_more_are_refused():
    model = mlp()
    old = STAC([(n, p) for n, p in model.named_parameters() if not n.startswith("1")])
    message = "group 0 has 4 parameters saved, 6 here"
    with pytest.raises(ValueError, match=message):
        STAC(model).load_state_dict(old.state_dict())


@pytest.mark.parametrize("hold_frozen", [True, False])
def test_loading_says_where_frozen_parameters_are_the_difference(hold_frozen):
    model = mlp()
    model[1].requires_grad_(False)
    old = STAC(model, hold_frozen=not hold_frozen)
    step(model, old)
    saved = old.state_dict()
    # With names the ones that were left out are found.
    for group in saved["param_groups"]:
        group.pop("param_names", None)
    saved.pop("param_names", None)
    message = {
        True: (
            "group 0 has 4 parameters saved, 6 here, 2 of them frozen, which the saved one left "
            "out: build the optimizer with hold_frozen=False"
        ),
        False: (
            "group 0 has 6 parameters saved, 4 here. 2 of those saved have no state, as frozen "
            "parameters have none: build the optimizer without hold_frozen=False"
        ),
    }[hold_frozen]
    with pytest.raises(ValueError, match=f"{re.escape(message)}$"):
        STAC(model, hold_frozen=hold_frozen).load_state_dict(saved)
    STAC(model, hold_frozen=not hold_frozen).load_state_dict(saved)


@pytest.mark.parametrize("hold_frozen", [True, False])
def test_another_difference_is_not_put_on_frozen_parameters(hold_frozen):
    model = mlp()
    model[1].requires_grad_(False)
    saved = STAC(model.named_parameters(), hold_frozen=not hold_frozen).state_dict()
    group = saved["param_groups"][0]
    del group["params"][0], group["param_names"][0]
    size, own = len(group["params"]), 6 if hold_frozen else 4
    with pytest.raises(ValueError, match=f"group 0 has {size} parameters saved, {own} here$"):
        STAC(model, hold_frozen=hold_frozen).load_state_dict(saved)
