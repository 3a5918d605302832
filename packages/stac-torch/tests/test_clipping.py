"""Clipping inside the update, held to `torch.nn.utils.clip_grad_norm_` before the step."""

import copy
import math
import pickle

import pytest
import torch
from stac_torch import STAC, STAM, STAMLite
from torch import nn
from torch.nn.utils import clip_grad_norm_

FORMS = [
    (STAC, {"fused": False}),
    (STAC, {"foreach": True}),
    (STAC, {"fused": True}),
    (STAC, {"fused": True, "sign_state_dtype": "int8", "adamw_state_dtype": "bf16"}),
    (STAC, {"sign_state_dtype": "int4", "adamw_state_dtype": "int8", "amsgrad": True}),
    (STAC, {"sign_momentum": 0.0, "maximize": True}),
    (STAM, {}),
    (STAM, {"foreach": False}),
    (STAMLite, {"capturable": True}),
]


def pair(cls=STAC, *, dtype=torch.float32, **options):
    torch.manual_seed(0)
    # A matrix of AdamW that is cut into pieces, and one that is not row-major.
    model = nn.Sequential(
        nn.Linear(20, 70), nn.Linear(70, 270), nn.LayerNorm(270), nn.Linear(270, 1000)
    )
    model = model.to(dtype)
    return model, cls(model, lr=1e-3, weight_decay=0.1, **options)


def backward(model, step=0, size=30.0):
    model.zero_grad()
    x = torch.randn(4, 20, generator=torch.Generator().manual_seed(step))
    model(x.to(next(model.parameters()).dtype)).mul(size).square().mean().backward()


def grads(model):
    return [p.grad.clone() for p in model.parameters()]


def same(one, other):
    torch.testing.assert_close(list(one), list(other), rtol=0, atol=0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("cls", "options"), FORMS)
def test_it_is_what_torch_clips(cls, options, dtype):
    """The norm is torch's to rounding; given it, parameters and states are equal bit for bit."""
    model, ours = pair(cls, dtype=dtype, max_grad_norm=2.0, **options)
    other, plain = pair(cls, dtype=dtype, **options)
    # 1e-3 does not reach the limit.
    for step, size in enumerate((30.0, 30.0, 1e-3, 30.0)):
        backward(model, step, size)
        before = grads(model)
        backward(other, step, size)
        torchs = clip_grad_norm_(copy.deepcopy(other).parameters(), 2.0)
        norm = nn.utils.get_total_norm(p.grad for p in other.parameters())
        assert torchs.isfinite()
        ours.step()
        same(grads(model), before)
        torch.testing.assert_close(ours.grad_norm, norm, rtol=1e-5, atol=0)
        for p in other.parameters():
            p.grad.mul_(torch.clamp(2.0 / (ours.grad_norm + 1e-6), max=1.0))
        plain.step()
        same(model.parameters(), other.parameters())
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        torch.testing.assert_close(ours.state[p], plain.state[q], rtol=0, atol=0)


