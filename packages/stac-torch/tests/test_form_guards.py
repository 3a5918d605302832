"""What torch looks after in each of its operations, and a kernel that follows addresses would not.

Whatever the tensors are, the form that is chosen has the bits of the loop or its error.
"""

from types import SimpleNamespace

import pytest
import torch
from stac_torch import STAC, _forms
from stac_torch._forms import adamw_form, rule_form, sign_form, takes_look, why_no_kernel
from stac_torch._fused import prepare_fused
from stac_torch._records import Slot
from stac_torch._rounding import Noise
from torch import nn
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode

LOOP = {"fused": False, "foreach": False}
LOCKED = "a tensor was made under inference_mode"
ELSEWHERE = "the memory of a tensor does not hold its entries"
TRACED = "the step is traced"


class Subclass(torch.Tensor):
    pass


def values(seed, *shape):
    return torch.randn(*(shape or (64, 64)), generator=torch.Generator().manual_seed(seed))


def escaped(tensor):
    """Return a tensor as a transformation wrapped it, which is over."""
    kept = []
    torch.func.grad(lambda x: (kept.append(x), x.sum())[1])(tensor)
    return kept[0]


def locked(tensor):
    with torch.inference_mode():
        return tensor.clone()


def same(tensor):
    return tensor


# How the parameter, its gradient and its momentum are made of plain tensors; why it is the loop.
GUARDED = [
    (locked, None, same, LOCKED),
    (same, same, locked, LOCKED),
    (same, locked, same, ""),
    (torch._neg_view, same, same, ELSEWHERE),
    (same, torch._neg_view, same, ELSEWHERE),
    (same, same, torch._neg_view, ELSEWHERE),
    (escaped, same, same, ELSEWHERE),
    (same, escaped, same, ELSEWHERE),
    (torch._to_functional_tensor, torch._to_functional_tensor, same, ELSEWHERE),
    (same, same, torch.Tensor.to_mkldnn, ELSEWHERE),
    (same, same, torch.Tensor.to_sparse, ELSEWHERE),
    (same, lambda t: t.as_subclass(Subclass), same, "a tensor is of a subclass"),
    (same, torch._lazy_clone, torch._lazy_clone, ""),
    (same, lambda t: t[:1].expand(64, 64), same, "a tensor has gaps in memory, or an order"),
    (same, same, lambda t: t[:1].expand(64, 64), "a tensor has gaps in memory, or an order"),
    (lambda t: t[:1].expand(64, 64), same, same, "a tensor has gaps in memory, or an order"),
    (same, lambda t: t.t().contiguous().t(), same, "a tensor has gaps in memory, or an order"),
    (same, same, lambda t: t.t().contiguous().t(), "a tensor has gaps in memory, or an order"),
]


def outcome(how, param, grad, momentum):
    """Return what a step makes of tensors, or its error; the form beside it."""
    p = param(values(0))
    if grad is None:
        with torch.inference_mode():
            p.grad = values(1)
    else:
        p.grad = grad(values(1))
    optimizer = STAC([p], role="sign", lr=0.5, weight_decay=0.1, **how)
    optimizer.state[p]["exp_avg"] = momentum(values(2))
    (form,) = optimizer._forms().values()
    try:
        optimizer.step()
    except RuntimeError as error:
        return str(error), form
    stepped = p
    if torch._is_functional_tensor(p):
        stepped = torch._from_functional_tensor(p)
    return stepped.clone().tolist(), form


@pytest.mark.parametrize(("param", "grad", "momentum", "why"), GUARDED)
def test_the_chosen_form_has_the_bits_or_the_error_of_the_loop(param, grad, momentum, why):
    chosen, form = outcome({}, param, grad, momentum)
    assert chosen == outcome(LOOP, param, grad, momentum)[0]
    assert form.name == ("loop" if why else "fused")
    assert form.why.startswith(why)


