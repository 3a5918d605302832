"""STAM and STAMLite: their forms, options, state dicts and refusals."""

import copy
import math
import pickle
import re

import pytest
import torch
from stac_torch import STAM, STAMLite
from torch import nn

OPTIMIZERS = [STAM, STAMLite]
SHAPES = [(40, 30), (7,), (), (3, 0), (5, 6, 20), (300, 100)]


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(0)
    drawn = torch.complex64 if dtype.is_complex else torch.float32
    made = [0.1 * torch.randn(s, generator=generator, dtype=drawn) for s in shapes]
    return [nn.Parameter(value.to(dtype)) for value in made]


def give_gradients(params, step):
    generator = torch.Generator().manual_seed(100 + step)
    for p in params:
        drawn = torch.complex64 if p.is_complex() else torch.float32
        scale = 10 ** torch.empty(()).uniform_(-3, 0, generator=generator)
        p.grad = (scale * torch.randn(p.shape, generator=generator, dtype=drawn)).to(p.dtype)


def train(params, optimizer, steps, first=0):
    for step in range(first, first + steps):
        give_gradients(params, step)
        optimizer.step()


def everything(params, optimizer):
    return [p.detach() for p in params], [dict(optimizer.state[p]) for p in params]


def identical(one, other):
    torch.testing.assert_close(one, other, rtol=0, atol=0, equal_nan=True)


OPTIONS = [
    {},
    {"maximize": True, "weight_decay": 0.0, "lr": torch.tensor(2e-3)},
    {"stat_sample": 64, "exp_avg_dtype": "bf16"},
    {"parity": "stam-optimizer-0.1.0", "nonfinite": "propagate"},
]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_recorded_programs_have_the_bits_of_calls(monkeypatch, cls, options, dtype):
    """In place, many small tensors as one, and large ones in pieces."""
    monkeypatch.setattr("stac_torch._records.CPU_CHUNK_ENTRIES", 20_000)
    results = []
    for foreach in (False, True):
        params = parameters(dtype)
        optimizer = cls(params, foreach=foreach, **options)
        train(params, optimizer, 6)
        results.append(everything(params, optimizer))
    # Sums of segments are taken in float64, which is exact for all others.
    exact = 1e-13 if dtype is torch.float64 else 0
    torch.testing.assert_close(results[1], results[0], rtol=exact, atol=exact)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_programs_write_in_place(cls):
    """A step needs two pieces beside the tensors, where calls make one for each operation."""
    params = parameters(shapes=[(400, 500)])
    optimizer = cls(params, nonfinite="propagate")
    give_gradients(params, 0)
    optimizer.step()
    with torch.profiler.profile(profile_memory=True) as profile:
        optimizer.step()
    made = [event.cpu_memory_usage for event in profile.events()]
    assert 0 < sum(size > 400_000 for size in made) <= 5


def test_stochastic_rounding_keeps_small_steps():
    moved = {}
    for stochastic in (False, True):
        p = nn.Parameter(torch.full((64, 64), 1.0, dtype=torch.bfloat16))
        optimizer = STAM([("w", p)], weight_decay=0.0, stochastic_rounding=stochastic)
        for _ in range(10):
            p.grad = torch.ones_like(p)
            optimizer.step()
        moved[stochastic] = 1 - p.float().mean().item()
    assert moved[False] == 0
    assert moved[True] == pytest.approx(0.01, rel=0.1)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_complex_state(cls):
    params = parameters(torch.complex64, [(4, 3), ()])
    optimizer = cls(params)
    train(params, optimizer, 3)
    state = optimizer.state[params[0]]
    assert state["exp_avg"].dtype is torch.complex64
    if cls is STAM:
        assert state["exp_avg_sq"].dtype is torch.float32
    else:
        assert state["e1"].dtype is torch.complex64
    saved = copy.deepcopy(optimizer.state_dict())
    optimizer.load_state_dict(saved)
    identical(optimizer.state_dict()["state"], saved["state"])
    with pytest.raises(ValueError, match="cannot hold the moment of a complex parameter of shape"):
        cls(params, exp_avg_dtype="bf16")


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_a_complex_moment_narrower_than_its_parameter(cls):
    p = nn.Parameter(torch.zeros(3, dtype=torch.complex128))
    optimizer = cls([p], exp_avg_dtype="float32")
    p.grad = torch.tensor([2 - 4j, 1e-3, 1e100j], dtype=torch.complex128)
    optimizer.step()
    exp_avg = optimizer.state[p]["exp_avg"]
    share = 1 - optimizer.state[p]["beta1"]
    largest = torch.finfo(torch.float32).max
    expected = torch.cat([share * p.grad[:2], torch.tensor([largest * 1j])]).to(torch.complex64)
    torch.testing.assert_close(exp_avg, expected)


