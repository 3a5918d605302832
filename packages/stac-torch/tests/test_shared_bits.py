"""The bits that stam-core promises every framework: codes of momentum, and noise of rounding."""

import numpy as np
import pytest
import torch
from stac_torch import STAC
from stac_torch._rounding import Noise, noise_key, random_bits
from stam_core import STACHyperparams, int8, noise, update_sign_moment


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("shape", [(64, 300), (33, 5, 64), (16, 256)])
def test_codes_are_those_of_the_reference(shape, options):
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = STAC([weight], role="sign", sign_state_dtype="int8", **options)
    hp, rng = STACHyperparams(sign_momentum=0.9), np.random.default_rng(2)
    codes, scale = int8.encode(np.zeros(shape, np.float32), xp=np)
    for _ in range(50):
        # Nine orders of magnitude: every level of the code, and ties between them.
        g = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(np.float32)
        weight.grad = torch.from_numpy(g)
        optimizer.step()
        old = int8.decode(codes, scale, xp=np)
        codes, scale = int8.encode(update_sign_moment(g, old, hp), xp=np)
        state = optimizer.state[weight]
        np.testing.assert_array_equal(state["exp_avg"].numpy(), codes)
        np.testing.assert_array_equal(state["exp_avg_scale"].numpy(), scale)


@pytest.mark.parametrize("offset", [0, 7, 2**32 - 5])
def test_noise_is_that_of_the_reference(offset):
    key, step = noise.noise_key(5, "body.w"), 3
    assert noise_key(5, "body.w") == key
    drawn = random_bits(Noise(key, torch.tensor(float(step)), offset), 1000, torch.device("cpu"))
    position = np.arange(offset, offset + 1000, dtype=np.uint64)
    low, high = (position & 0xFFFFFFFF).astype(np.uint32), (position >> 32).astype(np.uint32)
    key, step = np.asarray([key], np.uint32), np.asarray([step], np.uint32)
    expected = noise.random_bits(key, step, low, high, xp=np)
    np.testing.assert_array_equal(drawn.numpy(), expected)