@pytest.mark.parametrize(("param", "grad", "momentum", "why"), GUARDED)
def test_the_kernel_where_it_is_asked_for_has_these_bits_or_says_why_not(
    param, grad, momentum, why
):
    asked = outcome({"fused": True}, param, grad, momentum)[0]
    if isinstance(asked, str):
        refused = "`fused=True` cannot", "Inplace update to inference tensor outside InferenceMode"
        assert asked.startswith(refused)
    else:
        assert asked == outcome(LOOP, param, grad, momentum)[0]


def test_freed_storage_is_refused():
    p = nn.Parameter(values(0))
    p.grad = values(1)
    optimizer = STAC([p], role="sign", fused=True)
    p.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="cannot write to 'param': its memory does not hold"):
        prepare_fused(optimizer.param_groups, optimizer.state)
    slot = Slot(p, p.grad, {"exp_avg": values(2)})
    assert why_no_kernel([slot]) == ELSEWHERE
    assert not takes_look([p.detach()])


@pytest.mark.parametrize("how", [LOOP, {}, {"fused": True}])
def test_under_inference_mode_what_was_made_there_steps(how):
    with torch.inference_mode():
        p = torch.ones(4)
        optimizer = STAC([p], role="sign", lr=0.5, **how)
        p.grad = torch.ones(4)
        optimizer.step()
    assert p.tolist() == [0.5] * 4
    with pytest.raises(RuntimeError, match="Inplace update to inference tensor outside"):
        optimizer.step()
    assert p.tolist() == [0.5] * 4


