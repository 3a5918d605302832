"""Saving, loading, copying: dtypes kept, everything checked first."""

import copy
import io
import pickle
import re
from pathlib import Path

import pytest
import torch
from stac_torch import STAC, param_groups
from stac_torch._stac_options import FORMAT
from torch import nn

GOLDEN = Path(__file__).parent / "golden"


def model_of(seed=0):
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 64), nn.Linear(64, 3))


def train(model, optimizer, steps=3, seed=1):
    generator = torch.Generator().manual_seed(seed)
    for _ in range(steps):
        optimizer.zero_grad()
        x = torch.randn(4, 64, generator=generator)
        model(x.to(model[0].weight.dtype)).square().mean().backward()
        optimizer.step()


def through_a_file(state_dict):
    file = io.BytesIO()
    torch.save(state_dict, file)
    file.seek(0)
    return torch.load(file, weights_only=True)


def dtypes(optimizer):
    return [
        {key: value.dtype for key, value in optimizer.state[p].items()}
        for group in optimizer.param_groups
        for p in group["params"]
    ]


def state_bytes(optimizer):
    return sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())


OPTIONS = [
    ({}, torch.float32),
    ({"sign_state_dtype": "bf16"}, torch.float32),
    ({"sign_state_dtype": "float64"}, torch.float32),
    ({"sign_state_dtype": "int8"}, torch.float32),
    ({"sign_state_dtype": "float32", "adamw_state_dtype": "float32"}, torch.bfloat16),
    ({"sign_state_dtype": "int8", "adamw_state_dtype": "bf16"}, torch.float32),
    ({"amsgrad": True, "sign_momentum": 0.0}, torch.float32),
    ({"stochastic_rounding": True, "sign_state_dtype": "int8"}, torch.bfloat16),
]


@pytest.mark.parametrize(("options", "dtype"), OPTIONS)
def test_a_resumed_run_is_the_uninterrupted_one(options, dtype):
    model = model_of().to(dtype)
    optimizer = STAC(model, lr=0.01, **options)
    train(model, optimizer)
    saved = through_a_file(optimizer.state_dict())
    again = model_of(seed=7).to(dtype)
    again.load_state_dict(model.state_dict())
    resumed = STAC(again, lr=0.5, **options)
    resumed.load_state_dict(saved)
    assert dtypes(resumed) == dtypes(optimizer)
    assert state_bytes(resumed) == state_bytes(optimizer)
    assert [g["lr"] for g in resumed.param_groups] == [0.01, 0.01]
    train(model, optimizer, seed=2)
    train(again, resumed, seed=2)
    for p, q in zip(model.parameters(), again.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)


@pytest.mark.parametrize("way", ["deepcopy", "pickle"])
def test_copies_go_on_alike(way):
    model = model_of()
    optimizer = STAC(model, lr=0.01, sign_state_dtype="bf16")
    train(model, optimizer)
    pair = (model, optimizer)
    other, copied = copy.deepcopy(pair) if way == "deepcopy" else pickle.loads(pickle.dumps(pair))
    assert copied.partition.sign_layer_names == ("0", "1")
    train(model, optimizer, seed=2)
    train(other, copied, seed=2)
    torch.testing.assert_close(model[0].weight, other[0].weight, rtol=0, atol=0)
    copied.add_param_group({"params": [("new", nn.Parameter(torch.ones(1)))], "role": "sign"})
    assert len(optimizer.param_groups) == 2


def test_names_stand_in_the_groups():
    """Where torch has them: live, saved, and before the eyes of hooks."""
    optimizer = STAC(model_of())
    seen = []
    optimizer.register_state_dict_post_hook(
        lambda _, saved: seen.append([g["param_names"] for g in saved["param_groups"]])
    )
    saved = optimizer.state_dict()
    expected = [["0.weight", "0.bias", "1.weight", "1.bias"], ["2.weight", "2.bias"]]
    assert [group["param_names"] for group in optimizer.param_groups] == expected
    assert [group["param_names"] for group in saved["param_groups"]] == expected
    assert seen == [expected]
    assert saved.keys() == {"state", "param_groups"}
    assert {group["stac_format"] for group in saved["param_groups"]} == {1}


