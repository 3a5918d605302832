"""What a loaded state dict decides and what it does not, and which states are whole."""

import copy
import re

import pytest
import torch
from stac_torch import STAC
from torch import nn


def pair(**options):
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    return model, STAC(model, lr=0.01, **options)


def train(model, optimizer, seeds=(1, 2)):
    for seed in seeds:
        x = torch.randn(4, 64, generator=torch.Generator().manual_seed(seed))
        optimizer.zero_grad()
        model(x).square().mean().backward()
        optimizer.step()


OWN = [{"fused": True}, {"foreach": True}, {"foreach": False}, {"capturable": True}]


@pytest.mark.parametrize("loads", ["the plain", "the other"])
@pytest.mark.parametrize("own", OWN, ids=str)
def test_how_to_compute_is_decided_here(own, loads):
    plain, other = pair()[1], pair(**own)[1]
    saved, here = (other, plain) if loads == "the plain" else (plain, other)
    for group in saved.param_groups:
        group["lr"] = 0.5
    expected = [{key: group[key] for key in own} for group in here.param_groups]
    here.load_state_dict(saved.state_dict())
    assert [{key: group[key] for key in own} for group in here.param_groups] == expected
    assert [group["lr"] for group in here.param_groups] == [0.5, 0.5]


@pytest.mark.parametrize("fused", [False, True])
def test_a_run_goes_on_in_the_other_form(fused):
    """What was saved with a kernel steps where there is none, and the other way round."""
    options = {"adamw_modules": [], "last_n_layers": 1}
    model, optimizer = pair(fused=fused, **options)
    train(model, optimizer)
    again, resumed = pair(fused=not fused, **options)
    again.load_state_dict(model.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    assert resumed._step_supports_amp_scaling is not fused
    train(model, optimizer, [3])
    train(again, resumed, [3])
    assert torch.equal(model[0].weight, again[0].weight)
    torch.testing.assert_close(model[1].weight, again[1].weight)


def test_differentiable_of_another_optimizer_is_not_taken_over():
    p = nn.Parameter(torch.ones(3))
    theirs = torch.optim.AdamW([p], differentiable=True)
    optimizer = STAC([p], role="adamw")
    optimizer.load_state_dict(theirs.state_dict())
    assert "differentiable" not in optimizer.param_groups[0]


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"sign_state_dtype": "int8", "amsgrad": True},
        {"fused": True},
        {"stochastic_rounding": True, "lr": torch.tensor(0.01)},
    ],
    ids=str,
)
def test_nothing_is_shared_with_what_was_loaded(options):
    """As torch's own test of its newer form asks: two optimizers in one process stay two."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(64, 64), nn.Linear(64, 3))
    optimizer = STAC(model, **options)
    train(model, optimizer)
    saved = optimizer.state_dict()
    kept = copy.deepcopy(saved)
    other_model = copy.deepcopy(model)
    other = STAC(other_model, **options)
    other.load_state_dict(saved)

    def pointers(one):
        tensors = [t for state in one.state.values() for t in state.values()]
        tensors += [g["lr"] for g in one.param_groups if isinstance(g["lr"], torch.Tensor)]
        return {t.data_ptr() for t in tensors}

    assert pointers(optimizer)
    assert not pointers(optimizer) & pointers(other)
    train(other_model, other)
    torch.testing.assert_close(optimizer.state_dict()["state"], kept["state"], rtol=0, atol=0)


def test_a_loaded_moment_is_laid_out_as_its_parameter():
    p = nn.Parameter(torch.ones(2, 3, 4, 5).to(memory_format=torch.channels_last))
    optimizer = STAC([p], role="sign")
    p.grad = torch.ones_like(p)
    optimizer.step()
    saved = optimizer.state_dict()
    saved["state"][0]["exp_avg"] = saved["state"][0]["exp_avg"].contiguous()
    optimizer.load_state_dict(saved)
    assert optimizer.state[p]["exp_avg"].stride() == p.stride()
    optimizer.param_groups[0]["fused"] = True
    optimizer.step()


def without(position, *keys):
    def change(saved):
        for key in keys:
            del saved["state"][position][key]

    return change


def with_value(position, key, value):
    def change(saved):
        saved["state"][position][key] = value

    return change


LACKS = "lacks the state {}, which the {} section needs: the state dict is damaged or another"
FAULTS = [
    (without(0, "exp_avg"), LACKS.format("['exp_avg']", "sign"), {"role": "sign"}),
    (without(1, "step"), LACKS.format("['step']", "adamw"), {}),
    (without(1, "exp_avg"), LACKS.format("['exp_avg']", "adamw"), {}),
    (without(1, "exp_avg_sq"), LACKS.format("['exp_avg_sq']", "adamw"), {}),
    (without(1, "max_exp_avg_sq"), LACKS.format("['max_exp_avg_sq']", "adamw"), {"amsgrad": True}),
    (
        without(1, "step", "exp_avg_sq"),
        LACKS.format("['exp_avg_sq', 'step']", "adamw"),
        {},
    ),
    (with_value(0, "exp_avg", 1.0), "saved exp_avg must be a tensor, got 1.0", {}),
    (
        with_value(1, "exp_avg_sq", torch.zeros(3, dtype=torch.int64)),
        "saved exp_avg_sq is torch.int64, the parameter needs a floating dtype",
        {},
    ),
    (
        with_value(0, "exp_avg", torch.zeros(3, dtype=torch.complex64)),
        "saved exp_avg is torch.complex64, the parameter needs a floating dtype",
        {},
    ),
    (with_value(1, "step", None), "saved step must be one number, got None", {}),
    (with_value(1, "step", True), "saved step must be one number, got True", {}),
    (with_value(1, "step", torch.zeros(2)), "saved step must be one number, got shape (2,)", {}),
]


@pytest.mark.parametrize(("change", "message", "options"), FAULTS)
def test_a_state_that_is_not_whole_changes_nothing(change, message, options):
    def build():
        params = [nn.Parameter(torch.ones(3)), nn.Parameter(torch.ones(3))]
        given = {key: value for key, value in options.items() if key != "role"}
        groups = [{"params": params[:1], "role": "sign"}, {"params": params[1:], "role": "adamw"}]
        optimizer = STAC(groups, **given)
        for p in params:
            p.grad = torch.ones(3)
        return optimizer

    source, optimizer = build(), build()
    source.step()
    saved = copy.deepcopy(source.state_dict())
    change(saved)
    if not saved["state"][0]:
        # An empty entry is a parameter without a state; a damaged one has something else.
        saved["state"][0]["step"] = torch.tensor(1.0)
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(saved)
    assert optimizer.state_dict() == before


@pytest.mark.parametrize("nothing", [None, {}])
def test_a_parameter_may_come_without_a_state(nothing):
    p = nn.Parameter(torch.ones(3))
    optimizer = STAC([p], role="adamw")
    saved = optimizer.state_dict()
    saved["state"][0] = nothing
    optimizer.load_state_dict(saved)
    assert not optimizer.state
    p.grad = torch.ones(3)
    optimizer.step()
    assert optimizer.state[p]["step"] == 1


FORMS = [{}, {"foreach": True}, {"fused": True}, {"stochastic_rounding": True}]


@pytest.mark.parametrize("form", FORMS, ids=str)
def test_momentum_raised_from_zero_is_used(form):
    """Also across dtypes, of which stochastic rounding gives only some a state before."""
    params = [nn.Parameter(torch.zeros(4, dtype=d)) for d in (torch.bfloat16, torch.float32)]
    optimizer = STAC(params, role="sign", lr=0.5, sign_momentum=0.0, **form)

    def step(sign):
        for p in params:
            p.grad = torch.full_like(p, sign)
        optimizer.step()

    step(1.0)
    optimizer.param_groups[0]["sign_momentum"] = 0.9
    # Saved between the raise and the next step.
    optimizer.load_state_dict(optimizer.state_dict())
    step(1.0)
    assert all("exp_avg" in optimizer.state[p] for p in params)
    step(-0.01)
    # m = 0.9*0.1 - 0.1*0.01 > 0: three steps down.
    assert [p.tolist() for p in params] == [[-1.5] * 4] * 2


@pytest.mark.parametrize("form", [{}, {"foreach": True}, {"fused": True}], ids=str)
def test_momentum_lowered_to_zero_steps_old_and_new_parameters(form):
    old, new = nn.Parameter(torch.zeros(4)), nn.Parameter(torch.zeros(4))
    optimizer = STAC([new, old], role="sign", lr=0.5, **form)
    old.grad = torch.ones(4)
    optimizer.step()
    optimizer.param_groups[0]["sign_momentum"] = 0.0
    old.grad, new.grad = torch.full((4,), -2.0), torch.full((4,), 3.0)
    optimizer.step()
    assert (old.tolist(), new.tolist()) == ([0.0] * 4, [-0.5] * 4)
    # The moment follows, so that a later rise begins at the last gradient.
    assert optimizer.state[old]["exp_avg"].tolist() == [-2.0] * 4
    assert new not in optimizer.state


def test_amsgrad_switched_on_keeps_the_maximum_from_then_on():
    p = nn.Parameter(torch.zeros(2))
    optimizer = STAC([p], role="adamw")
    p.grad = torch.ones(2)
    optimizer.step()
    optimizer.param_groups[0]["amsgrad"] = True
    optimizer.step()
    state = optimizer.state[p]
    assert torch.equal(state["max_exp_avg_sq"], state["exp_avg_sq"])


def test_counters_are_those_of_torch_under_a_float64_default():
    torch.set_default_dtype(torch.float64)
    try:
        results = []
        for build in (
            lambda p: torch.optim.AdamW([p], lr=0.1, weight_decay=0.0),
            lambda p: STAC([p], role="adamw", lr=0.1),
        ):
            p = nn.Parameter(torch.ones(3))
            optimizer = build(p)
            p.grad = torch.ones(3)
            optimizer.step()
            optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
            optimizer.step()
            results.append((p.detach(), optimizer.state[p]["step"]))
        assert results[1][1].dtype is torch.float64
        torch.testing.assert_close(results[1], results[0], rtol=0, atol=0)
        saved = optimizer.state_dict()
    finally:
        torch.set_default_dtype(torch.float32)
    # It stays what it was saved as, but for kernels, which read float32.
    plain, fused = (STAC([p], role="adamw", fused=f) for f in (None, True))
    for other in (plain, fused):
        other.load_state_dict(saved)
        other.step()
    assert plain.state[p]["step"].dtype is torch.float64
    assert fused.state[p]["step"].dtype is torch.float32
