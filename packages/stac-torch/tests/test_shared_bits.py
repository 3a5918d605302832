"""Codes and noise are those of stam_core, which STAC for JAX is held to as well."""

import numpy as np
import pytest
import stam_core
import torch
from stac_torch import STAC, _int8
from stac_torch._rounding import Noise, random_bits


@pytest.mark.parametrize("options", [{}, {"foreach": True}, {"fused": True}])
@pytest.mark.parametrize("shape", [(64, 300), (33, 5, 64), (16, 256)])
def test_codes_of_fifty_steps(shape, options):
    weight = torch.nn.Parameter(torch.zeros(shape))
    optimizer = STAC([weight], role="sign", sign_state_dtype="int8", **options)
    hp, rng = stam_core.SignHyperparams(sign_momentum=0.9), np.random.default_rng(2)
    codes, scale = stam_core.int8.encode(np.zeros(shape, np.float32), xp=np)
    for t in range(1, 51):
        # Nine orders of magnitude: every level of the code, and ties between them.
        g = (rng.standard_normal(shape) * 10.0 ** rng.integers(-6, 3, shape)).astype(np.float32)
        weight.grad = torch.from_numpy(g)
        optimizer.step()
        old = stam_core.int8.decode(codes, scale, xp=np)
        _, new = stam_core.SIGN.update(g, {"mu": old}, {}, np.asarray(t), hp, xp=np)
        codes, scale = stam_core.int8.encode(new["mu"], xp=np)
        state = optimizer.state[weight]
        np.testing.assert_array_equal(state["exp_avg"].numpy(), codes)
        np.testing.assert_array_equal(state["exp_avg_scale"].numpy(), scale)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_codes_of_blocks_with_bad_values():
    values = np.ones((3, 600), np.float32)
    values[0, 5], values[1, 300] = np.nan, np.inf
    codes, scales = _int8.encode(torch.from_numpy(values))
    expected, expected_scales = stam_core.int8.encode(values, xp=np)
    np.testing.assert_array_equal(codes, expected)
    np.testing.assert_array_equal(scales, expected_scales)
    decoded = stam_core.int8.decode(expected, expected_scales, xp=np)
    np.testing.assert_array_equal(_int8.decode(codes, scales), decoded)


@pytest.mark.parametrize("step", [1, 2, 70_000])
@pytest.mark.parametrize("offset", [0, 7, 2**33 + 5])
def test_noise(step, offset):
    key = stam_core.noise.noise_key(3, "body.weight")
    bits = random_bits(Noise(key, torch.tensor(float(step)), offset), 1000, torch.device("cpu"))
    position = np.arange(offset, offset + 1000, dtype=np.uint64)
    expected = stam_core.noise.random_bits(
        np.full(1, key, np.uint32),
        np.full(1, step, np.uint32),
        (position & 0xFFFFFFFF).astype(np.uint32),
        (position >> 32).astype(np.uint32),
        xp=np,
    )
    np.testing.assert_array_equal(bits, expected)