class Passes(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class DoublesSigns(TorchFunctionMode):
    def __torch_function__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        return 2 * result if func is torch.Tensor.sign else result


def under_a_dispatch_mode(step, p):
    with Passes():
        assert sign_form({**NEITHER, "fused": True}, [plain(p)]) == ("loop", TRACED)
        step()
    return p.tolist()


def under_a_function_mode(step, p):
    with DoublesSigns():
        step()
    return p.tolist()


def with_a_saved_parameter(step, p):
    with torch.autograd.graph.allow_mutation_on_saved_tensors():
        loss = p.square().sum()
        step()
        loss.backward()
    return p.tolist(), p.grad.tolist()


def in_a_transformation(step, p):
    with pytest.raises(RuntimeError, match="attempted to call in-place operation"):
        torch.func.grad(lambda x: (step(), x.sum())[1])(torch.ones(2))


@pytest.mark.parametrize("how", [{}, {"fused": True}])
@pytest.mark.parametrize(
    "run",
    [under_a_dispatch_mode, under_a_function_mode, with_a_saved_parameter, in_a_transformation],
)
def test_what_follows_operations_follows_those_of_the_loop(run, how):
    results = []
    for each in (LOOP, how):
        p = nn.Parameter(values(0))
        p.grad = values(1)
        results.append(run(STAC([p], role="sign", lr=0.5, **each).step, p))
    assert results[0] == results[1]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("how", [{}, {"fused": True}])
def test_a_trace_holds_the_step(how):
    p = torch.ones(4)
    p.grad = torch.ones(4)
    optimizer = STAC([p], role="sign", lr=0.5, **how)
    optimizer.step()

    def step(x):
        optimizer.step()
        return x + p

    traced = torch.jit.trace(step, (p.clone(),), check_trace=False)
    before = p.clone()
    traced(p.clone())
    assert torch.equal(p, before - 0.5)


def test_a_default_device_follows_nothing():
    with torch.device("cpu"):
        assert not _forms.followed()


def on(device):
    return SimpleNamespace(device=torch.device(device), is_cpu=device == "cpu", dtype=None)


NEITHER = {"fused": None, "foreach": None, "capturable": False, "lr": 0.1}
LIKE_ADAMW = {"exp_avg": on("cuda")}


@pytest.mark.parametrize(
    ("devices", "group", "found"),
    [
        (["cuda"], NEITHER, ("foreach", "the CUDA kernel has not run on a GPU yet, so that only")),
        (["cuda", "cpu"], NEITHER, ("loop", "the CUDA kernel has not run on a GPU yet")),
        (["cuda", "xpu"], NEITHER, ("foreach", "no kernel runs on cuda, xpu")),
        (["mps"], NEITHER, ("loop", "no kernel runs on mps")),
        (["cuda"], {**NEITHER, "foreach": False}, ("loop", "foreach=False")),
        (["cuda"], {**NEITHER, "fused": True}, ("fused", "")),
    ],
)
def test_other_devices(devices, group, found):
    slots = [Slot(on(device), on(device), {}) for device in devices]
    form = sign_form(group, slots)
    assert form.name == found[0]
    assert form.why.startswith(found[1])


@pytest.mark.parametrize(
    ("devices", "more", "name"),
    [
        (["cuda"], {"fused": True}, "fused"),
        (["cuda"], {}, "foreach"),
        (["cuda", "cpu"], {}, "loop"),
        (["cpu"], {}, "loop"),
        (["cpu"], {"foreach": True}, "foreach"),
        (["cuda"], {"foreach": False}, "loop"),
        (["cuda"], {"lr": torch.tensor(0.1)}, "loop"),
        (["cuda"], {"lr": torch.tensor(0.1), "capturable": True}, "foreach"),
    ],
)
def test_the_form_of_the_adamw_section(devices, more, name):
    slots = [Slot(on(device), on(device), LIKE_ADAMW) for device in devices]
    form = adamw_form({**NEITHER, **more}, slots)
    assert form.name == name
    if name != "fused":
        asked = f"foreach={more.get('foreach')}"
        assert form.why == (
            asked if "foreach" in more else "torch's fused AdamW rounds otherwise than its loop"
        )
        # Moments in another dtype are not those that torch's function takes.
        other = [Slot(on("cuda"), on("cuda"), {"exp_avg": values(0)})]
        assert adamw_form({**NEITHER, **more}, other).name == "loop"


def test_a_rule_is_looped_for_one_complex_parameter():
    slots = [plain(torch.ones(2)), plain(torch.ones(2, dtype=torch.complex64))]
    assert rule_form({"foreach": None}, slots[:1]).name == "foreach"
    assert rule_form({"foreach": None}, slots) == ("loop", "no kernel computes this rule")


def coded(**changed):
    codes = torch.zeros(64, 512, dtype=torch.int8)
    state = {"exp_avg": codes, "exp_avg_scale": torch.zeros(64, 2), **changed}
    return Slot(torch.ones(64, 512), torch.ones(64, 512), state)


def plain(param, grad=None, noise=None, **state):
    return Slot(param, torch.ones_like(param) if grad is None else grad, state, noise)


INT8 = "of codes only int8 has a kernel"
ORDER = "a tensor has gaps in memory, or an order"
SHARED = "tensors share memory"
NOT_ITS = "a gradient or a state has not the shape and device"
ROUNDED = Noise(1, torch.tensor(1.0))
WHOLE, PARTS = torch.ones(100), torch.ones(18)


def across(rows, columns, dtype=torch.float32):
    return torch.zeros(columns, rows, dtype=dtype).t()


@pytest.mark.parametrize(
    ("slots", "why"),
    [
        ([coded()], ""),
        ([coded(exp_avg=torch.zeros(64, 512))], INT8),
        ([coded(exp_avg_scale=torch.zeros(64, 2, dtype=torch.bfloat16))], INT8),
        ([coded(exp_avg_scale=torch.zeros(64, 1))], INT8),
        ([coded(exp_avg_scale=torch.zeros(2, 64).t())], INT8),
        ([plain(torch.ones(64, 64), exp_avg_scale=torch.zeros(64, 1))], INT8),
        ([coded(), plain(across(3, 4), exp_avg=across(3, 4), step=torch.zeros(()))], ""),
        ([coded(exp_avg=across(64, 512, torch.int8))], ORDER),
        ([plain(across(3, 4, torch.bfloat16), noise=ROUNDED)], ORDER),
        ([plain(across(3, 4), torch.ones(3, 4))], ORDER),
        ([plain(across(3, 4), across(3, 4)), plain(across(3, 4), torch.ones(3, 4))], ORDER),
        ([plain(across(3, 4), exp_avg=torch.ones(3, 4))], ORDER),
        ([plain(torch.ones(6, 4)[::2], torch.ones(6, 4)[::2])], ORDER),
        ([plain(torch.ones(4, dtype=torch.bfloat16), noise=ROUNDED)], ""),
        (
            [plain(torch.ones(4)), plain(torch.ones(4).bfloat16(), noise=ROUNDED.shifted(4))],
            "stochastic rounding of a shard has no kernel",
        ),
        ([plain(torch.ones(4), exp_avg=torch.ones(4, device="meta"))], NOT_ITS),
        ([plain(torch.ones(4), torch.ones(4, device="meta"))], NOT_ITS),
        ([plain(torch.ones(4), torch.ones(5))], NOT_ITS),
        ([plain(torch.ones(4), exp_avg=torch.ones(5))], NOT_ITS),
        ([plain(torch.ones(4), exp_avg=torch.ones(4, dtype=torch.float8_e5m2))], "no kernel reads"),
        ([plain(torch.ones(4), torch.ones(4, dtype=torch.float8_e5m2))], "no kernel reads"),
        ([plain(WHOLE[5:9], WHOLE[:4]), plain(torch.ones(9), WHOLE[:9])], SHARED),
        ([plain(WHOLE[50:59], WHOLE[:9]), plain(torch.ones(90), WHOLE[:90])], SHARED),
        ([plain(WHOLE[:50]), plain(torch.ones(9), WHOLE[20:29])], SHARED),
        ([plain(torch.ones(50), exp_avg=WHOLE[:50]), plain(WHOLE[40:50])], SHARED),
        ([plain(torch.ones(9), exp_avg=WHOLE[:9]), plain(torch.ones(4), WHOLE[5:9])], SHARED),
        ([plain(torch.ones(9), WHOLE[:9]), plain(torch.ones(9), WHOLE[5:14])], ""),
        ([plain(torch.ones(90), WHOLE[:90]), plain(torch.ones(9), WHOLE[5:14])], ""),
        ([plain(WHOLE[90:]), plain(torch.ones(9), WHOLE[:9]), plain(torch.ones(0))], ""),
        # Gradients that overlap one another, beside what is empty or begins where another ends.
        (
            [
                plain(torch.ones(0)),
                plain(torch.ones(9), WHOLE[:9]),
                plain(torch.ones(9), WHOLE[5:14]),
            ],
            "",
        ),
        ([plain(PARTS[:9], WHOLE[:9]), plain(PARTS[9:18], WHOLE[5:14])], ""),
        ([plain(WHOLE[14:23], WHOLE[:9]), plain(torch.ones(9), WHOLE[5:14])], ""),
    ],
)
def test_why_no_kernel(slots, why):
    assert why_no_kernel(slots).startswith(why)
    assert bool(why_no_kernel(slots)) == bool(why)


def test_codes_that_share_memory():
    slot = coded()
    codes = slot.state["exp_avg"].view(torch.float32).view(-1)
    assert why_no_kernel([slot, plain(codes[:9])]) == SHARED
    assert why_no_kernel([slot, plain(torch.ones(9), codes[5:14])]) == SHARED


@pytest.mark.parametrize(
    ("grads", "takes"),
    [
        ([values(0)], True),
        ([values(0), values(1).t()], True),
        ([values(0), values(1)[:, ::2]], False),
        ([values(0).as_subclass(Subclass)], False),
        ([values(0).to(torch.float8_e5m2)], False),
        ([torch._efficientzerotensor(3)], False),
        ([escaped(values(0))], False),
    ],
)
def test_gradients_that_the_kernel_looks_at(grads, takes, monkeypatch):
    assert takes_look(grads) == takes
    with Passes():
        assert not takes_look(grads)
    monkeypatch.setattr(_forms, "cpu_kernel", lambda: None)
    assert not takes_look(grads)