@pytest.mark.parametrize("fused", [False, True])
def test_written_gradients_are_torchs(fused):
    model, optimizer = pair(max_grad_norm=2.0, write_clipped=True, fused=fused)
    backward(model)
    other = copy.deepcopy(model)
    for p, q in zip(model.parameters(), other.parameters(), strict=True):
        q.grad = p.grad.clone()
    optimizer.step()
    torch.testing.assert_close(
        optimizer.grad_norm, clip_grad_norm_(other.parameters(), 2.0), rtol=1e-5, atol=0
    )
    torch.testing.assert_close(grads(model), grads(other), rtol=1e-5, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_the_norm_is_the_check(bad):
    model, optimizer = pair(max_grad_norm=1.0, write_clipped=True)
    backward(model)
    model[0].weight.grad[0, 0] = bad
    before, given = copy.deepcopy(model.state_dict()), grads(model)
    optimizer.step()
    same(model.state_dict().values(), before.values())
    torch.testing.assert_close(grads(model), given, rtol=0, atol=0, equal_nan=True)
    assert optimizer.nonfinite_skipped_steps == 1
    assert not optimizer.grad_norm.isfinite()
    raising, loud = pair(max_grad_norm=1.0, nonfinite="raise")
    backward(raising)
    raising[0].weight.grad[0, 0] = bad
    with pytest.raises(RuntimeError, match="a gradient is not finite; nothing was changed"):
        loud.step()
    same(raising.state_dict().values(), before.values())


def test_a_step_left_out_on_the_device_leaves_gradients():
    model, optimizer = pair(STAMLite, max_grad_norm=1.0, write_clipped=True, capturable=True)
    backward(model)
    model[0].weight.grad[0, 0] = math.nan
    given = grads(model)
    optimizer.step()
    torch.testing.assert_close(grads(model), given, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("cls", [STAC, STAMLite])
def test_propagate_looks_at_nothing(cls):
    """As after `clip_grad_norm_`: a nan spreads over everything."""
    model, optimizer = pair(cls, max_grad_norm=1.0, nonfinite="propagate")
    backward(model)
    model[0].weight.grad[0, 0] = math.nan
    optimizer.step()
    assert all(p.isnan().all() for p in model.parameters())


def test_sums_are_in_float32_at_least():
    """`clip_grad_norm_` finds infinity here, and throws the gradients away."""
    p = nn.Parameter(torch.zeros(300, 300, dtype=torch.float16))
    optimizer = STAC([p], role="sign", max_grad_norm=1.0)
    p.grad = torch.full_like(p, 60000.0)
    optimizer.step()
    assert optimizer.grad_norm.item() == pytest.approx(60000.0 * 300, rel=1e-4)
    assert (p < 0).all()


@pytest.mark.parametrize("size", [1, 500, 5000])
def test_tensors_of_all_sizes_count(size):
    params = [nn.Parameter(torch.zeros(size)) for _ in range(30)]
    params.append(nn.Parameter(torch.zeros(size, 2).t()))
    optimizer = STAM(params, max_grad_norm=math.inf)
    for number, p in enumerate(params[1:]):
        p.grad = torch.full_like(p, number + 1.0)
    optimizer.step()
    expected = nn.utils.get_total_norm(p.grad for p in params[1:])
    torch.testing.assert_close(optimizer.grad_norm, expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("unscaled", [False, True])
def test_a_scaler_unscales_once(fused, unscaled):
    model, optimizer = pair(max_grad_norm=2.0, fused=fused)
    other, plain = pair(fused=fused)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    for step in range(2):
        backward(model, step)
        backward(other, step)
        for p in model.parameters():
            p.grad.mul_(scaler.scale(torch.tensor(1.0)))
        if unscaled:
            scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        clip_grad_norm_(other.parameters(), 2.0)
        plain.step()
        torch.testing.assert_close(
            list(model.parameters()), list(other.parameters()), rtol=0, atol=1e-6
        )


def test_a_fused_scaler_whose_norm_overflows_leaves_the_step_out():
    model, optimizer = pair(max_grad_norm=2.0, fused=True)
    backward(model)
    model[0].weight.grad.fill_(1e30)
    before = copy.deepcopy(model.state_dict())
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(2.0), torch.tensor(0.0)
    optimizer.step()
    same(model.state_dict().values(), before.values())


def test_a_head_in_another_order_of_memory():
    """Torch's kernel walks it whole, because pieces of its rows would have gaps."""
    weights = []
    for order in (torch.preserve_format, torch.channels_last):
        torch.manual_seed(0)
        p = nn.Parameter(torch.randn(70, 20, 16, 16).to(memory_format=order))
        optimizer = STAC([p], role="adamw", max_grad_norm=1.0, fused=True)
        p.grad = torch.randn(70, 20, 16, 16).to(memory_format=order)
        optimizer.step()
        weights.append(p.detach())
    torch.testing.assert_close(*weights, rtol=0, atol=5e-7)


def test_copies_clip_and_older_pickles_do_not():
    model, optimizer = pair(max_grad_norm=1.0)
    backward(model)
    optimizer.step()
    for copied in (copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert copied._clipping.max_norm == 1.0
        assert copied.grad_norm is None
    state = optimizer.__getstate__()
    del state["_clipping"]
    older = STAC.__new__(STAC)
    older.__setstate__(state)
    assert older._clipping is None
    assert older.grad_norm is None


@pytest.mark.slow
@pytest.mark.parametrize("cls", [STAC, STAM, STAMLite])
@pytest.mark.filterwarnings("ignore:Guards may run slower")
@pytest.mark.filterwarnings("ignore:Profiler record function")
def test_compiled_in_one_graph(cls):
    torch._dynamo.reset()
    model, optimizer = pair(cls, max_grad_norm=2.0)
    other, eager = pair(cls, max_grad_norm=2.0)
    step = torch.compile(lambda: optimizer.step(), fullgraph=True, backend="eager")
    for count in range(3):
        backward(model, count)
        backward(other, count)
        step()
        eager.step()
        torch.testing.assert_close(optimizer.grad_norm, eager.grad_norm, rtol=1e-5, atol=0)
    torch.testing.assert_close(
        list(model.parameters()), list(other.parameters()), rtol=1e-4, atol=1e-5
    )


@pytest.mark.parametrize("cls", [STAC, STAM, STAMLite])
@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"max_grad_norm": 0}, ValueError, "max_grad_norm must be > 0, or None for no clipping"),
        ({"max_grad_norm": -1.0}, ValueError, "max_grad_norm must be > 0, or None"),
        ({"max_grad_norm": math.nan}, ValueError, "max_grad_norm must be > 0, or None"),
        ({"max_grad_norm": "1"}, TypeError, "max_grad_norm must be a number > 0 or None, got '1'"),
        ({"max_grad_norm": True}, TypeError, "max_grad_norm must be a number > 0 or None, got"),
        ({"write_clipped": True}, ValueError, "write_clipped=True writes gradients clipped to"),
        ({"write_clipped": 1}, TypeError, "write_clipped must be True or False, got 1"),
    ],
)
def test_refused(cls, options, error, message):
    with pytest.raises(error, match=message):
        cls(nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2)), **options)


