"""The sign step as Triton kernels over tables of tensors; :mod:`stac_torch._fused_cuda` calls them.

A program works on one chunk of one tensor, which it looks up: row ``i`` of ``chunks`` is (tensor,
chunk), and a row of ``table`` is (parameter, gradient, moment, scales, entries, row length, noise
key, step counter), addresses as integers. Bytes moved per entry, each once, for a parameter of P, a
gradient of G and a moment of M bytes: read P + G + M, write P + M. That is 20 for float32, 16 with
a bfloat16 moment, and 14 with an int8 moment and its scale per 256 entries.

The values are those of ``stac_torch._sign``, bit for bit if contraction to fused multiply-adds is
off. bfloat16 is converted in integers, so that the interpreter and every device round alike.
"""

# ruff: noqa: N803, SIM108
# pyright: reportArgumentType=false, reportAttributeAccessIssue=false
# Constants of a compilation are capitals by Triton's convention, branches on them are resolved
# before it, and pyright takes the language for Python.

import triton
import triton.language as tl

FIELDS = tl.constexpr(8)
BLOCK = tl.constexpr(256)
LEVELS = tl.constexpr(127.0)
UNIT = tl.constexpr(0.007874015718698502)  # 1/127 in float32
TO_WHOLE = tl.constexpr(12582912.0)  # 1.5 * 2^23: adding it rounds to whole numbers, ties to even


@triton.jit
def load_wide(
    address, offsets, mask, TYPE: tl.constexpr, REAL: tl.constexpr, ALIGNED: tl.constexpr
):
    """Load entries of storage TYPE as REAL."""
    if tl.bfloat16 == TYPE:
        pointer = address.to(tl.pointer_type(tl.uint16))
    else:
        pointer = address.to(tl.pointer_type(TYPE))
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    stored = tl.load(pointer + offsets, mask=mask, other=0)
    if tl.bfloat16 == TYPE:
        wide = (stored.to(tl.uint32) << 16).to(tl.float32, bitcast=True)
    else:
        wide = stored
    return wide.to(REAL)


