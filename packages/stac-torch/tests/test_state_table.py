"""The README's table of state bytes, counted on the parameters of Llama-2-7B."""

from functools import cache
from pathlib import Path

import pytest
import torch
from stac_torch import STAC
from torch import nn

README = Path(__file__).parents[1] / "README.md"
BLOCK = 256
LAYERS = 32


class Layer(nn.Module):
    def __init__(self):
        super().__init__()
        for name in ("q", "k", "v", "o"):
            self.add_module(name, nn.Linear(4096, 4096, bias=False))
        self.gate, self.up = (nn.Linear(4096, 11008, bias=False) for _ in range(2))
        self.down = nn.Linear(11008, 4096, bias=False)
        self.norm1, self.norm2 = nn.RMSNorm(4096), nn.RMSNorm(4096)


def llama(layers=LAYERS):
    with torch.device("meta"):
        return nn.Sequential(
            nn.Embedding(32000, 4096),
            *(Layer() for _ in range(layers)),
            nn.RMSNorm(4096),
            nn.Linear(4096, 32000, bias=False),
        )


def state_of(model, optimizer):
    """Bytes of state after one real step, on tensors without storage."""
    for p in model.parameters():
        p.grad = torch.empty_like(p)
    optimizer.step()
    states = [t for s in optimizer.state.values() for t in s.values() if torch.is_tensor(t)]
    return sum(t.numel() * t.element_size() for t in states)


@cache
def parameters():
    return [p.numel() for p in llama().parameters()]


def counted(build):
    """Bytes of state per parameter; the layers are alike, so the second stands for the others."""
    models = llama(1), llama(2)
    one, two = (state_of(model, build(model)) for model in models)
    return (one + (LAYERS - 1) * (two - one)) / sum(parameters())


@cache
def stac(**options):
    return counted(lambda m: STAC(m, nonfinite="propagate", **options))


def eight_bit_adamw():
    """Two int8 moments and a float32 scale for 256 entries of each; small tensors in float32."""
    cost = [2 * (n + 4 * n / BLOCK) if n > 4096 else 8 * n for n in parameters()]
    return sum(cost) / sum(parameters())


def adam_mini():
    """A float32 first moment; the second moment is one number per block of a tensor, about 0."""
    return 4.0


def rows():
    return [
        (
            "AdamW, float32 (`torch.optim`)",
            counted(lambda m: torch.optim.AdamW(m.parameters())),
            "counted",
        ),
        ("Adam-mini", adam_mini(), "from its layout"),
        ("AdamW, 8 bit in blocks of 256", eight_bit_adamw(), "from its layout"),
        ("STAC", stac(), "counted"),
        ('STAC, `sign_state_dtype="bf16"`', stac(sign_state_dtype="bf16"), "counted"),
        ('STAC, `sign_state_dtype="int8"`', stac(sign_state_dtype="int8"), "counted"),
        (
            'STAC, int8 and `adamw_state_dtype="bf16"`',
            stac(sign_state_dtype="int8", adamw_state_dtype="bf16"),
            "counted",
        ),
        (
            'STAC, int8 and `adamw_state_dtype="int8"`',
            stac(sign_state_dtype="int8", adamw_state_dtype="int8"),
            "counted",
        ),
        (
            'STAC, `sign_state_dtype="int4"` and `adamw_state_dtype="int8"`',
            stac(sign_state_dtype="int4", adamw_state_dtype="int8"),
            "counted",
        ),
        ("STAC, `sign_momentum=0`", stac(sign_momentum=0.0), "counted"),
    ]


def table():
    lines = ["| optimizer | bytes of state per parameter | |", "|---|---|---|"]
    lines += [f"| {name} | {size:.2f} | {how} |" for name, size, how in rows()]
    return "\n".join(lines)


def test_the_model_is_llama():
    assert sum(parameters()) == 6_738_415_616


def test_bounds():
    assert stac() <= 4.10
    assert stac(sign_state_dtype="bf16") <= 2.15
    assert stac(sign_state_dtype="int8") <= 1.20
    assert stac(sign_state_dtype="int4", adamw_state_dtype="int8") <= 0.60


@pytest.mark.parametrize("options", [{}, {"sign_state_dtype": "int8"}, {"sign_momentum": 0.0}])
def test_describe_counts_the_same_on_the_whole_model(options):
    lines = STAC(llama(), **options).describe().splitlines()
    (total,) = [line.split() for line in lines if line.startswith("total ")]
    assert int(total[1].replace(",", "")) == 6_738_415_616
    size = int(total[2].replace(",", "")) / 6_738_415_616
    assert size == stac(**options)


def test_the_readme_has_this_table():
    assert table() in README.read_text()
