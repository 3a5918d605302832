"""``fused=True`` on the CPU: the same bits as the plain path, in every dtype and layout."""

import copy
import math
import pickle

import pytest
import torch
from stac_torch import STAC
from torch import nn

SHAPES = [(40, 300), (16, 256), (129, 33), (1, 5000), (257,), (), (3, 0), (8, 6, 100), (5,)]
PARAMETERS = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
STATES = [None, "float32", "bfloat16", "float16", "float64", "int8"]
OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True},
    {"sign_momentum": 0.0, "weight_decay": 0.1},
    {"lr": torch.tensor(3e-3), "weight_decay": 0.1, "sign_lr_scale": 0.75},
    {"nonfinite": "propagate"},
]


def parameters(dtype, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    return [nn.Parameter((0.02 * torch.randn(s, generator=generator)).to(dtype)) for s in shapes]


def give_gradients(params, step, bad=False):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        scale = 10 ** torch.empty(p.shape).uniform_(-6, 0, generator=generator)
        # A zero stays one in every dtype; its sign is 0.
        scale = scale * (torch.rand(p.shape, generator=generator) > 0.05)
        p.grad = (scale * torch.randn(p.shape, generator=generator)).to(p.dtype)
        if p.dtype is torch.float64:
            p.grad *= 1 + 1e-10
    if bad:
        params[0].grad[1, 2], params[1].grad[0, 0] = math.nan, math.inf


def everything(params, optimizer):
    return [p.detach() for p in params], [dict(optimizer.state.get(p, {})) for p in params]


def taken(how, dtype, options, steps=4, bad_step=None, role="sign"):
    """Return the parameters and states after some steps, and how many of these were skipped."""
    params = parameters(dtype)
    optimizer = STAC([(str(i), p) for i, p in enumerate(params)], role=role, **options, **how)
    for step in range(steps):
        give_gradients(params, step, bad=step == bad_step)
        optimizer.step()
    return (*everything(params, optimizer), optimizer.nonfinite_skipped_steps)


def both(dtype, options, **given):
    """Return what the plain loop and the kernel make of the same gradients."""
    return [taken(how, dtype, options, **given) for how in ({"foreach": False}, {"fused": True})]


def identical(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", PARAMETERS)
def test_the_bits_of_the_plain_path(dtype, state, options, kernels):
    given = dtype, {**options, "sign_state_dtype": state}
    for bad_step in (None, 2):
        plain = taken({"foreach": False}, *given, bad_step=bad_step)
        for _ in kernels():
            identical(taken({"fused": True}, *given, bad_step=bad_step), plain)


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("state", [None, "int8"])
def test_stochastic_rounding_draws_the_same(state):
    options = {"stochastic_rounding": True, "sign_state_dtype": state, "weight_decay": 0.1}
    plain, fused = both(torch.bfloat16, options, bad_step=1)
    identical(fused, plain)
    nearest = both(torch.bfloat16, {**options, "stochastic_rounding": False})[1]
    assert not torch.equal(fused[0][0], nearest[0][0])


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("dtype", PARAMETERS)
def test_every_half_is_read_and_every_float_rounded_as_by_torch(dtype):
    """All 65,536 numbers of 16 bits, and floats beside the middles between two of them."""
    if dtype in (torch.float32, torch.float64):
        bits = torch.cat([torch.arange(-(2**31), 2**31 - 70_000, 65_521), torch.arange(-70, 70)])
        grads = bits.to(torch.int32).view(torch.float32).to(dtype)
    else:
        grads = torch.arange(65_536).to(torch.int32).to(torch.int16).view(dtype)
    for state in (None, "bfloat16", "float16", "float32"):
        results = []
        for how in ({"foreach": False}, {"fused": True}):
            p = nn.Parameter(torch.zeros_like(grads))
            q = nn.Parameter(grads.clone())
            options = {"sign_state_dtype": state, "nonfinite": "propagate", "sign_momentum": 0.5}
            optimizer = STAC([p, q], role="sign", weight_decay=0.5, lr=1.0, **options, **how)
            p.grad, q.grad = grads, torch.zeros_like(grads)
            optimizer.step()
            results.append(everything([p, q], optimizer))
        identical(results[1], results[0])


@pytest.mark.parametrize(
    "options",
    [{}, {"amsgrad": True, "weight_decay": 0.1}, {"maximize": True, "lr": torch.tensor(0.01)}],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_adamw_section_is_torch_fused(dtype, options):
    ours, theirs = parameters(dtype), parameters(dtype)
    options = {"weight_decay": 0.0, "fused": True, **options}
    optimizers = STAC(ours, role="adamw", **options), torch.optim.AdamW(theirs, **options)
    for step in range(3):
        for params, optimizer in zip((ours, theirs), optimizers, strict=True):
            give_gradients(params, step)
            optimizer.step()
    identical([p.detach() for p in ours], [p.detach() for p in theirs])


@pytest.mark.parametrize("options", [{}, {"adamw_state_dtype": "bf16"}])
def test_the_adamw_section_skips(options):
    plain, fused = both(torch.float32, options, bad_step=2, role="adamw")
    assert (plain[2], fused[2]) == (1, 1)
    for one, other in zip(plain[0], fused[0], strict=True):
        torch.testing.assert_close(one, other, rtol=1e-2, atol=1e-6)
    assert [s["step"].item() for s in fused[1]] == [3.0] * len(SHAPES)


def test_other_orders_of_memory():
    """Channels last, and a gradient that is laid out otherwise than its parameter."""
    results = []
    for how in ({"foreach": False}, {"fused": True}):
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(8, 6, 5, 7, generator=generator).to(memory_format=torch.channels_last)
        q, r = torch.randn(40, 30, generator=generator).t(), torch.ones(1, 9)
        params = [nn.Parameter(p), nn.Parameter(q), nn.Parameter(r)]
        optimizer = STAC(params, role="sign", **how)
        for _ in range(3):
            for each in params:
                each.grad = torch.randn(each.shape, generator=generator)
            params[2].grad = torch.ones(1, 1).expand(1, 9)
            optimizer.step()
        results.append(everything(params, optimizer))
    identical(results[1], results[0])


@pytest.mark.parametrize("options", [{}, {"adamw_state_dtype": "bf16"}])
def test_the_adamw_section_in_other_orders_of_memory(options):
    results = []
    for how in ({"foreach": False}, {"fused": True}):
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(8, 6, 5, 7, generator=generator).to(memory_format=torch.channels_last)
        params = [nn.Parameter(p), nn.Parameter(torch.randn(40, 30, generator=generator).t())]
        optimizer = STAC(params, role="adamw", **how, **options)
        for _ in range(3):
            for each in params:
                each.grad = torch.randn(each.shape, generator=generator)
            optimizer.step()
        results.append([each.detach() for each in params])
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("role", ["sign", "adamw"])
def test_the_gradient_of_an_imaginary_part_has_its_sign(role):
    """It is a view of the opposite numbers, whose memory holds them as they are."""
    p = nn.Parameter(torch.ones(1))
    (torch.complex(torch.ones(1), p).conj() * torch.tensor([1j])).real.sum().backward()
    assert p.grad.is_neg()
    assert p.grad.item() == 1
    STAC([p], role=role, fused=True, lr=0.5).step()
    assert p.item() == pytest.approx(0.5)


def test_what_was_asked_for_is_kept():
    p = nn.Parameter(torch.zeros(2))
    assert STAC([p], role="sign").param_groups[0]["fused"] is None
    optimizer = STAC([p], role="sign", fused=True)
    optimizer.add_param_group({"params": [nn.Parameter(torch.zeros(3))], "role": "adamw"})
    for copied in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [g["fused"] for g in copied.param_groups] == [True, True]
        assert copied._step_supports_amp_scaling
    saved = optimizer.state_dict()
    assert [g["fused"] for g in saved["param_groups"]] == [True, True]
    for group in saved["param_groups"]:
        del group["fused"]
    optimizer.load_state_dict(saved)
    assert [g["fused"] for g in optimizer.param_groups] == [True, True]
    assert not STAC([p], role="sign", foreach=True)._step_supports_amp_scaling


@pytest.mark.parametrize("role", ["sign", "adamw"])
def test_a_state_that_was_saved_in_another_order_of_memory_is_laid_out_anew(role):
    p = nn.Parameter(torch.randn(8, 6, 5, 7).to(memory_format=torch.channels_last))
    optimizer = STAC([p], role=role, fused=True, amsgrad=True)
    p.grad = torch.randn_like(p)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    moments = {k: v for k, v in saved["state"][0].items() if k != "step"}
    saved["state"][0] |= {key: moment.contiguous() for key, moment in moments.items()}
    optimizer.load_state_dict(saved)
    for key, moment in moments.items():
        loaded = optimizer.state[p][key]
        assert loaded.stride() == p.stride()
        identical(loaded, moment)
    optimizer.step()


@pytest.mark.parametrize("overflow", [False, True])
def test_a_grad_scaler_leaves_scaling_and_skipping_to_it(overflow):
    """As with torch's fused optimizers; the result is that of the plain path."""
    results = []
    for how in ({"foreach": False}, {"fused": True}):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 2))
        optimizer = STAC(model, weight_decay=0.1, **how)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7)
        for step in range(3):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 9)).square().sum()
            loss = loss * math.inf if overflow and step == 1 else loss
            scaler.scale(loss).backward()
            scaler.step(optimizer)
            scaler.update()
        assert optimizer.nonfinite_skipped_steps == 0
        assert scaler.get_scale() == (64.0 if overflow else 128.0)
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(results[1], results[0])


