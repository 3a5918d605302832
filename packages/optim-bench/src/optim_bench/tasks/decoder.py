"""A decoder for one GPU on your own tokens, of the size that you say.

    from optim_bench.tasks.decoder import decoder

    task = decoder("tokens", parameters=30e6)

The line of GPT-2: a width of 64 for every layer and every head, four times the width inside the
MLP, learned positions, the head tied to the token embedding (Radford et al. 2019); pre-norm with
RMSNorm and without biases. Of that line the member nearest to the number asked for is taken.
"""

import functools
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

from optim_bench.tasks import data
from optim_bench.tasks._frameworks import TorchTask
from optim_bench.tasks._task import TaskError
from optim_bench.tasks.built_in._torch_models import Block
from optim_bench.tasks.built_in._workload import Array, generator

_HEAD = 64
_FEWEST_LAYERS = 2
# Of one file, the last tenth is held back, half for validation and half for the test.
_HELD_OUT = 20
_LOOKED_AT = 1_000_000


class Decoder(nn.Module):
    """A pre-norm transformer with causal attention and a tied head.

    Args:
        width: of the residual stream, a multiple of 64.
        symbols: size of the vocabulary.
        context: longest sequence.

    Example:
        >>> model = Decoder(width=128, symbols=256, context=32)
        >>> model(torch.zeros(1, 32, dtype=torch.long)).shape
        torch.Size([1, 32, 256])
        >>> sum(p.numel() for p in model.parameters()) == size_of(128, 256, 32)
        True
    """

    def __init__(self, width: int, symbols: int, context: int) -> None:
        super().__init__()
        layers = _layers(width)
        self.token = nn.Embedding(symbols, width)
        self.position = nn.Embedding(context, width)
        self.blocks = nn.ModuleList(Block(width, width // _HEAD) for _ in range(layers))
        self.norm = nn.RMSNorm(width)
        self.head = nn.Linear(width, symbols, bias=False)
        self.head.weight = self.token.weight
        for name, parameter in self.named_parameters():
            if parameter.ndim == 2:
                into_stream = name.endswith(("out.weight", "down.weight"))
                nn.init.normal_(parameter, std=0.02 / math.sqrt(2 * layers if into_stream else 1))

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        """Return the logits of every place, (windows, tokens, symbols)."""
        places = torch.arange(tokens.shape[-1], device=tokens.device)
        x = self.token(tokens) + self.position(places)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x))


@dataclass(frozen=True, eq=False)
class DecoderTask(TorchTask):
    """A task whose numbers are those of this module: its sizes are part of its key.

    Args:
        sizes: width, symbols, context, batch and windows per evaluation.
    """

    sizes: tuple[int, ...] = ()