@triton.jit
def to_bfloat16_bits(value):
    """Round float32 to the bits of bfloat16, to nearest, ties to even."""
    bits = value.to(tl.uint32, bitcast=True)
    rounded = (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
    return tl.where(value != value, 0x7FC0, rounded).to(tl.uint16)


@triton.jit
def store_narrow(address, offsets, value, mask, TYPE: tl.constexpr, ALIGNED: tl.constexpr):
    """Store REAL entries as TYPE."""
    if tl.bfloat16 == TYPE:
        pointer = address.to(tl.pointer_type(tl.uint16))
        narrow = to_bfloat16_bits(value.to(tl.float32))
    else:
        pointer = address.to(tl.pointer_type(TYPE))
        # By way of float32, as torch goes from float64 to 16 bits.
        narrow = (value if tl.float64 == TYPE else value.to(tl.float32)).to(TYPE)
    if ALIGNED:
        pointer = tl.multiple_of(pointer, 16)
    tl.store(pointer + offsets, narrow, mask=mask)


@triton.jit
def mixed(x):
    """The finaliser of MurmurHash3 on uint32, as in ``stac_torch._rounding``."""
    x = (x ^ (x >> 16)) * 0x85EBCA6B
    x = (x ^ (x >> 13)) * 0xC2B2AE35
    return x ^ (x >> 16)


@triton.jit
def store_randomly(address, offsets, value, mask, key, counter):
    """Store float32 as bfloat16, each entry as one of its two neighbours."""
    step = tl.load(counter.to(tl.pointer_type(tl.float32))).to(tl.int64).to(tl.uint32)
    index = offsets.to(tl.int64)
    word = mixed(index.to(tl.uint32) ^ mixed(step)) ^ (index >> 32).to(tl.uint32)
    word = mixed(word ^ key.to(tl.uint32))
    bits = value.to(tl.uint32, bitcast=True)
    drawn = ((bits + (word >> 16)) >> 16).to(tl.uint16)
    finite = (bits & 0x7F800000) != 0x7F800000
    pointer = address.to(tl.pointer_type(tl.uint16)) + offsets
    tl.store(pointer, tl.where(finite, drawn, to_bfloat16_bits(value)), mask=mask)


@triton.jit
def hyperparameter(value, ON_DEVICE: tl.constexpr, REAL: tl.constexpr):
    """Return a number that was passed, or that lies behind a pointer, as REAL."""
    if ON_DEVICE:
        result = tl.load(value).to(REAL)
    else:
        result = value
    return result


@triton.jit
def update(
    row,
    offsets,
    mask,
    moment,
    lr,
    decay,
    momentum,
    fresh,
    grad_scale,
    clip,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    REAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    SCALED: tl.constexpr,
    CLIPPED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    PROPAGATE_NAN: tl.constexpr,
    NOISY: tl.constexpr,
    ON_DEVICE: tl.constexpr,
):
    """M <- momentum*m + fresh*g;  p <- p*decay - lr*sign(m); returns m."""
    param = tl.load(row)
    p = load_wide(param, offsets, mask, PARAM, REAL, ALIGNED)
    g = load_wide(tl.load(row + 1), offsets, mask, GRAD, REAL, ALIGNED)
    if SCALED:
        # Only float32 has a division that rounds as IEEE 754 says under a name of its own.
        scale = tl.load(grad_scale).to(REAL)
        if tl.float32 == REAL:
            g = tl.div_rn(g, scale + tl.zeros_like(g))
        else:
            g = g / scale
    if CLIPPED:
        g = g * tl.load(clip).to(REAL)
    if MAXIMIZE:
        g = -g
    if HAS_MOMENT:
        moment = moment * hyperparameter(momentum, ON_DEVICE, REAL) + g * hyperparameter(
            fresh, ON_DEVICE, REAL
        )
    else:
        moment = g
    sign = (moment > 0).to(REAL) - (moment < 0).to(REAL)
    if PROPAGATE_NAN:
        sign = tl.where(moment != moment, moment, sign)
    p = p * hyperparameter(decay, ON_DEVICE, REAL) - sign * hyperparameter(lr, ON_DEVICE, REAL)
    if NOISY:
        store_randomly(param, offsets, p, mask, tl.load(row + 6), tl.load(row + 7))
    else:
        store_narrow(param, offsets, p, mask, PARAM, ALIGNED)
    return moment


@triton.jit
def step_floating(
    table,
    chunks,
    skip,
    lr,
    decay,
    momentum,
    fresh,
    grad_scale,
    clip,
    largest,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    MOMENT: tl.constexpr,
    HAS_MOMENT: tl.constexpr,
    CLAMPED: tl.constexpr,
    REAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    SCALED: tl.constexpr,
    CLIPPED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    PROPAGATE_NAN: tl.constexpr,
    NOISY: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    TILE: tl.constexpr,
    TILES: tl.constexpr,
):
    """One chunk of TILES tiles, its moment stored in a floating dtype."""
    program = tl.program_id(0).to(tl.int64)
    row = table + tl.load(chunks + 2 * program).to(tl.int64) * FIELDS
    start = tl.load(chunks + 2 * program + 1).to(tl.int64) * TILE * TILES
    entries = tl.load(row + 4)
    if SKIPPABLE:
        # Nothing is in the mask of a skipped step: no traffic, and no wait for the flag's value.
        entries = tl.where(tl.load(skip) != 0, 0, entries)
    if ALIGNED:
        # Without it the mask might end within a vector, and every load would be a scalar.
        entries = tl.multiple_of(entries, 16)
    for tile in range(TILES):
        offsets = start + tile * TILE + tl.arange(0, TILE)
        mask = offsets < entries
        address = tl.load(row + 2)
        if HAS_MOMENT:
            moment = load_wide(address, offsets, mask, MOMENT, REAL, ALIGNED)
        else:
            moment = tl.zeros((TILE,), REAL)
        moment = update(
            row,
            offsets,
            mask,
            moment,
            lr,
            decay,
            momentum,
            fresh,
            grad_scale,
            clip,
            PARAM,
            GRAD,
            HAS_MOMENT,
            REAL,
            ALIGNED,
            SCALED,
            CLIPPED,
            MAXIMIZE,
            PROPAGATE_NAN,
            NOISY,
            ON_DEVICE,
        )
        if HAS_MOMENT:
            if CLAMPED:
                # A moment too large for its storage becomes the largest that it holds.
                moment = tl.where(moment > largest, largest, moment)
                moment = tl.where(moment < -largest, -largest, moment)
            store_narrow(address, offsets, moment, mask, MOMENT, ALIGNED)


@triton.jit
def step_int8(
    table,
    chunks,
    skip,
    lr,
    decay,
    momentum,
    fresh,
    grad_scale,
    clip,
    PARAM: tl.constexpr,
    GRAD: tl.constexpr,
    REAL: tl.constexpr,
    ALIGNED: tl.constexpr,
    SKIPPABLE: tl.constexpr,
    SCALED: tl.constexpr,
    CLIPPED: tl.constexpr,
    MAXIMIZE: tl.constexpr,
    PROPAGATE_NAN: tl.constexpr,
    NOISY: tl.constexpr,
    ON_DEVICE: tl.constexpr,
    BLOCKS: tl.constexpr,
):
    """One chunk of BLOCKS blocks of an 8-bit moment; a block never crosses a row of its tensor."""
    program = tl.program_id(0).to(tl.int64)
    row = table + tl.load(chunks + 2 * program).to(tl.int64) * FIELDS
    block = tl.load(chunks + 2 * program + 1).to(tl.int64) * BLOCKS + tl.arange(0, BLOCKS)
    length = tl.load(row + 5)
    if ALIGNED:
        length = tl.multiple_of(length, 16)
    in_row = (length + BLOCK - 1) // BLOCK
    blocks = tl.load(row + 4) // length * in_row
    if SKIPPABLE:
        blocks = tl.where(tl.load(skip) != 0, 0, blocks)
    column = (block % in_row * BLOCK)[:, None] + tl.arange(0, BLOCK)[None, :]
    offsets = (block // in_row * length)[:, None] + column
    here = block < blocks
    mask = here[:, None] & (column < length)

    codes = tl.load(row + 2).to(tl.pointer_type(tl.int8))
    if ALIGNED:
        codes = tl.multiple_of(codes, 16)
    codes = codes + offsets
    scales = tl.load(row + 3).to(tl.pointer_type(tl.float32)) + block
    level = tl.load(codes, mask=mask, other=0).to(tl.float32) * UNIT
    square = level * level
    power = square * square
    moment = tl.where(level < 0, -power, power) * tl.load(scales, mask=here, other=0.0)[:, None]
    moment = update(
        row,
        offsets,
        mask,
        moment.to(REAL),
        lr,
        decay,
        momentum,
        fresh,
        grad_scale,
        clip,
        PARAM,
        GRAD,
        True,
        REAL,
        ALIGNED,
        SCALED,
        CLIPPED,
        MAXIMIZE,
        PROPAGATE_NAN,
        NOISY,
        ON_DEVICE,
    ).to(tl.float32)

    # As integers magnitudes are in order, and nan is the largest.
    magnitude = tl.where(mask, moment, 0.0).to(tl.int32, bitcast=True) & 0x7FFFFFFF
    scale = tl.max(magnitude, axis=1).to(tl.float32, bitcast=True)
    divisor = tl.where(scale == 0, 1.0, scale)[:, None] + tl.zeros_like(moment)
    one = tl.zeros_like(moment) + 1.0
    root = tl.div_rn(magnitude.to(tl.float32, bitcast=True), divisor)
    root = tl.div_rn(one, tl.sqrt_rn(tl.div_rn(one, tl.sqrt_rn(root))))
    whole = (root * LEVELS + TO_WHOLE) - TO_WHOLE
    code = tl.where(whole >= 0, whole, 0.0)  # nan is 0
    tl.store(codes, tl.where(moment < 0, -code, code).to(tl.int8), mask=mask)
    tl.store(scales, scale, mask=here)