def test_the_state_is_named_as_the_rule_names_it():
    params = parameters(torch.bfloat16, [(4, 3)])
    for cls, keys in (
        (STAM, ["step", "exp_avg", "exp_avg_sq", "s2", "tau", "b1_prod", "beta1", "s"]),
        (STAMLite, ["step", "exp_avg", "e1", "e2", "beta1", "b1_prod", "s"]),
    ):
        optimizer = cls(params)
        train(params, optimizer, 1)
        state = optimizer.state[params[0]]
        assert list(state) == keys
        dtypes = {key: value.dtype for key, value in state.items()}
        first = torch.bfloat16 if cls is STAM else torch.float32
        assert dtypes == {key: first if key == "exp_avg" else torch.float32 for key in keys}
        assert {value.shape for key, value in state.items() if "exp" not in key} == {()}


@pytest.mark.parametrize("foreach", [False, None])
@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("capturable", [False, True])
def test_a_bad_step_is_left_out(cls, capturable, foreach):
    params = parameters()
    optimizer = cls(params, capturable=capturable, foreach=foreach)
    train(params, optimizer, 2)
    before = copy.deepcopy(everything(params, optimizer))
    give_gradients(params, 2)
    params[0].grad[1, 2] = math.nan
    optimizer.step()
    identical(everything(params, optimizer), before)
    assert optimizer.nonfinite_skipped_steps == 1
    train(params, optimizer, 1, first=2)
    other = parameters()
    plain = cls(other)
    train(other, plain, 3)
    identical(everything(params, optimizer), everything(other, plain))


def test_raise_and_propagate():
    params = parameters(shapes=[(4,)])
    params[0].grad = torch.tensor([1.0, math.inf, 1.0, 1.0])
    with pytest.raises(RuntimeError, match="a gradient is not finite; nothing was changed"):
        STAM(params, nonfinite="raise").step()
    optimizer = STAM(params, nonfinite="propagate", weight_decay=0.0)
    optimizer.step()
    assert params[0].isfinite().tolist() == [True, False, True, True]
    assert optimizer.state[params[0]]["beta1"] == pytest.approx(0.9)


@pytest.mark.parametrize("cls", OPTIMIZERS)
@pytest.mark.parametrize("supplied", [False, True])
def test_a_grad_scaler(cls, supplied):
    """It unscales and skips by itself; and where it leaves both to a step, the step does it."""
    results = []
    for scaled in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(9, 8), nn.Linear(8, 2))
        optimizer = cls(model)
        scaler = torch.amp.GradScaler("cpu", init_scale=2.0**7, enabled=scaled and not supplied)
        for step in range(4):
            optimizer.zero_grad()
            loss = model(torch.ones(4, 9)).square().sum() * (math.inf if step == 2 else 1.0)
            scaler.scale(loss).backward()
            if scaled and supplied:
                for p in model.parameters():
                    p.grad.mul_(128.0)
                optimizer.grad_scale = torch.tensor(128.0)
                optimizer.found_inf = torch.tensor(float(step == 2))
            scaler.step(optimizer)
            scaler.update()
        # The moments too: the steps alone would not tell a scaled gradient.
        results.append(everything(list(model.parameters()), optimizer))
        assert optimizer.nonfinite_skipped_steps == (0 if scaled else 1)
    torch.testing.assert_close(results[1], results[0])


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_saved_states_go_on(cls):
    params = parameters()
    optimizer = cls(list(zip("abcdef", params, strict=True)), exp_avg_dtype="float16")
    train(params, optimizer, 3)
    copies = [copy.deepcopy((params, optimizer)), pickle.loads(pickle.dumps((params, optimizer)))]
    loaded = [nn.Parameter(p.detach().clone()) for p in params]
    fresh = cls(loaded)
    fresh.load_state_dict(optimizer.state_dict())
    assert fresh.param_groups[0]["param_names"] == list("abcdef")
    assert fresh.state[loaded[0]]["exp_avg"].dtype is torch.float16
    pointers = [
        {t.data_ptr() for s in o.state.values() for t in s.values() if t.numel()}
        for o in (optimizer, fresh)
    ]
    assert not pointers[0] & pointers[1]
    for each, own in (*copies, (loaded, fresh), (params, optimizer)):
        train(each, own, 2, first=3)
    for each, own in (*copies, (loaded, fresh)):
        identical(everything(each, own), everything(params, optimizer))


