"""Presets of `optim-bench time`: the optimizer's step alone, on given gradients.

A step is bound by memory traffic. `limit` is the ratio of the bytes that the two rules have to move
per float32 parameter when nothing is moved twice:

    AdamW      reads g, m, v, p, writes m, v, p            28
    STAM       AdamW, and g and m once more before         36
    STAMLite   reads g twice, m, p, writes m, p            24
    sign       reads g, m, p, writes m, p                  20, 16 or 14 with m in 4, 2 or 1 bytes
    whole-step skip   one more read of g                   + 4
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType

Shape = tuple[int, ...]


def _transformer(width: int, layers: int, vocabulary: int) -> tuple[Shape, ...]:
    block = (
        (width,),
        (width, 3 * width),
        (width, width),
        (width,),
        (width, 4 * width),
        (4 * width, width),
    )
    return ((vocabulary, width), *(block * layers), (width,))


TRANSFORMER = _transformer(512, 6, 3072)
# A step of an accelerator on fewer would be mostly the start of its kernels.
LARGE_TRANSFORMER = _transformer(2048, 4, 3072)
SMALL_LEAVES: tuple[Shape, ...] = ((256,),) * 200
MANY_TENSORS: tuple[Shape, ...] = ((100, 100),) * 3000


@dataclass(frozen=True)
class Contender:
    """An optimizer in a group.

    Args:
        case: its name in the framework's module of cases.
        title: what the table calls it.
        reach: the ratio to the baseline that it shall reach.
        limit: the ratio that memory traffic allows, where that is what binds.
    """

    case: str
    title: str
    reach: float
    limit: float | None = None


@dataclass(frozen=True)
class Floor:
    """A stripped step: what a contender cannot avoid on this machine, timed in the same rounds.

    Args:
        case: its name in the framework's module of cases.
        title: what the table calls it.
    """

    case: str
    title: str


@dataclass(frozen=True)
class Group:
    """Optimizers that are timed against one baseline on one list of tensors.

    Args:
        name: unique in a preset.
        framework: `"jax"` or `"torch"`.
        title: what the tensors are.
        shapes: one per tensor, float32.
        baseline: case that the others are divided by, and that runs a second time for the A/A band.
        baseline_title: what the table calls it.
        contenders: the others.
        floors: stripped steps.
        what: `"step"` for warmed steps, `"first"` for the first call with compilation.
        device: `"cpu"` or `"cuda"`.
    """

    name: str
    framework: str
    title: str
    shapes: tuple[Shape, ...]
    baseline: str
    baseline_title: str
    contenders: tuple[Contender, ...]
    floors: tuple[Floor, ...] = ()
    what: str = "step"
    device: str = "cpu"


def _stac(state: str, reach: float, limit: float, *, skip: bool) -> Contender:
    policy = "skip" if skip else "propagate"
    title = f'STAC fused, {state} momentum, nonfinite="{policy}"'
    return Contender(f"stac fused {state} {policy}", title, reach, limit)


STAM_FAMILY = (
    Contender("stam", "STAM", 1.40, 36 / 28),
    Contender("stam sampled", "STAM, statistics of 4,096 entries", 1.10, 1.0),
    Contender("stam_lite", "STAMLite", 0.90, 24 / 28),
)
STAC_FUSED = (
    _stac("float32", 0.75, 20 / 28, skip=False),
    _stac("bfloat16", 0.75, 16 / 28, skip=False),
    _stac("int8", 0.90, 14 / 28, skip=False),
    _stac("float32", 0.90, 24 / 28, skip=True),
    _stac("bfloat16", 0.90, 20 / 28, skip=True),
    _stac("int8", 1.05, 18 / 28, skip=True),
)

_CLIP_TITLE = "clip_grad_norm_(foreach=True), AdamW(fused=True)"


def _clipping(
    title: str, shapes: tuple[Shape, ...], reach: Mapping[str, float], device: str
) -> Group:
    """Clipping and step: what a loop runs between its backward passes."""
    return Group(
        "clipping",
        "torch",
        f"{title}, clipping and step",
        shapes,
        "adamw fused after clipping",
        _CLIP_TITLE,
        tuple(
            Contender(f"stac clipped {state}", f"STAC fused, {state}, max_grad_norm", value)
            for state, value in reach.items()
        ),
        device=device,
    )


STEP_SPEED = (
    Group(
        "transformer",
        "jax",
        "20.5 M parameters of a transformer",
        TRANSFORMER,
        "adamw",
        "optax.adamw",
        (*STAM_FAMILY, Contender("stac", "STAC", 0.80)),
        (Floor("adamw after a sum", "optax.adamw after one sum of abs(g - m) per leaf"),),
    ),
    Group(
        "clipped",
        "jax",
        "20.5 M parameters of a transformer, clipping and step",
        TRANSFORMER,
        "clip and adamw",
        "clip_by_global_norm, optax.adamw",
        (
            Contender("clip and stam", "clip_by_global_norm, STAM", 1.40),
            Contender("clip and stam_lite", "clip_by_global_norm, STAMLite", 0.85),
        ),
    ),
    Group(
        "small leaves",
        "jax",
        "200 leaves of 256 values",
        SMALL_LEAVES,
        "adamw",
        "optax.adamw",
        (Contender("stam", "STAM", 1.50),),
    ),
    Group(
        "first call",
        "jax",
        "first call with compilation, 200 leaves",
        SMALL_LEAVES,
        "adamw",
        "optax.adamw",
        (Contender("stam", "STAM", 2.50),),
        what="first",
    ),
    Group(
        "transformer, fused",
        "torch",
        "20.5 M parameters of a transformer",
        TRANSFORMER,
        "adamw fused",
        "AdamW(fused=True)",
        STAC_FUSED,
        (
            Floor("bytes float32", "the 20 bytes of a float32 momentum: p + g, -m"),
            Floor("bytes bfloat16", "the 16 bytes of a bfloat16 momentum: p + g, -m"),
            Floor("bytes int8", "the 14 bytes of an int8 momentum: p + g, ~m"),
            Floor("read of g", "one read of g: its largest entry"),
        ),
    ),
    Group(
        "transformer, foreach",
        "torch",
        "20.5 M parameters of a transformer",
        TRANSFORMER,
        "adamw foreach",
        "AdamW(foreach=True)",
        (
            Contender("stac foreach", 'STAC foreach, float32, nonfinite="propagate"', 0.50),
            Contender("stam", "STAM", 1.05),
            Contender("stam_lite", "STAMLite", 0.65),
        ),
    ),
    Group(
        "transformer, as constructed",
        "torch",
        "20.5 M parameters of a transformer",
        TRANSFORMER,
        "adamw",
        "AdamW()",
        (Contender("stac", "STAC()", 0.35),),
    ),
    _clipping(
        "20.5 M parameters of a transformer",
        TRANSFORMER,
        {"float32": 0.68, "bfloat16": 0.60, "int8": 0.68},
        "cpu",
    ),
    Group(
        "many tensors",
        "torch",
        "3,000 tensors of 10,000 values",
        MANY_TENSORS,
        "adamw fused",
        "AdamW(fused=True)",
        (_stac("float32", 1.00, 20 / 28, skip=False),),
    ),
)

# The same ratios are to be reached: they come from the bytes.
STEP_SPEED_CUDA = (
    Group(
        "large transformer",
        "jax",
        "208 M parameters of a transformer",
        LARGE_TRANSFORMER,
        "adamw",
        "optax.adamw",
        STAM_FAMILY,
        device="cuda",
    ),
    Group(
        "large transformer, fused",
        "torch",
        "208 M parameters of a transformer",
        LARGE_TRANSFORMER,
        "adamw fused",
        "AdamW(fused=True)",
        STAC_FUSED,
        device="cuda",
    ),
    Group(
        "many tensors",
        "torch",
        "3,000 tensors of 10,000 values",
        MANY_TENSORS,
        "adamw fused",
        "AdamW(fused=True)",
        (_stac("float32", 1.00, 20 / 28, skip=False),),
        device="cuda",
    ),
    _clipping(
        "208 M parameters of a transformer",
        LARGE_TRANSFORMER,
        {"float32": 0.70, "bfloat16": 0.62, "int8": 0.58},
        "cuda",
    ),
)

PRESETS: Mapping[str, tuple[Group, ...]] = MappingProxyType(
    {"step-speed": STEP_SPEED, "step-speed-cuda": STEP_SPEED_CUDA}
)