def decoder(
    tokens: Path | str,
    *,
    parameters: float = 30e6,
    symbols: int = 50_257,
    context: int = 512,
    batch: int = 16,
    windows: int = 64,
    **settings: Any,
) -> TorchTask:
    """Return the task of a decoder that predicts the next token.

    Args:
        tokens: a file of uint16 tokens, as nanoGPT's `prepare.py` writes it, of which the last
            tenth is held back; or a folder with `train.bin` and `val.bin`, of which the second half
            of the latter is the test. What they hold is no part of the key: name the task anew
            where they change.
        parameters: about how many to train, the embedding included; from 10 to 120 million for one
            GPU, less to try it out.
        symbols: size of the vocabulary.
        context: tokens per window.
        batch: windows per batch.
        windows: evenly spaced windows on which a split is judged.
        settings: of `TorchTask`, such as `steps` (2,000 unless given), `accumulate`, `compile` or
            `autocast` (bfloat16 unless given).

    Raises:
        TaskError: a size is out of range, or a token is outside the vocabulary.
        DamagedDataError: a file is missing, damaged or too short.

    Example:
        >>> import tempfile
        >>> path = Path(tempfile.mkdtemp(), "text.bin")
        >>> np.arange(4000, dtype="<u2").__mod__(200).tofile(path)
        >>> task = decoder(path, parameters=150e3, symbols=256, context=16, steps=10)
        >>> task.name, task.evaluate(task.model(0), "test").keys()
        ('decoder-0.116m', dict_keys(['loss', 'accuracy']))
    """
    for name, value in (("symbols", symbols), ("context", context), ("batch", batch)):
        if value < 1:
            raise TaskError(f"{name} is {value!r}; it has to be at least 1")
    splits = _splits(Path(tokens), context, symbols)
    width = width_for(parameters, symbols, context)
    size = size_of(width, symbols, context)

    def model(seed: int) -> nn.Module:
        return Decoder(width, symbols, context)

    def batches(seed: int) -> Iterator[tuple[Array, Array]]:
        rng = generator(seed, "order")
        while True:
            starts = rng.integers(0, len(splits["train"]) - context, batch)
            yield _windows(splits["train"], starts, context)

    def evaluate(module: nn.Module, split: str) -> dict[str, float]:
        device = next(module.parameters()).device
        starts = np.linspace(0, len(splits[split]) - context - 1, windows).astype(np.int64)
        losses, hits = [], 0
        for first in range(0, windows, batch):
            pair = _windows(splits[split], starts[first : first + batch], context)
            x, y = (torch.from_numpy(part).to(device) for part in pair)
            outputs = module(x)
            losses.append(_loss(outputs, y).item() * len(x))
            hits += int((outputs.argmax(-1) == y).sum())
        return {"loss": sum(losses) / windows, "accuracy": hits / (windows * context)}

    given = {"steps": 2000, "autocast": torch.bfloat16, "name": f"decoder-{size / 1e6:.3g}m"}
    title = f"Next token of your file, a decoder of {size / 1e6:.3g} million parameters"
    return DecoderTask(
        model,
        batches,
        lambda module, pair: _loss(module(pair[0]), pair[1]),
        evaluate,
        sizes=(width, symbols, context, batch, windows),
        **{"title": title, **given, **settings},
    )


def size_of(width: int, symbols: int, context: int) -> int:
    """Return the parameters of a decoder.

    Example:
        >>> size_of(768, 50_257, 1024)
        124337664
    """
    return (symbols + context + 1) * width + _layers(width) * (12 * width**2 + 2 * width)


def width_for(parameters: float, symbols: int, context: int) -> int:
    """Return the width whose decoder has about so many parameters.

    Raises:
        TaskError: the number is not positive, or beyond what one GPU is asked to train.

    Example:
        >>> [width_for(n * 1e6, 50_257, 512) for n in (10, 30, 120)]
        [192, 384, 768]
    """
    if not 0 < parameters <= 1e9:
        raise TaskError(f"parameters is {parameters!r}; it has to be between 1 and 1e9")
    widths = range(_HEAD, 2049, _HEAD)
    return min(widths, key=lambda width: abs(size_of(width, symbols, context) - parameters))


def _layers(width: int) -> int:
    return max(_FEWEST_LAYERS, width // _HEAD)


def _loss(outputs: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(outputs.flatten(0, -2).float(), targets.flatten())


def _windows(tokens: Array, starts: Array, context: int) -> tuple[Array, Array]:
    found = tokens[starts[:, None] + np.arange(context + 1)].astype(np.int64)
    return found[:, :-1], found[:, 1:]


@functools.cache
def _splits(path: Path, context: int, symbols: int) -> dict[str, Array]:
    if path.is_dir():
        where = "nanoGPT's prepare.py writes it"
        train, held = (
            data.read_tokens(data.find(path, f"{n}.bin", where)) for n in ("train", "val")
        )
        middle = len(held) // 2
    elif path.is_file():
        whole = data.read_tokens(path)
        middle = max(1, len(whole) // _HELD_OUT)
        train, held = whole[: -2 * middle], whole[-2 * middle :]
    else:
        raise data.DamagedDataError(f"there is no file or folder {path}")
    splits = {"train": train, "val": held[:middle], "test": held[middle:]}
    for name, part in splits.items():
        if len(part) < context + 2:
            raise data.DamagedDataError(
                f"{path}: the {name} split has {len(part)} tokens; at least {context + 2} are "
                "needed"
            )
        if (largest := int(part[:_LOOKED_AT].max())) >= symbols:
            raise TaskError(
                f"{path} has the token {largest}, and symbols is {symbols}; give symbols="
                f"{largest + 1} or more"
            )
    return splits