def test_a_default_device_is_not_where_the_flag_of_bad_gradients_lies():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    optimizer = STAC([p], role="sign", fused=True, lr=0.5)
    with torch.device("meta"):
        optimizer.step()
    assert p.tolist() == [0.5] * 3


def test_threads_change_no_bit():
    results = []
    before = torch.get_num_threads()
    try:
        for threads in (1, 2, 3):
            torch.set_num_threads(threads)
            for state in (None, "int8"):
                results.append(both(torch.float32, {"sign_state_dtype": state}, bad_step=1)[1])
    finally:
        torch.set_num_threads(before)
    for index in (2, 3, 4, 5):
        identical(results[index], results[index % 2])


@pytest.mark.usefixtures("each_kernel")
@pytest.mark.parametrize("threads", [1, 2])
def test_a_bad_entry_is_found_wherever_it_stands(threads):
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        for dtype in PARAMETERS:
            for bad in (math.nan, math.inf, -math.inf):
                for where in (0, 1023, 1024, 4999):
                    p, q = nn.Parameter(torch.zeros(5000, dtype=dtype)), nn.Parameter(torch.ones(3))
                    optimizer = STAC([p, q], role="sign", fused=True)
                    p.grad, q.grad = torch.full_like(p, torch.finfo(dtype).max), torch.ones(3)
                    p.grad[where] = bad
                    optimizer.step()
                    assert optimizer.nonfinite_skipped_steps == 1
                    assert p.abs().max() == 0
    finally:
        torch.set_num_threads(before)


# Torch 2.10 says so of every profile.
@pytest.mark.filterwarnings("ignore:Warning. Profiler clears events")
def test_it_needs_no_temporaries():
    """The plain path holds a chunk; the kernel nothing but its table."""
    p = nn.Parameter(torch.zeros(1 << 20))
    p.grad = torch.ones_like(p)
    optimizer = STAC([p], role="sign", fused=True, sign_state_dtype="bf16")
    optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    largest = max(event.cpu_memory_usage for event in profile.events())
    assert largest < 4096
