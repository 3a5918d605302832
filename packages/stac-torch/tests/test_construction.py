"""The forms of the constructor, its defaults and its refusals."""

import math
import re

import pytest
import torch
from stac_torch import STAC, param_groups
from torch import nn


def two_layers():
    return nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))


def test_published_quick_start():
    model = nn.Sequential(
        nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)
    )
    optimizer = STAC(
        model,
        lr=1e-3,
        last_n_layers=1,
        sign_momentum=0.9,
        weight_decay=1e-2,
        sign_state_dtype=torch.bfloat16,
        error_if_nonfinite=True,
    )
    inputs, targets = torch.randn(8, 128), torch.randn(8, 10)
    loss = torch.nn.functional.mse_loss(model(inputs), targets)
    loss.backward()
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    assert optimizer.partition.sign_layer_names == ("0", "2")
    assert optimizer.partition.adamw_layer_names == ("4",)
    assert optimizer.state[model[0].weight]["exp_avg"].dtype is torch.bfloat16
    assert torch.nn.functional.mse_loss(model(inputs), targets) < loss


def test_defaults_are_the_published_ones():
    group = STAC(two_layers()).param_groups[0]
    expected = {
        "lr": 1e-3,
        "weight_decay": 0.0,
        "sign_momentum": 0.9,
        "sign_lr_scale": 0.75,
        "sign_state_dtype": None,
        "betas": (0.9, 0.999),
        "eps": 1e-8,
        "amsgrad": False,
        "maximize": False,
    }
    assert {key: group[key] for key in expected} == expected


SCALES = [
    (lambda m: STAC(m), 0.75),
    (lambda m: STAC(m.named_parameters()), 0.75),
    (lambda m: STAC(m, last_n_layers=0), 1.0),
    (lambda m: STAC(m, sign_lr_scale=0.2), 0.2),
    (lambda m: STAC(m, last_n_layers=0, sign_lr_scale=0.2), 0.2),
    (lambda m: STAC(m.parameters(), role="sign"), 1.0),
    (lambda m: STAC([{"params": m[0].parameters(), "role": "sign"}]), 1.0),
    (lambda m: STAC(param_groups(m)), 0.75),
]


@pytest.mark.parametrize(("build", "scale"), SCALES)
def test_sign_lr_scale(build, scale):
    model = two_layers()
    optimizer = build(model)
    before = model[0].weight.detach().clone()
    for p in model.parameters():
        p.grad = torch.ones_like(p)
    optimizer.step()
    step = (before - model[0].weight).max().item()
    assert step == pytest.approx(1e-3 * scale, rel=1e-4)
    assert {group["lr"] for group in optimizer.param_groups} == {1e-3}


def test_every_form_takes_the_same_steps():
    torch.manual_seed(0)
    start = two_layers().state_dict()
    forms = [
        lambda m: STAC(m, 0.01),
        lambda m: STAC(m.named_parameters(), lr=0.01),
        lambda m: STAC(param_groups(m), lr=0.01),
        lambda m: STAC(param_groups(m, named=True), lr=0.01),
        lambda m: STAC(
            [
                {"params": m[0].parameters(), "role": "sign", "sign_lr_scale": 0.75},
                {"params": m[1].parameters(), "role": "adamw"},
            ],
            lr=0.01,
        ),
    ]
    results = []
    for form in forms:
        model = two_layers()
        model.load_state_dict(start)
        optimizer = form(model)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.ones(2, 4)).square().sum().backward()
            optimizer.step()
        results.append(nn.utils.parameters_to_vector(model.parameters()))
    for result in results[1:]:
        torch.testing.assert_close(result, results[0], rtol=0, atol=0)


@pytest.mark.parametrize(
    "spelling", [torch.bfloat16, "bf16", "bfloat16", "torch.bfloat16", " BF16 "]
)
def test_spellings_of_a_dtype(spelling):
    optimizer = STAC(two_layers(), sign_state_dtype=spelling, adamw_state_dtype=spelling)
    assert optimizer.param_groups[0]["sign_state_dtype"] == "bfloat16"
    assert optimizer.param_groups[1]["adamw_state_dtype"] == "bfloat16"


def test_weight_decay_per_section():
    model = two_layers()
    assert [g["weight_decay"] for g in STAC(model, weight_decay=0.1).param_groups] == [0.1, 0.1]
    own = STAC(model, weight_decay=0.1, sign_weight_decay=0.3, adamw_weight_decay=0.0)
    assert [g["weight_decay"] for g in own.param_groups] == [0.3, 0.0]
    groups = [
        {"params": [model[0].weight], "role": "sign"},
        {"params": [model[0].bias], "role": "adamw"},
    ]
    explicit = STAC(groups, sign_weight_decay=0.3)
    assert [g["weight_decay"] for g in explicit.param_groups] == [0.3, 0.0]


