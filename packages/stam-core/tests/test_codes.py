"""The codes that are rounded stochastically: levels, means, rows, and what is not finite."""

import array_api_strict
import numpy as np
import pytest
from stam_core import int4, int8

SHAPES = [(5, 300), (4, 3, 43), (2, 128), (3, 17)]
CODES = {
    "int4": (
        int4.encode,
        lambda codes, scale, shape, xp=np: int4.decode(codes, scale, shape, xp=xp),
        lambda share: np.floor(7 * np.sqrt(share)),
        lambda level: (level / 7) ** 2,
        128,
    ),
    "squares": (
        int8.encode_squares,
        lambda codes, scale, shape, xp=np: int8.decode_squares(codes, scale, xp=xp),
        lambda share: np.floor(255 * share**0.25),
        lambda level: (level / 255) ** 4,
        256,
    ),
}


@pytest.fixture(params=CODES)
def code(request):
    return CODES[request.param]


def values_of(shape, encode, seed=0):
    rng = np.random.default_rng(seed)
    values = (rng.standard_normal(shape) * 10.0 ** rng.uniform(-2, 0, shape)).astype(np.float32)
    return np.abs(values) if encode is int8.encode_squares else values


def drawn(shape, seed=1):
    return np.random.default_rng(seed).integers(0, 65536, shape)


@pytest.mark.parametrize("shape", SHAPES)
def test_each_code_is_next_to_its_value(code, shape):
    encode, decode, below, level, block = code
    values = values_of(shape, encode)
    codes, scale = encode(values, drawn(shape), xp=np)
    back = decode(codes, scale, shape)
    rows, got = (x.reshape(shape[0], -1).astype(np.float64) for x in (values, back))
    largest = scale.repeat(block, axis=1)[:, : rows.shape[1]].astype(np.float64)
    low = below(np.abs(rows) / largest)
    either = [np.sign(rows) * largest * level(low + up) for up in (0, 1)]
    assert np.minimum(*(np.abs(got - x) / np.abs(rows) for x in either)).max() < 1e-5


def test_the_mean_over_the_noise_is_the_value(code):
    encode, decode, *_ = code
    values = values_of((1, 40), encode)
    many = np.repeat(values, 4000, axis=0)
    back = decode(*encode(many, drawn(many.shape), xp=np), many.shape).astype(np.float64)
    error = np.abs(back.mean(axis=0) - values[0])
    assert (error <= 5 * back.std(axis=0) / 4000**0.5 + 1e-6 * np.abs(values[0])).all()


def test_rows_apart_are_rows_together(code):
    encode = code[0]
    values, noise = values_of((9, 301), encode), drawn((9, 301))
    whole = encode(values, noise, xp=np)
    for part in (slice(0, 4), slice(4, 5), slice(5, 9)):
        for one, other in zip(encode(values[part], noise[part], xp=np), whole, strict=True):
            np.testing.assert_array_equal(one, other[part])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_what_is_not_finite_stays_in_its_block(code):
    encode, decode, _, _, block = code
    values = np.ones((2, 2 * block), np.float32)
    values[0, 3] = np.nan
    back = decode(*encode(values, drawn(values.shape), xp=np), values.shape)
    assert np.isnan(back[0, :block]).all()
    np.testing.assert_allclose(np.delete(back.ravel(), range(block)), 1.0, rtol=1e-6)
    assert not decode(*encode(values * 0, drawn(values.shape), xp=np), values.shape)[1].any()


def test_squares_are_not_0_and_not_infinite():
    values = np.asarray([[np.inf, 1.0, 1e-30, 0.0]], np.float32)
    codes, scale = int8.encode_squares(values, np.full((1, 4), 65535), xp=np)
    assert codes.tolist() == [[255, 1, 1, 0]]
    assert np.isfinite(scale).all()


def test_any_namespace_of_the_standard(code):
    encode, decode, *_ = code
    values, noise = values_of((3, 301), encode), drawn((3, 301))
    strict = [array_api_strict.asarray(x) for x in (values, noise)]
    found = encode(*strict, xp=array_api_strict)
    for one, other in zip(found, encode(values, noise, xp=np), strict=True):
        np.testing.assert_array_equal(np.asarray(one), other)
    back = decode(*found, values.shape, xp=array_api_strict)
    np.testing.assert_array_equal(np.asarray(back), decode(*encode(values, noise, xp=np), (3, 301)))
