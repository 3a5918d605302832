"""The numbers at the edge: the form that is chosen where none is asked for has the loop's bits."""

import pytest
import torch
from stac_torch import STAC
from torch import nn

DTYPES = [torch.float32, torch.bfloat16, torch.float16, torch.float64]
STATES = [None, "float32", "bfloat16", "float16", "int8"]
FORMS = [{"fused": False, "foreach": False}, {}]


def assert_alike(run):
    """Call a function with each form; it returns the optimizer after its steps."""
    loop, chosen = map(run, FORMS)
    assert {form.name for form in chosen._forms().values()} == {"fused"}
    for one, other in zip(*(o.param_groups[0]["params"] for o in (loop, chosen)), strict=True):
        assert_bits(other.detach(), one.detach())
        for key, value in loop.state[one].items():
            assert_bits(chosen.state[other][key], value)


def assert_bits(found, expected):
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    assert torch.equal(found.signbit() & ~found.isnan(), expected.signbit() & ~expected.isnan())


def stepped(form, dtype, size=1.0, steps=4, spoil=None, **options):
    generator = torch.Generator().manual_seed(0)

    def drawn():
        return (size * torch.randn(40, 300, generator=generator, dtype=torch.float64)).to(dtype)

    p = nn.Parameter(drawn())
    optimizer = STAC([p], role="sign", **options, **form)
    for step in range(steps):
        p.grad = drawn()
        optimizer.step()
        if step == 1 and spoil:
            spoil(optimizer.state[p])
    return optimizer


@pytest.mark.parametrize("nonfinite", ["skip", "propagate"])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_nan_in_a_momentum(dtype, state, nonfinite):
    """Where bad gradients are kept out, the sign of nan is 0, as ``torch.sign`` has it."""

    def spoil(own):
        bad = own["exp_avg_scale"] if state == "int8" else own["exp_avg"]
        bad.view(-1)[:3] = torch.tensor([float("nan"), float("inf"), -float("inf")])

    given = {"sign_state_dtype": state, "nonfinite": nonfinite, "weight_decay": 0.1}
    assert_alike(lambda form: stepped(form, dtype, spoil=spoil, **given))


def test_gradients_that_only_their_own_dtype_holds():
    def run(form):
        p = nn.Parameter(torch.ones(3))
        p.grad_dtype = None
        optimizer = STAC([p], role="sign", **form)
        for size in (1e300, -1e300, 1.0):
            p.grad = torch.full((3,), size, dtype=torch.float64)
            optimizer.step()
        assert optimizer.state[p]["exp_avg"].isnan().all()
        return optimizer

    assert_alike(run)


@pytest.mark.parametrize("flush", [False, True])
@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("dtype", DTYPES)
def test_subnormals(dtype, state, flush):
    if not torch.set_flush_denormal(flush):
        pytest.skip("this processor has no such switch")
    tiny = torch.finfo(dtype).tiny
    try:
        given = {"sign_state_dtype": state, "lr": tiny / 8, "weight_decay": 0.1}
        assert_alike(lambda form: stepped(form, dtype, size=tiny / 4, **given))
    finally:
        torch.set_flush_denormal(False)


@pytest.mark.parametrize("kind", [float, torch.tensor])
def test_a_rate_that_became_infinite(kind):
    """Without weight decay it is not multiplied by 0."""

    def run(form):
        optimizer = stepped(form, torch.float32, steps=1)
        optimizer.param_groups[0]["lr"] = kind(float("inf"))
        optimizer.step()
        return optimizer

    assert_alike(run)