def test_named_and_unnamed_load_each_other():
    model = model_of()
    named, unnamed = STAC(model), STAC(param_groups(model))
    train(model, named)
    unnamed.load_state_dict(copy.deepcopy(named.state_dict()))
    named.load_state_dict(copy.deepcopy(unnamed.state_dict()))
    assert named.partition.sign_layer_names == ("0", "1")
    # Loaded names are taken over, as in torch.
    assert unnamed.partition.sign_layer_names == ("0", "1")


def test_names_beside_the_groups_are_read():
    """Where releases before wrote them."""
    model = model_of()
    optimizer = STAC(model)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    saved["param_names"] = [group.pop("param_names") for group in saved["param_groups"]]
    unnamed = STAC(param_groups(model))
    unnamed.load_state_dict(saved)
    assert unnamed.partition.adamw_parameter_names == ("2.weight", "2.bias")
    saved["param_names"][1][0] = "head.weight"
    with pytest.raises(ValueError, match=r"'head\.weight' there is '2\.weight' here"):
        STAC(model).load_state_dict(saved)


def test_pickles_with_names_apart_load():
    """As releases before wrote them."""
    optimizer = STAC(model_of())
    state = optimizer.__getstate__()
    state["_names"] = [tuple(group.pop("param_names")) for group in state["param_groups"]]
    del state["_frozen"]
    loaded = STAC.__new__(STAC)
    loaded.__setstate__(state)
    assert loaded.partition.sign_layer_names == ("0", "1")
    assert loaded.param_groups[1]["param_names"] == ["2.weight", "2.bias"]


def test_the_state_of_adamw_is_named():
    model = model_of()
    theirs = torch.optim.AdamW(model.parameters())
    train(model, theirs)
    message = "the state dict is AdamW's: its groups have no role and its states second moments"
    with pytest.raises(ValueError, match=f"^{message}"):
        STAC(model).load_state_dict(theirs.state_dict())
    split = torch.optim.AdamW([{"params": model[:2].parameters()}, {"params": model[2].weight}])
    train(model, split)
    with pytest.raises(ValueError, match=f"^{message}"):
        STAC(model).load_state_dict(split.state_dict())


def test_groups_of_others_survive():
    optimizer = STAC(model_of())
    torch.optim.lr_scheduler.StepLR(optimizer, 1)
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    assert optimizer.param_groups[0]["initial_lr"] == 1e-3


@pytest.mark.parametrize("version", range(1, FORMAT + 1))
def test_a_golden_state_loads_and_goes_on(version):
    """What an older release saved, as `make_golden_state.py` of its time wrote it."""
    golden = torch.load(GOLDEN / f"stac-format{version}.pt", weights_only=True)
    params = {name: nn.Parameter(value) for name, value in golden["before"].items()}
    groups = [
        {"params": [(name, params[name]) for name in names], "role": group["role"]}
        for names, group in zip(
            golden["state"]["param_names"], golden["state"]["param_groups"], strict=True
        )
    ]
    optimizer = STAC(groups)
    optimizer.load_state_dict(golden["state"])
    for name, p in params.items():
        p.grad = golden["grads"][name]
    optimizer.step()
    for name, p in params.items():
        torch.testing.assert_close(p.detach(), golden["after"][name], rtol=1e-6, atol=0)
    assert {float(s["step"]) for s in optimizer.state.values() if "step" in s} == {8.0}


def test_what_a_saved_group_does_not_say_stays():
    """State dicts of torch's AdamW, of the published package and of older releases."""
    model = model_of().bfloat16()
    theirs = torch.optim.AdamW(model.parameters(), lr=0.5)
    train(model, theirs)
    own = {"stochastic_rounding": True, "rounding_seed": 3, "foreach": False}
    optimizer = STAC(model.parameters(), role="adamw", adamw_state_dtype="float32", **own)
    optimizer.load_state_dict(theirs.state_dict())
    (group,) = optimizer.param_groups
    kept = {**own, "adamw_state_dtype": "float32", "lr": 0.5}
    assert {key: group[key] for key in kept} == kept
    train(model, optimizer)
    assert optimizer.state[model[0].weight]["step"] == 6