def test_add_param_group():
    model, more = two_layers(), nn.Linear(2, 2)
    optimizer = STAC(model, sign_weight_decay=0.3)
    named = [(f"more.{name}", p) for name, p in more.named_parameters()]
    group = {"params": named, "role": "sign"}
    optimizer.add_param_group(group)
    assert optimizer.partition.sign_layer_names == ("0", "more")
    assert optimizer.param_groups[2]["weight_decay"] == 0.3
    assert optimizer.param_groups[2]["sign_lr_scale"] == 0.75
    assert group == {"params": named, "role": "sign"}


def test_add_param_group_asks_for_a_role():
    optimizer = STAC(two_layers())
    with pytest.raises(
        ValueError, match="STAC cannot tell which section these parameters belong to"
    ):
        optimizer.add_param_group({"params": [("w", nn.Parameter(torch.ones(1)))]})
    assert len(optimizer.param_groups) == 2
    with pytest.raises(ValueError, match="cannot add param group without names to the optimizer"):
        optimizer.add_param_group({"params": [nn.Parameter(torch.ones(1))], "role": "sign"})
    with pytest.raises(ValueError, match="some parameters appear in more than one parameter group"):
        optimizer.add_param_group(
            {"params": [("again", optimizer.param_groups[0]["params"][0])], "role": "sign"}
        )
    assert len(optimizer.param_groups) == 2
    assert optimizer.partition.sign_layer_names == ("0",)


def test_groups_keep_what_others_write_into_them():
    groups = [{"params": two_layers().parameters(), "role": "sign", "name": "body"}]
    assert STAC(groups).param_groups[0]["name"] == "body"


@pytest.mark.parametrize("shape", [(), (3, 2)])
def test_a_group_may_be_one_tensor(shape):
    p = nn.Parameter(torch.ones(shape))
    optimizer = STAC([{"params": p, "role": "sign"}], sign_state_dtype="bf16")
    p.grad = torch.ones(shape)
    optimizer.step()
    assert optimizer.state[p]["exp_avg"].dtype is torch.bfloat16