FAULTS = [
    ("del s2", "lacks the state ['s2'], which STAM needs: the state dict is damaged"),
    ("del exp_avg", "lacks the state ['exp_avg'], which STAM needs"),
    ("add e1", "has the state ['e1'], which STAM does not know"),
    ("long tau", "saved tau must be one number, got shape (2,)"),
    ("int exp_avg", "saved exp_avg is torch.int64, the parameter needs a floating dtype"),
    ("shape exp_avg_sq", "saved exp_avg_sq has shape (2,), the parameter needs (3,)"),
]


@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_a_damaged_state_changes_nothing(fault, message):
    p = nn.Parameter(torch.ones(3))
    optimizer = STAM([p])
    p.grad = torch.ones(3)
    optimizer.step()
    saved = copy.deepcopy(optimizer.state_dict())
    what, key = fault.split()
    state = saved["state"][0]
    if what == "del":
        del state[key]
    else:
        state[key] = {
            "add": torch.tensor(0.0),
            "long": torch.zeros(2),
            "int": torch.zeros(3, dtype=torch.int64),
            "shape": torch.zeros(2),
        }[what]
    before = copy.deepcopy(optimizer.state_dict())
    with pytest.raises(ValueError, match=re.escape(message)):
        optimizer.load_state_dict(saved)
    identical(optimizer.state_dict()["state"], before["state"])


def test_another_optimizers_state_is_refused():
    p = nn.Parameter(torch.ones(3))
    p.grad = torch.ones(3)
    theirs = torch.optim.AdamW([p])
    theirs.step()
    missing = "['b1_prod', 'beta1', 's', 's2', 'tau']"
    with pytest.raises(ValueError, match=re.escape(f"lacks the state {missing}, which STAM needs")):
        STAM([p]).load_state_dict(theirs.state_dict())


def test_groups_have_their_own_options():
    a, b = parameters(shapes=[(3, 2), (3,)])
    optimizer = STAM([("a", a)], lr=0.1)
    optimizer.add_param_group({"params": [("b", b)], "lr": 0.5, "betas": [0.8, 0.99]})
    assert optimizer.param_groups[1]["param_names"] == ["b"]
    assert optimizer.param_groups[1]["betas"] == (0.8, 0.99)
    before = [p.detach().clone() for p in (a, b)]
    for p in (a, b):
        p.grad = torch.ones_like(p)
    optimizer.step()
    for p, old, lr in zip((a, b), before, (0.1, 0.5), strict=True):
        torch.testing.assert_close(p.detach(), old * (1 - lr * 0.01) - lr)
    assert set(optimizer.diagnostics()) == {"a", "b"}
    with pytest.raises(ValueError, match="some parameters appear in more than one"):
        optimizer.add_param_group({"params": [("a", a)]})


def test_norms_and_biases_are_not_decayed_if_so_asked():
    model = nn.Sequential(nn.Linear(3, 3), nn.LayerNorm(3))
    optimizer = STAM(model, weight_decay=0.1, exclude_bias_and_norm_from_weight_decay=True)
    found = [(g["param_names"], g["weight_decay"]) for g in optimizer.param_groups]
    assert found == [(["0.weight"], 0.1), (["0.bias", "1.weight", "1.bias"], 0.0)]
    bare = STAMLite(model.parameters(), exclude_bias_and_norm_from_weight_decay=True)
    assert [len(g["params"]) for g in bare.param_groups] == [1, 3]


def test_describe_and_diagnostics():
    model = nn.Linear(30, 20)
    optimizer = STAM(model)
    assert optimizer.diagnostics() == {}
    expected = [
        "parameter  form     entries  state bytes",
        "weight     foreach      600        4,824",
        "bias       foreach       20          184",
        "total                   620        5,008",
        "foreach: no kernel computes this rule",
    ]
    assert optimizer.describe().splitlines() == expected
    for _ in range(300):
        for p in model.parameters():
            p.grad = torch.randn_like(p)
        optimizer.step()
    assert optimizer.describe().splitlines() == expected
    report = optimizer.diagnostics()["weight"]
    # Jensen: whatever the data.
    assert report.beta1 == pytest.approx(0.9 * (1 - 0.2 * report.z / (1 + report.z)))
    assert report.variance == optimizer.state[model.weight]["s2"].item()


def test_without_adaptation_it_is_adamw():
    ours, theirs = parameters(), parameters()
    optimizers = STAM(ours, adapt_strength=0.0), torch.optim.AdamW(theirs)
    for params, optimizer in zip((ours, theirs), optimizers, strict=True):
        train(params, optimizer, 20)
    torch.testing.assert_close(ours, theirs, rtol=2e-6, atol=1e-6)


def test_a_schedule_of_tensor_rates():
    results = []
    for lr in (0.1, torch.tensor(0.1)):
        params = parameters()
        optimizer = STAM(params, lr=lr)
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=6)
        for step in range(5):
            train(params, optimizer, 1, first=step)
            scheduler.step()
        results.append([p.detach() for p in params])
        assert optimizer.param_groups[0]["betas"][0] != 0.9
    torch.testing.assert_close(results[1], results[0])


