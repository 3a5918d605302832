"""An optimizer of any rule: a signature, a docstring, and the rule's record."""

import copy

import pytest
import stam_core
import torch
from stac_torch import STAC
from stac_torch._rule import RuleOptimizer
from torch import nn


class SignDescent(RuleOptimizer, rule=stam_core.SIGN):
    """The sign of momentum, without STAC's own paths."""

    def __init__(self, params, lr=1e-3, *, sign_momentum=0.0, weight_decay=0.0, exp_avg_dtype=None):
        super().__init__(params, locals())


class PlainAdamW(RuleOptimizer, rule=stam_core.ADAMW, betas=("b1", "b2")):
    """AdamW, without torch's own."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), *, amsgrad=False):
        super().__init__(params, locals())


def steps_of(build, dtype):
    generator = torch.Generator().manual_seed(0)
    drawn = dtype if dtype.is_complex else torch.float32

    def draw(shape):
        return torch.randn(shape, generator=generator, dtype=drawn).to(dtype)

    params = [nn.Parameter(draw(shape)) for shape in ((20, 30), (7,), ())]
    optimizer = build(params)
    for _ in range(5):
        for p in params:
            p.grad = draw(p.shape)
        optimizer.step()
        optimizer.load_state_dict(copy.deepcopy(optimizer.state_dict()))
    return [p.detach() for p in params], optimizer


@pytest.mark.parametrize("momentum", [0.0, 0.9])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.complex64])
def test_the_sign_rule_has_the_bits_of_the_sign_section(dtype, momentum):
    options = {"lr": 0.1, "weight_decay": 0.1, "sign_momentum": momentum}
    ours, optimizer = steps_of(lambda p: SignDescent(p, **options), dtype)
    theirs, _ = steps_of(lambda p: STAC(p, role="sign", foreach=False, **options), dtype)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    keys = {"step", "exp_avg"} if momentum else {"step"}
    assert all(set(state) == keys for state in optimizer.state.values())


@pytest.mark.parametrize("amsgrad", [False, True])
def test_the_adamw_rule_is_torchs(amsgrad):
    ours, _ = steps_of(lambda p: PlainAdamW(p, amsgrad=amsgrad), torch.float32)
    theirs, _ = steps_of(
        lambda p: torch.optim.AdamW(p, amsgrad=amsgrad, weight_decay=0.0), torch.float32
    )
    torch.testing.assert_close(ours, theirs)


def test_what_a_signature_leaves_out_has_its_default():
    optimizer = SignDescent([nn.Parameter(torch.ones(2))])
    group = optimizer.param_groups[0]
    assert (group["maximize"], group["foreach"], group["capturable"]) == (False, None, False)
    assert optimizer.diagnostics() == {}
    with pytest.raises(ValueError, match=r"^lr must be >= 0 and finite, got -1.0"):
        SignDescent([nn.Parameter(torch.ones(2))], lr=-1.0)
    with pytest.raises(TypeError, match="unexpected keyword argument 'maximize'"):
        SignDescent([nn.Parameter(torch.ones(2))], maximize=True)


def test_a_subclass_is_the_same_optimizer():
    """Wrappers make them: Lightning does of every optimizer."""

    class Wrapped(SignDescent):
        pass

    class Decayed(SignDescent):
        def __init__(self, params):
            super().__init__(params, weight_decay=0.5)

    ours, optimizer = steps_of(lambda p: type("Made", (Wrapped,), {})(p, lr=0.1), torch.float32)
    theirs, _ = steps_of(lambda p: SignDescent(p, lr=0.1), torch.float32)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    assert isinstance(optimizer, SignDescent)
    assert Decayed([nn.Parameter(torch.ones(2))]).param_groups[0]["weight_decay"] == 0.5
