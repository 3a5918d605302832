"""The form that is chosen where none is asked for: the bits of the loop, and why it is not another.

Bits are compared as bytes, so that -0.0 is not 0.0.
"""

import copy
import os
import pickle
import signal

import pytest
import torch
from stac_torch import STAC, STAM, _forms
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

LOOP = {"fused": False, "foreach": False}
SHAPES = [(40, 300), (16, 256), (257,), (), (3, 0), (8, 6, 100)]
LARGE = (3, 100_003)
OPTIONS = [
    {},
    {"weight_decay": 0.1, "maximize": True, "amsgrad": True},
    {"sign_momentum": 0.0, "weight_decay": 0.1},
    {"lr": torch.tensor(3e-3), "weight_decay": 0.1, "sign_lr_scale": 0.75},
    {"max_grad_norm": 0.5},
    {"nonfinite": "propagate"},
    {"capturable": True},
]


def contiguous(shape, generator):
    return torch.randn(shape, generator=generator)


def transposed(shape, generator):
    return torch.randn(shape[::-1], generator=generator).permute(*reversed(range(len(shape))))


def with_gaps(shape, generator):
    return torch.randn((*shape, 2), generator=generator)[..., 0]


def bits(tensor):
    # A nan is one, whatever its bits.
    whole = tensor.detach().nan_to_num(nan=123.0) if tensor.is_floating_point() else tensor
    return whole.reshape(-1).contiguous().view(torch.uint8).numpy().tobytes()


def run(how, role, dtype, options, layout=contiguous, shapes=SHAPES, bad_step=None, grad=None):
    generator = torch.Generator().manual_seed(0)
    params = [nn.Parameter(layout(s, generator).to(dtype)) for s in shapes]
    optimizer = STAC([(str(i), p) for i, p in enumerate(params)], role=role, **options, **how)
    for step in range(6):
        for p in params:
            g = 10 ** torch.empty(p.shape).uniform_(-6, 0, generator=generator)
            g = g * torch.randn(p.shape, generator=generator)
            g = g * (torch.rand(p.shape, generator=generator) > 0.05)
            p.grad = torch.empty_like(p).copy_(g)
            if grad is not None:
                p.grad_dtype = None
                p.grad = g.to(grad)
        if step == bad_step:
            params[0].grad.view(-1)[3] = float("nan")
        optimizer.step()
    states = [dict(optimizer.state.get(p, {})) for p in params]
    found = [bits(p) for p in params]
    return found, [{key: bits(value) for key, value in s.items()} for s in states], optimizer


def assert_bits_of_the_loop(role, dtype, options, **more):
    given = {k: v.clone() if isinstance(v, torch.Tensor) else v for k, v in options.items()}
    plain, chosen = run(LOOP, role, dtype, given, **more), run({}, role, dtype, given, **more)
    assert chosen[:2] == plain[:2]
    assert [list(s) for s in chosen[1]] == [list(s) for s in plain[1]]
    assert chosen[2].nonfinite_skipped_steps == plain[2].nonfinite_skipped_steps
    assert [g["fused"] for g in chosen[2].param_groups] == [None]
    return chosen[2]