def test_a_gradient_of_two_parameters_is_written_once():
    one, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = STAC([{"params": [one], "role": "sign"}, {"params": [other], "role": "adamw"}],
                     max_grad_norm=1.0, write_clipped=True)  # fmt: skip
    one.grad = other.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    # The norm is that of both.
    expected = torch.tensor([3.0, 4.0]) / (50**0.5 + 1e-6)
    torch.testing.assert_close(one.grad, expected)


def test_an_expanded_gradient_is_refused_before_any_is_written():
    one, other = (nn.Parameter(torch.zeros(2)) for _ in range(2))
    optimizer = STAM([one, other], max_grad_norm=1.0, write_clipped=True)
    one.grad, other.grad = torch.tensor([3.0, 4.0]), torch.tensor([2.0]).expand(2)
    with pytest.raises(ValueError, match="write_clipped needs gradients that share no entries"):
        optimizer.step()
    same([one, one.grad], [torch.zeros(2), torch.tensor([3.0, 4.0])])


def test_a_number_of_numpy_limits_the_norm():
    numpy = pytest.importorskip("numpy")
    parameter = nn.Parameter(torch.zeros(2))
    optimizer = STAM([parameter], max_grad_norm=numpy.float32(0.5))
    parameter.grad = torch.tensor([3.0, 4.0])
    optimizer.step()
    assert optimizer.grad_norm == 5


def test_the_share_of_saturated_codes_is_that_of_the_sign_section():
    model, optimizer = pair(sign_state_dtype="int4", adamw_state_dtype="int8")
    backward(model)
    optimizer.step()
    assert optimizer.diagnostics()["int8_saturation"] is None