@pytest.mark.parametrize("role", ["sign", "adamw"])
@pytest.mark.parametrize("saved", [torch.complex64, torch.complex128])
def test_complex_states_of_another_precision_step_both_parts(saved, role):
    """As real parameters step whose states were saved so."""
    start = torch.tensor([0.5 + 0.25j, -0.5j, 1.0])
    results = []
    for view in (lambda z: z, torch.view_as_real):
        p = nn.Parameter(view(start.to(saved)).clone())
        optimizer = STAC([p], role=role, lr=0.1, amsgrad=True, weight_decay=0.1)
        p.grad = view(torch.tensor([1 + 2j, -1j, 0.5], dtype=saved))
        optimizer.step()
        loaded = torch.complex128 if saved is torch.complex64 else torch.complex64
        q = nn.Parameter(view(start.to(loaded)).clone())
        other = STAC([q], role=role)
        other.load_state_dict(optimizer.state_dict())
        q.grad = view(torch.tensor([-1 + 1j, 2.0, 0.5j], dtype=loaded))
        other.step()
        assert other.state[q]["exp_avg"].dtype is p.dtype
        results.append(view(q.detach()) if q.is_complex() else torch.view_as_complex(q.detach()))
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)


def broken(change):
    optimizer = STAC(model_of(), sign_state_dtype="int8")
    train_model = model_of()
    source = STAC(train_model, sign_state_dtype="int8")
    train(train_model, source)
    saved = copy.deepcopy(source.state_dict())
    change(saved)
    return optimizer, saved


def drop_group(saved):
    del saved["param_groups"][1]


def drop_parameter(saved):
    saved["param_groups"][0]["params"].pop()


def swap_role(saved):
    saved["param_groups"][0]["role"] = "adamw"


def newer(saved):
    saved["param_groups"][1]["stac_format"] = 2


def rename(saved):
    saved["param_groups"][0]["param_names"][2] = "body.weight"


def reshape(saved):
    saved["state"][1]["exp_avg"] = torch.zeros(65)


def reshape_scale(saved):
    saved["state"][0]["exp_avg_scale"] = torch.zeros(64, 2)


def foreign_key(saved):
    saved["state"][0]["exp_avg_sq"] = torch.zeros(64, 64)


def drop_scale(saved):
    del saved["state"][0]["exp_avg_scale"]


def drop_groups(saved):
    del saved["param_groups"]