@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("state", [None, "float32", "bfloat16", "float16", "int8"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_sign_section_has_the_bits_of_the_loop(dtype, state, options):
    bad = None if options.get("capturable") else 2
    optimizer = assert_bits_of_the_loop(
        "sign", dtype, {**options, "sign_state_dtype": state}, bad_step=bad
    )
    assert form(optimizer) == ("fused", "")


@pytest.mark.parametrize("options", [o for o in OPTIONS if "capturable" not in o])
@pytest.mark.parametrize("state", [None, "bfloat16"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
def test_the_adamw_section_has_the_bits_of_the_loop_and_of_torch(dtype, state, options):
    options = {**options, "adamw_state_dtype": state}
    optimizer = assert_bits_of_the_loop("adamw", dtype, options, bad_step=2)
    assert form(optimizer)[0] == "loop"


@pytest.mark.parametrize(
    "options", [{}, {"amsgrad": True, "weight_decay": 0.1}, {"maximize": True}]
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.complex64])
def test_a_large_tensor_in_pieces_is_that_of_torch(dtype, options):
    results = []
    for cls in (STAC, torch.optim.AdamW):
        generator = torch.Generator().manual_seed(0)
        p = nn.Parameter(torch.randn(LARGE, dtype=dtype, generator=generator))
        if cls is STAC:
            optimizer = STAC([p], role="adamw", lr=1e-3, nonfinite="propagate", **options)
        else:
            optimizer = cls([p], lr=1e-3, **{"weight_decay": 0.0, **options})
        for _ in range(3):
            p.grad = torch.randn(LARGE, dtype=dtype, generator=generator)
            optimizer.step()
        results.append((p.detach(), *optimizer.state[p].values()))
    for ours, theirs in zip(*results, strict=True):
        assert torch.equal(ours, theirs)


def test_a_large_tensor_skips_and_clips_in_pieces():
    for options in ({"max_grad_norm": 0.5}, {"lr": torch.tensor(1e-3)}):
        plain = run(
            {"foreach": True} if "lr" not in options else LOOP,
            "adamw",
            torch.float32,
            options,
            shapes=[LARGE, (3,)],
        )
        chosen = run({}, "adamw", torch.float32, options, shapes=[LARGE, (3,)])
        assert chosen[:2] == plain[:2]


@pytest.mark.parametrize(
    ("layout", "chosen"), [(transposed, "fused"), (with_gaps, "loop")], ids=["transposed", "gaps"]
)
@pytest.mark.parametrize("role", ["sign", "adamw"])
def test_layouts(layout, chosen, role):
    optimizer = assert_bits_of_the_loop(role, torch.float32, {}, layout=layout, shapes=SHAPES[:2])
    assert form(optimizer)[0] == (chosen if role == "sign" else "loop")


@pytest.mark.parametrize("state", [None, "int8", "int4"])
def test_stochastic_rounding_has_the_bits_of_the_loop(state):
    options = {"stochastic_rounding": True, "sign_state_dtype": state}
    optimizer = assert_bits_of_the_loop("sign", torch.bfloat16, options, bad_step=1)
    assert form(optimizer)[0] == ("loop" if state == "int4" else "fused")


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("maximize", [False, True])
def test_a_negative_zero_stays_one(maximize, momentum):
    p = nn.Parameter(torch.tensor([-0.0]))
    p.grad = torch.zeros(1)
    STAC([p], role="sign", sign_momentum=momentum, maximize=maximize).step()
    assert p.signbit().item()


def test_gradients_in_another_dtype():
    assert_bits_of_the_loop("sign", torch.bfloat16, {}, grad=torch.float32)


def test_complex_parameters_take_the_kernel_as_reals():
    results = []
    for how in (LOOP, {}):
        p = nn.Parameter(torch.linspace(-1, 1, 40).to(torch.complex64).view(4, 10))
        optimizer = STAC([p], role="sign", **how)
        for step in range(4):
            p.grad = torch.full_like(p, complex(step - 1.5, 1)).conj()
            optimizer.step()
        results.append(torch.view_as_real(p.detach()).clone())
    assert torch.equal(*results)
    assert form(optimizer)[0] == "fused"


def form(optimizer):
    (found,) = set(
        optimizer._forms(tallied=getattr(optimizer, "_track_diagnostics", False)).values()
    )
    return found


class Subclass(torch.Tensor):
    pass


def sharing():
    whole = torch.zeros(40)
    return [nn.Parameter(whole[:30]), nn.Parameter(whole[20:])]


def aliased():
    p = nn.Parameter(torch.ones(4))
    p.grad = p.detach()
    return [p]


REASONS = [
    (lambda: [torch.zeros(3)], {"fused": False}, "fused=False"),
    (lambda: [torch.zeros(3)], {"foreach": False}, "foreach=False"),
    (lambda: [torch.zeros(3)], {"foreach": True}, "foreach=True"),
    (lambda: [torch.zeros(3)], {"track_diagnostics": True}, "track_diagnostics=True counts in"),
    (lambda: [torch.zeros(3, device="meta")], {}, "no kernel runs on meta"),
    (lambda: [torch.zeros(3).as_subclass(Subclass)], {}, "a tensor is of a subclass"),
    (lambda: [torch._neg_view(torch.zeros(3))], {}, "the memory of a tensor does not hold"),
    (lambda: [torch.zeros(3, dtype=torch.float8_e5m2)], {}, "no kernel reads torch.float8_e5m2"),
    (lambda: [torch.zeros(64, 64)], {"sign_state_dtype": "int4"}, "of codes only int8 has a"),
    (lambda: [torch.zeros(6, 8)[:, ::2]], {}, "a tensor has gaps in memory, or an order"),
    (lambda: [torch.zeros(1, 3).expand(4, 3)], {}, "a tensor has gaps in memory, or an order"),
    (lambda: [torch.zeros(90, 80).t()], {"sign_state_dtype": "int8"}, "gaps in memory, or an"),
]


@pytest.mark.parametrize(("tensors", "options", "why"), REASONS)
def test_describe_says_why_it_is_not_the_kernel(tensors, options, why):
    optimizer = STAC(tensors(), role="sign", **options)
    name = "foreach" if options.get("foreach") else "loop"
    assert form(optimizer).name == name
    last = optimizer.describe().splitlines()[-1]
    assert last.startswith(f"sign, {name}: ")
    assert why in last


def test_no_kernel(monkeypatch):
    monkeypatch.setattr(_forms, "cpu_kernel", lambda: None)
    monkeypatch.setattr(_forms, "why_no_cpu_kernel", lambda: "there is none for this processor")
    optimizer = assert_bits_of_the_loop("sign", torch.float32, {}, bad_step=2)
    assert form(optimizer) == ("loop", "there is none for this processor")


@pytest.mark.parametrize("fused", [None, True])
def test_a_gradient_of_zeros_without_memory_is_read_as_zeros(fused):
    """Torch's derivatives make them; at their address, 0, a kernel would end the process."""
    p = nn.Parameter(torch.ones(3))
    p.grad = torch._efficientzerotensor(3)
    optimizer = STAC([p], role="sign", fused=fused, weight_decay=0.1, lr=0.5)
    assert fused or form(optimizer) == ("loop", "the memory of a tensor does not hold its entries")
    optimizer.step()
    assert p.tolist() == pytest.approx([0.95] * 3)
    optimizer.state[p]["exp_avg"] = torch._efficientzerotensor(3)
    with pytest.raises(RuntimeError, match=r"cannot write to 'exp|ZeroTensors are immut"):
        optimizer.step()


@pytest.mark.parametrize("params", [sharing, aliased])
def test_what_shares_memory_is_stepped_in_its_order(params):
    results = []
    for how in (LOOP, {}):
        given = params()
        optimizer = STAC(given, role="sign", lr=0.5, **how)
        for _ in range(3):
            for p in given:
                p.grad = torch.ones_like(p) if p.grad is None else p.grad
            optimizer.step()
        results.append([p.detach().clone() for p in given])
    torch.testing.assert_close(*results, rtol=0, atol=0)
    assert form(optimizer) == ("loop", "tensors share memory")


def test_gradients_may_share_memory():
    one = torch.ones(9)
    p, q, r = (nn.Parameter(torch.zeros(n)) for n in (9, 9, 4))
    for t in (p, q, r):
        t.grad = one[: t.numel()]
    assert form(STAC([p, q, r], role="sign")).name == "fused"


def test_what_no_longer_belongs_to_a_parameter_takes_the_loop_and_its_error():
    p = nn.Parameter(torch.ones(64, 64))
    optimizer = STAC([p], role="sign")
    p.grad = torch.ones(64, 64)
    optimizer.step()
    p.grad = None
    p.data = torch.ones(200, 64)
    p.grad = torch.ones(200, 64)
    assert form(optimizer).why.startswith("a gradient or a state has not the shape and device")
    with pytest.raises(RuntimeError, match="must match the size"):
        optimizer.step()


def test_a_gradient_of_another_shape_takes_the_loop_and_its_error():
    p = nn.Parameter(torch.ones(64))
    optimizer = STAC([p], role="sign", sign_momentum=0.0)
    p.grad = torch.ones(64)
    # The gradient stays as it was.
    p.data = torch.ones(200)
    assert form(optimizer).why.startswith("a gradient or a state has not the shape and device")
    with pytest.raises(RuntimeError, match="must match the size"):
        optimizer.step()
    assert p.tolist() == [1.0] * 200


@pytest.mark.parametrize("how", [{}, {"fused": True}, LOOP])
def test_a_graph_notices_that_its_parameters_have_moved(how):
    p = nn.Parameter(torch.ones(4))
    optimizer = STAC([p], role="sign", **how)
    loss = p.square().sum()
    p.grad = torch.ones(4)
    optimizer.step()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_a_dispatch_mode_sees_every_operation():
    seen = []

    class Watch(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            seen.append(func)
            return func(*args, **(kwargs or {}))

    p = nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    optimizer = STAC([p], role="sign", lr=0.5)
    with Watch():
        assert form(optimizer).why == "the step is traced"
        optimizer.step()
    assert p.tolist() == [0.5] * 4
    assert torch.ops.aten.sign.default in seen
    # Weights in codes may know how to add, as torch's optimizers do, and no other operation.
    assert torch.ops.aten.add_.Tensor in seen
    assert torch.ops.aten.sub_.Tensor not in seen


def test_inside_torch_func_it_is_the_loop():
    p = nn.Parameter(torch.ones(4))
    optimizer = STAC([p], role="sign")

    def f(x):
        assert form(optimizer).why == "the step is traced"
        return x.sum()

    torch.func.grad(f)(torch.ones(2))
    assert form(optimizer).name == "fused"


def test_copies_and_state_dicts_say_nothing_of_the_choice():
    p = nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    optimizer = STAC([p], role="sign")
    optimizer.step()
    for copied in (optimizer, copy.deepcopy(optimizer), pickle.loads(pickle.dumps(optimizer))):
        assert [g["fused"] for g in copied.state_dict()["param_groups"]] == [None]
        assert not copied._step_supports_amp_scaling
    assert list(optimizer.state[p]) == ["exp_avg"]


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_a_forked_process_steps_too():
    """What OpenMP knows of the parent's threads would wait for them for ever."""
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        params = [nn.Parameter(torch.zeros(1 << 12)) for _ in range(40)]
        optimizer = STAC(params, role="sign", lr=0.5)
        for p in params:
            p.grad = torch.ones(1 << 12)
        optimizer.step()
        shared = torch.zeros(1).share_memory_()
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(100)
            optimizer.step()
            shared.copy_(params[-1][0].detach())
            os._exit(0)
        assert os.waitpid(child, 0)[1] == 0
        assert shared.item() == -1.0
    finally:
        torch.set_num_threads(before)


@pytest.mark.parametrize(("role", "state"), [("sign", "int4"), ("adamw", "int8")])
def test_fused_in_mid_run_on_codes_without_a_kernel(role, state):
    p = nn.Parameter(torch.ones(64, 64))
    p.grad = torch.ones(64, 64)
    optimizer = STAC([p], role=role, **{f"{role}_state_dtype": state})
    optimizer.step()
    optimizer.param_groups[0]["fused"] = True
    match = rf"`fused=True` has no kernel for an exp_avg in {state}.*: set group\['fused'\] to None"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()


def test_keys_of_state_have_one_order():
    p = nn.Parameter(torch.ones(64, 64, dtype=torch.bfloat16))
    p.grad = torch.ones_like(p)
    late = STAC([p], role="sign")
    late.step()
    late.param_groups[0]["stochastic_rounding"] = True
    late.step()
    early = STAC([p], role="sign", stochastic_rounding=True)
    early.step()
    assert list(late.state[p]) == list(early.state[p]) == ["step", "exp_avg"]


def test_a_rule_has_a_form_too():
    p, c = nn.Parameter(torch.ones(4)), nn.Parameter(torch.ones(4, dtype=torch.complex64))
    assert form(STAM([p])) == ("foreach", "no kernel computes this rule")
    assert form(STAM([c])).name == "loop"
    assert form(STAM([p], foreach=False)) == ("loop", "foreach=False")