NO_ROLE = (
    "STAC cannot tell which section these parameters belong to: pass the model, its "
    "named_parameters(), groups with a 'role' ('sign' or 'adamw'), or role= for all of them"
)
REFUSED = [
    (lambda m: STAC(m.parameters()), ValueError, NO_ROLE),
    (lambda m: STAC([{"params": m.parameters()}]), ValueError, NO_ROLE),
    (lambda m: STAC(m, role="sign"), ValueError, "role='sign' is for parameters, got a model"),
    (lambda m: STAC([]), ValueError, "optimizer got an empty parameter list"),
    (lambda m: STAC([("a", 3)]), TypeError, "optimizer can only optimize Tensors, but 'a' is int"),
    (
        lambda m: STAC(m.parameters(), role="sign", last_n_layers=1),
        ValueError,
        "last_n_layers=1 partitions a model, got parameters that have a role",
    ),
    (
        lambda m: STAC(m.parameters(), role="sign", exclude_bias_and_norm_from_weight_decay=True),
        ValueError,
        "exclude_bias_and_norm_from_weight_decay=True partitions a model",
    ),
    (lambda m: STAC(m, betas=(0.9,)), ValueError, "betas must be two numbers, got (0.9,)"),
    (
        lambda m: STAC(m, betas=(0.9, torch.tensor(0.9))),
        TypeError,
        "betas[1] must be a number, got a tensor: only lr may be one",
    ),
    (lambda m: STAC(m, betas=0.9), ValueError, "betas must be two numbers, got 0.9"),
    (
        lambda m: STAC(m, error_if_nonfinite="maybe"),
        TypeError,
        "error_if_nonfinite must be True or False, got 'maybe': nonfinite='skip', 'raise' or",
    ),
    (
        lambda m: STAC(m, lr=torch.tensor(-1.0)),
        ValueError,
        "lr must be >= 0 and finite, got -1.0",
    ),
    (
        lambda m: STAC([{"params": m[0].weight, "role": "sign", "lr": torch.tensor([math.nan])}]),
        ValueError,
        "lr must be >= 0 and finite, got nan",
    ),
    (
        lambda m: STAC(m, partition="heads"),
        ValueError,
        "partition must be 'last_layers' or 'transformer', got 'heads'",
    ),
    (
        lambda m: STAC(m, partition="transformer", last_n_layers=2),
        ValueError,
        "last_n_layers=2 has nothing to say under partition='transformer', which looks at each",
    ),
    (
        lambda m: STAC(m, partition="transformer", norms_on_adamw=True),
        ValueError,
        "norms_on_adamw=True has nothing to say under partition='transformer'",
    ),
    (
        lambda m: STAC(m.named_parameters(), partition="transformer"),
        ValueError,
        "partition='transformer' needs the modules, got named parameters: pass the model itself",
    ),
    (
        lambda m: STAC(m.parameters(), role="sign", partition="transformer"),
        ValueError,
        "partition='transformer' partitions a model, got parameters that have a role",
    ),
    (
        lambda m: STAC(m.parameters(), role="sign", hold_frozen=False),
        ValueError,
        "hold_frozen=False partitions a model, got parameters that have a role",
    ),
    (
        lambda m: STAC(m, sign_momentum="a"),
        TypeError,
        "sign_momentum must be a number, got 'a' (str)",
    ),
    (
        lambda m: STAC(m, sign_weight_decay=-1.0),
        ValueError,
        "sign_weight_decay must be >= 0 and finite, got -1.0",
    ),
    (
        lambda m: STAC(m, sign_state_dtype="int2"),
        ValueError,
        "'float64', 'int8', 'int4'] or its name, got 'int2'",
    ),
    (
        lambda m: STAC(m, adamw_state_dtype="int4"),
        ValueError,
        "'float32', 'float64', 'int8'] or its name, got 'int4'",
    ),
    (
        lambda m: STAC(m, sign_state_dtype="int4", fused=True),
        ValueError,
        "fused=True has no kernel for sign_state_dtype='int4': use fused=None",
    ),
    (
        lambda m: STAC(m, adamw_state_dtype="int8", fused=True),
        ValueError,
        "fused=True has no kernel for adamw_state_dtype='int8': use fused=None",
    ),
    (lambda m: STAC(m, maximize=1), TypeError, "maximize must be True or False, got 1"),
    (lambda m: STAC(m, foreach="yes"), TypeError, "foreach must be None, True or False, got 'yes'"),
    (lambda m: STAC(m, rounding_seed=0.5), TypeError, "rounding_seed must be an integer, got 0.5"),
    (
        lambda m: STAC(m, nonfinite="zero"),
        ValueError,
        "nonfinite must be 'skip', 'raise' or 'propagate', got 'zero'",
    ),
    (
        lambda m: STAC(m, nonfinite="propagate", error_if_nonfinite=True),
        ValueError,
        "error_if_nonfinite=True is nonfinite='raise', got nonfinite='propagate': give one",
    ),
    (
        lambda m: STAC(m, nonfinite="raise", capturable=True),
        ValueError,
        "nonfinite='raise' has to read the gradients, which a captured graph cannot",
    ),
    (
        lambda m: STAC(
            [{"params": [m[0].weight], "role": "sign", "capturable": True}],
            error_if_nonfinite=True,
        ),
        ValueError,
        "nonfinite='raise' has to read the gradients, which a captured graph cannot",
    ),
    (
        lambda m: STAC(
            [{"params": [m[0].weight], "role": "sign", "fused": True}], track_diagnostics=True
        ),
        ValueError,
        "track_diagnostics=True counts in the loop, which fused=True replaces: give one",
    ),
    (
        lambda m: STAC(m, max_consecutive_nonfinite=0),
        ValueError,
        "max_consecutive_nonfinite must be an integer >= 1 or None, got 0",
    ),
    (
        lambda m: STAC(m, lr=torch.tensor(0.1), foreach=True),
        ValueError,
        "lr as a Tensor is not supported for capturable=False and foreach=True",
    ),
    (
        lambda m: STAC(
            [torch.zeros(2, dtype=torch.complex64)], role="sign", sign_state_dtype="bf16"
        ),
        ValueError,
        "sign_state_dtype='bfloat16' cannot hold the moment of a complex parameter of shape (2,)",
    ),
    (lambda m: STAC(m, differentiable=True), ValueError, "differentiable=True is refused"),
    (lambda m: STAC(m, momentum=0.9), TypeError, "unexpected keyword argument 'momentum'"),
]


@pytest.mark.parametrize(("build", "error", "message"), REFUSED)
def test_refused(build, error, message):
    with pytest.raises(error, match=re.escape(message)):
        build(two_layers())


def test_int8_is_exact_about_its_name():
    optimizer = STAC(two_layers(), sign_state_dtype=torch.int8)
    assert optimizer.param_groups[0]["sign_state_dtype"] == "int8"


def test_a_method_of_the_model_that_only_has_the_name_is_no_obstacle():
    class Model(nn.Sequential):
        def get_output_embeddings(self, tokens):
            return self[1](tokens)

    model = Model(nn.Linear(4, 4), nn.Linear(4, 2))
    assert STAC(model).partition.adamw_layer_names == ("1",)