BROKEN = [
    (drop_groups, "the state dict has no 'param_groups': it is not that of an optimizer"),
    (drop_group, "loaded state dict has a different number of parameter groups: 1 saved, 2 here"),
    (
        drop_parameter,
        (
            "loaded state dict contains a parameter group that doesn't match the size of "
            "optimizer's group: group 0 has 3 parameters saved, 4 here"
        ),
    ),
    (swap_role, "group 0 was saved with role 'adamw' and has 'sign' here"),
    (
        newer,
        "group 1 was saved in format 2, this release reads up to 1: install a newer stac-torch",
    ),
    (rename, "group 0 was saved for other parameters: 'body.weight' there is '1.weight' here"),
    (
        reshape,
        "group 0, parameter 1: saved exp_avg has shape (65,), the parameter needs (64,)",
    ),
    (
        reshape_scale,
        "group 0, parameter 0: saved exp_avg_scale has shape (64, 2), the parameter needs (64, 1)",
    ),
    (
        foreign_key,
        "group 0, parameter 0 has the state ['exp_avg_sq'], which the sign section does not know",
    ),
    (drop_scale, "group 0, parameter 0: an int8 exp_avg and exp_avg_scale come together"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_what_does_not_fit_changes_nothing(change, message):
    optimizer, saved = broken(change)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict() == before


def test_the_loaded_dict_stays_as_it_is():
    model = model_of()
    optimizer = STAC(model)
    train(model, optimizer)
    saved = copy.deepcopy(optimizer.state_dict())
    kept = copy.deepcopy(saved)
    other = STAC(model_of())
    other.load_state_dict(saved)
    other.param_groups[0]["lr"] = 7.0
    assert [g["lr"] for g in saved["param_groups"]] == [g["lr"] for g in kept["param_groups"]]
    assert saved.keys() == kept.keys()


PUBLISHED_GROUPS = [
    {
        "stac_role": "sign",
        "layer_names": ("0", "1"),
        "param_names": ("0.weight", "0.bias", "1.weight", "1.bias"),
        "lr": 7.5e-3,
        "weight_decay": 0.1,
        "sign_momentum": 0.9,
        "sign_state_dtype": torch.bfloat16,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "sign_weight_decay": 0.1,
        "adamw_weight_decay": 0.1,
        "amsgrad": False,
        "maximize": False,
        "error_if_nonfinite": False,
        "params": [0, 1, 2, 3],
    },
    {
        "stac_role": "adamw",
        "layer_names": ("2",),
        "param_names": ("2.weight", "2.bias"),
        "lr": 1e-2,
        "weight_decay": 0.1,
        "sign_momentum": 0.9,
        "sign_state_dtype": torch.bfloat16,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "sign_weight_decay": 0.1,
        "adamw_weight_decay": 0.1,
        "amsgrad": False,
        "maximize": False,
        "error_if_nonfinite": False,
        "params": [4, 5],
    },
]


def test_the_published_format_loads():
    """The layout of stac-optimizer 0.1.5; the real package is compared in tests_parity."""
    model = model_of()
    shapes = [p.shape for p in model.parameters()]
    state = {
        i: {"sign_momentum_buffer": torch.full(shapes[i], 0.5, dtype=torch.bfloat16)}
        for i in range(4)
    } | {
        i: {
            "step": torch.tensor(3.0),
            "exp_avg": torch.ones(shapes[i]),
            "exp_avg_sq": torch.ones(shapes[i]),
        }
        for i in (4, 5)
    }
    optimizer = STAC(model)
    optimizer.load_state_dict({"state": state, "param_groups": copy.deepcopy(PUBLISHED_GROUPS)})
    sign, adamw = optimizer.param_groups
    assert (sign["lr"], adamw["lr"], sign["sign_lr_scale"]) == (1e-2, 1e-2, 0.75)
    assert (sign["role"], adamw["role"], sign["sign_state_dtype"]) == ("sign", "adamw", "bfloat16")
    assert not {"stac_role", "layer_names", "error_if_nonfinite"} & set(sign)
    assert sign["param_names"] == ["0.weight", "0.bias", "1.weight", "1.bias"]
    moment = optimizer.state[model[0].weight]["exp_avg"]
    assert moment.dtype is torch.bfloat16
    assert moment.unique().tolist() == [0.5]
    assert optimizer.state[model[2].weight]["step"] == 3
    train(model, optimizer)


@pytest.mark.parametrize(("lrs", "scale"), [((1e-2, 1e-2), 1.0), ((0.0, 0.0), 0.75)])
def test_published_learning_rates_that_a_scheduler_wrote(lrs, scale):
    groups = copy.deepcopy(PUBLISHED_GROUPS)
    for group, lr in zip(groups, lrs, strict=True):
        group["lr"] = lr
    optimizer = STAC(model_of())
    optimizer.load_state_dict({"state": {}, "param_groups": groups})
    assert [g["lr"] for g in optimizer.param_groups] == [lrs[1], lrs[1]]
    assert optimizer.param_groups[0]["sign_lr_scale"] == scale


def test_published_names_are_checked():
    groups = copy.deepcopy(PUBLISHED_GROUPS)
    for group in groups:
        group["param_names"] = tuple(f"_orig_mod.{name}" for name in group["param_names"])
    STAC(model_of()).load_state_dict({"state": {}, "param_groups": groups})
    groups[1]["param_names"] = ("head.weight", "head.bias")
    with pytest.raises(ValueError, match=r"'head\.weight' there is '2\.weight' here"):
        STAC(model_of()).load_state_dict({"state": {}, "param_groups": groups})
