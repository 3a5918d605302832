"""What ``fused=True`` refuses, before it changes anything and in words that say what to do."""

import pytest
import torch
from stac_torch import STAC
from torch import nn


@pytest.mark.parametrize(
    ("parameter", "options"),
    [
        (torch.zeros(6, 8)[:, ::2], {}),
        (torch.zeros(1, 3).expand(4, 3), {}),
        (torch.zeros(90, 80).t(), {"sign_state_dtype": "int8"}),
        (torch.zeros(90, 80, dtype=torch.bfloat16).t(), {"stochastic_rounding": True}),
    ],
)
def test_layouts_that_no_kernel_walks_are_refused_before_anything_changes(parameter, options):
    p, other = nn.Parameter(parameter), nn.Parameter(torch.ones(3))
    groups = [{"params": [other], "role": "adamw"}, {"params": [p], "role": "sign"}]
    optimizer = STAC(groups, fused=True, **options)
    p.grad, other.grad = torch.ones_like(p), torch.ones(3)
    match = rf"`fused=True` cannot walk a parameter of shape \({p.shape[0]}, {p.shape[1]}\)"
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()
    assert other.tolist() == [1.0] * 3
    assert not optimizer.state


@pytest.mark.parametrize(
    "parameter", [torch.zeros(6, 8)[:, ::2], torch.zeros(1, 3).expand(4, 3)], ids=["gaps", "twice"]
)
def test_the_adamw_section_refuses_what_would_be_written_beside(parameter):
    p = nn.Parameter(parameter)
    optimizer = STAC([p], role="adamw", fused=True)
    p.grad = torch.ones_like(p)
    with pytest.raises(RuntimeError, match="`fused=True` cannot walk a parameter of shape"):
        optimizer.step()
    assert parameter.abs().max() == 0


def replaced_by_a_larger_one(p, state):
    p.grad = None
    p.data = torch.ones(200, 64)
    p.grad = torch.ones(200, 64)


def larger_than_its_gradient(p, state):
    p.data = torch.ones(200, 64)


def elsewhere(p, state):
    state["exp_avg"] = state["exp_avg"].to("meta")


def counted_elsewhere(p, state):
    state["step"] = torch.zeros((), device="meta")


def in_another_dtype(p, state):
    state["exp_avg"] = state["exp_avg"].to(torch.float8_e5m2)


def with_rounded_scales(p, state):
    state["exp_avg_scale"] = state["exp_avg_scale"].to(torch.bfloat16)


def without_scales(p, state):
    del state["exp_avg_scale"]


@pytest.mark.parametrize(
    ("change", "role", "dtype", "message"),
    [
        (
            replaced_by_a_larger_one,
            "sign",
            None,
            r"state 'exp_avg' of shape \(64, 64\), torch.float",
        ),
        (replaced_by_a_larger_one, "adamw", None, r"the state 'exp_avg' of shape \(64, 64\)"),
        (replaced_by_a_larger_one, "sign", "int8", r"the state 'exp_avg' of shape \(64, 64\)"),
        (larger_than_its_gradient, "sign", None, r"a gradient of shape \(64, 64\)"),
        (larger_than_its_gradient, "adamw", None, r"a gradient of shape \(64, 64\)"),
        (
            elsewhere,
            "sign",
            None,
            r"for a parameter of shape \(64, 64\), torch.float32 on cpu: was",
        ),
        (
            elsewhere,
            "adamw",
            None,
            r"the state 'exp_avg' of shape \(64, 64\), torch.float32 on meta",
        ),
        (
            counted_elsewhere,
            "adamw",
            None,
            r"the state 'step' of shape \(\), torch.float32 on meta",
        ),
        (in_another_dtype, "sign", None, r"the state 'exp_avg' of shape \(64, 64\), torch.float8"),
        (
            with_rounded_scales,
            "sign",
            "int8",
            r"'exp_avg_scale' of shape \(64, 1\), torch.bfloat16",
        ),
        (without_scales, "sign", "int8", r"the state 'exp_avg' of shape \(64, 64\), torch.int8"),
    ],
)
def test_what_no_longer_belongs_to_a_parameter_is_refused(change, role, dtype, message):
    """The kernels follow addresses: this would read and write the memory of others."""
    p, other = nn.Parameter(torch.ones(64, 64)), nn.Parameter(torch.ones(3))
    optimizer = STAC([other, p], role=role, fused=True, sign_state_dtype=dtype)
    p.grad, other.grad = torch.ones(64, 64), torch.ones(3)
    optimizer.step()
    change(p, optimizer.state[p])
    before = other.tolist()
    with pytest.raises(RuntimeError, match=message):
        optimizer.step()
    assert other.tolist() == before


@pytest.mark.parametrize("role", ["sign", "adamw"])
@pytest.mark.parametrize(
    ("parameter", "found"),
    [
        (torch.zeros(2, device="meta"), "torch.float32 and meta"),
        (torch.zeros(2, dtype=torch.complex64), "torch.complex64 and cpu"),
    ],
)
def test_devices_and_dtypes_without_a_kernel_are_refused_as_in_torch(parameter, found, role):
    p = nn.Parameter(parameter)
    optimizer = STAC([p], role=role, fused=True)
    p.grad = torch.zeros_like(p)
    match = (
        r"`fused=True` requires all the params to be floating point Tensors of supported devices: "
        rf"\['cpu', 'cuda'\] but {found}"
    )
    with pytest.raises(RuntimeError, match=match):
        optimizer.step()


def test_it_excludes_foreach_and_diagnostics():
    p = nn.Parameter(torch.zeros(2))
    with pytest.raises(RuntimeError, match="`fused` and `foreach` cannot be `True` together"):
        STAC([p], role="sign", fused=True, foreach=True)
    with pytest.raises(TypeError, match="fused must be None, True or False, got 'yes'"):
        STAC([p], role="sign", fused="yes")
    with pytest.raises(ValueError, match="track_diagnostics=True counts in the loop"):
        STAC([p], role="sign", fused=True, track_diagnostics=True)


@pytest.mark.filterwarnings("ignore:Guards may run slower")
@pytest.mark.filterwarnings("ignore:Profiler record function")
def test_under_torch_compile_it_runs_outside_the_graph_or_says_why_it_cannot():
    p = nn.Parameter(torch.ones(4))
    p.grad = torch.ones(4)
    optimizer = STAC([p], role="sign", fused=True, lr=0.5)
    optimizer.step()
    whole = torch.compile(lambda: optimizer.step(), fullgraph=True, backend="eager")
    with pytest.raises(RuntimeError, match="fused=True is compiled already"):
        whole()
    torch._dynamo.reset()
    torch.compile(lambda: optimizer.step(), backend="eager")()
    assert p.tolist() == [0.0] * 4
