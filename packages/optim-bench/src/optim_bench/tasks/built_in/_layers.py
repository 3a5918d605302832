"""Initial parameters in NumPy, so that both frameworks start from the same numbers."""

import numpy as np

from optim_bench.tasks.built_in._workload import Array


def dense(
    rng: np.random.Generator, name: str, inputs: int, outputs: int, *, gain: float = 2.0
) -> dict[str, Array]:
    """Return `name.weight` (outputs, inputs) ~ N(0, gain/inputs) and `name.bias` (zeros)."""
    weight = rng.standard_normal((outputs, inputs)) * np.sqrt(gain / inputs)
    return {
        f"{name}.weight": weight.astype(np.float32),
        f"{name}.bias": np.zeros(outputs, np.float32),
    }


def convolution(
    rng: np.random.Generator, name: str, inputs: int, outputs: int, size: int
) -> dict[str, Array]:
    """Return `name.weight` (outputs, inputs, size, size) ~ N(0, 2/fan_in) and a zero bias."""
    weight = rng.standard_normal((outputs, inputs, size, size)) * np.sqrt(2 / (inputs * size**2))
    return {
        f"{name}.weight": weight.astype(np.float32),
        f"{name}.bias": np.zeros(outputs, np.float32),
    }


def mlp(rng: np.random.Generator, widths: tuple[int, ...]) -> dict[str, Array]:
    """Return the parameters of `fc1`, `fc2`, …: ReLU between them, the last one linear."""
    params: dict[str, Array] = {}
    last = len(widths) - 1
    for i in range(1, len(widths)):
        gain = 1.0 if i == last else 2.0
        params |= dense(rng, f"fc{i}", widths[i - 1], widths[i], gain=gain)
    return params