REFUSED = [
    ({"lr": -1.0}, ValueError, "lr must be > 0 and finite, got -1.0"),
    ({"lr": torch.tensor(-1.0)}, ValueError, "lr must be > 0 and finite, got -1.0"),
    ({"lr": torch.tensor(math.nan)}, ValueError, "lr must be > 0 and finite, got nan"),
    ({"lr": torch.ones(2)}, ValueError, "Tensor lr must be 1-element"),
    ({"lr": "fast"}, TypeError, "lr must be a number, got 'fast' (str)"),
    ({"betas": 0.9}, ValueError, "betas must be two numbers, got 0.9"),
    ({"betas": (1.0, 0.9)}, ValueError, "betas[0] must be in the open interval (0, 1), got 1.0"),
    ({"betas": (0.9, 0.0)}, ValueError, "betas[1] must be in the open interval (0, 1), got 0.0"),
    ({"betas": (torch.tensor(0.9), 0.99)}, TypeError, "betas[0] must be a number, got a tensor"),
    ({"adapt_strength": 0.7}, ValueError, "adapt_strength must be in [0, 0.5], got 0.7"),
    ({"stat_sample": 0}, ValueError, "stat_sample must be >= 1, got 0"),
    ({"parity": "0.2"}, ValueError, "parity must be None or 'stam-optimizer-0.1.0', got '0.2'"),
    ({"exp_avg_dtype": "int8"}, ValueError, "exp_avg_dtype must be None, a dtype among"),
    ({"maximize": 1}, TypeError, "maximize must be True or False, got 1"),
    ({"foreach": "yes"}, TypeError, "foreach must be None, True or False, got 'yes'"),
    ({"nonfinite": "zero"}, ValueError, "nonfinite must be 'skip', 'raise' or 'propagate'"),
    (
        {"nonfinite": "raise", "capturable": True},
        ValueError,
        "nonfinite='raise' has to read the gradients, which a captured graph cannot",
    ),
    ({"fused": True}, TypeError, "unexpected keyword argument 'fused'"),
    ({"differentiable": True}, TypeError, "unexpected keyword argument 'differentiable'"),
]


@pytest.mark.parametrize(("options", "error", "message"), REFUSED)
@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_refused(cls, options, error, message):
    with pytest.raises(error, match=re.escape(message)):
        cls([nn.Parameter(torch.ones(2))], **options)


def test_a_rate_of_0_leaves_parameters_where_they_are():
    params = parameters()
    before = [p.detach().clone() for p in params]
    train(params, STAM(params, lr=0.0), 2)
    identical([p.detach() for p in params], before)


def test_sparse_gradients_are_refused():
    p = nn.Parameter(torch.zeros(3, 2))
    p.grad = torch.ones(3, 2).to_sparse()
    with pytest.raises(RuntimeError, match="STAMLite does not support sparse gradients, got one"):
        STAMLite([p]).step()


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_other_orders_of_memory_and_late_gradients(cls):
    results = []
    for foreach in (False, True):
        generator = torch.Generator().manual_seed(0)
        p = torch.randn(8, 6, 5, 7, generator=generator).to(memory_format=torch.channels_last)
        q = torch.randn(40, 30, generator=generator).t()
        params = [nn.Parameter(p), nn.Parameter(q), nn.Parameter(torch.ones(9))]
        optimizer = cls(params, foreach=foreach)
        for step in range(4):
            give_gradients(params, step)
            params[2].grad = None if step < 2 else torch.ones(1).expand(9)
            optimizer.step()
        assert [optimizer.state[p]["step"].item() for p in params] == [4, 4, 2]
        results.append(everything(params, optimizer))
    torch.testing.assert_close(results[1], results[0], rtol=1e-6, atol=1e-8)


@pytest.mark.parametrize("cls", OPTIMIZERS)
def test_steps_in_the_backward_pass_are_those_after_it(cls):
    results = []
    for released in (False, True):
        torch.manual_seed(0)
        model = nn.Sequential(nn.Linear(8, 8), nn.Linear(8, 2))
        if released:
            for p in model.parameters():
                own = cls([p])

                def step(p, own=own):
                    own.step()
                    p.grad = None

                p.register_post_accumulate_grad_hook(step)
        else:
            optimizer = cls(model)
        for _ in range(3):
            model(torch.ones(2, 8)).square().sum().backward()
            if not released:
                optimizer.step()
                optimizer.zero_grad()
        results.append([p.detach() for p in model.parameters()])
    torch.testing.assert_close(results[1], results[0])
