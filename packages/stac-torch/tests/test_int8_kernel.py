"""The codes of ``csrc/int8.h`` are not computed as they are defined, and are those defined."""

import math

import pytest
import torch
from stac_torch import STAC
from stac_torch._int8 import BLOCK, encode
from torch import nn

pytestmark = pytest.mark.usefixtures("each_kernel")

# Less than a block, one, and last blocks with whole and broken vectors.
ROWS = [100, BLOCK, 2 * BLOCK + 1, 3 * BLOCK - 5]
# From the subnormal, over the smallest whose inverse is a number, to the largest.
EXPONENTS = [-149, -127, -126, -91, -90, -89, -60, -20, -1, 0, 1, 30, 100, 126]
SCALES = [math.ldexp(x, e) for e in EXPONENTS for x in (1.0, 1.37, 1.9999)]


def check(values):
    """Compare the codes of a first step, after which the momentum is ``values``."""
    p = nn.Parameter(torch.zeros_like(values))
    options = {"sign_state_dtype": "int8", "sign_momentum": 0.5, "nonfinite": "propagate"}
    optimizer = STAC([p], role="sign", fused=True, **options)
    p.grad = 2 * values
    optimizer.step()
    codes, scale = encode(values)
    wrong = (optimizer.state[p]["exp_avg"] != codes).nonzero().tolist()
    assert not wrong, (len(wrong), wrong[0], values[tuple(wrong[0])].item().hex())
    found = optimizer.state[p]["exp_avg_scale"]
    torch.testing.assert_close(found, scale, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("row", ROWS)
def test_codes_of_noise(row):
    generator = torch.Generator().manual_seed(row)
    noise = torch.randn(100_000 // row, row, generator=generator)
    check(noise)
    check(noise * 10 ** torch.empty_like(noise).uniform_(-40, 30, generator=generator))


def test_codes_beside_the_middles_between_two():
    """Six floats on each side of every middle, where a root off by a unit chooses otherwise."""
    middles = ((torch.arange(127, dtype=torch.float64) + 0.5) / 127) ** 4
    for scale in SCALES:
        near = [(middles * scale).float()]
        for _ in range(6):
            near.append(torch.nextafter(near[-1], torch.tensor(math.inf)))
            near.insert(0, torch.nextafter(near[0], torch.tensor(0.0)))
        values = torch.stack(near)
        values = torch.cat([torch.full((13, 1), scale), values], 1)
        values[1::2] *= -1
        check(values.repeat(3, 1))


@pytest.mark.parametrize("row", ROWS)
def test_codes_of_what_is_no_number_and_of_nothing(row):
    values = torch.ones(max(8, -(-4096 // row)), row)
    values[1], values[2] = 0.0, -0.0
    values[3, 1:] = 0.0
    values[4, ::3], values[5, -1], values[6, -1], values[7, 0] = 0.0, math.nan, math.inf, -math.inf
    check(values)
