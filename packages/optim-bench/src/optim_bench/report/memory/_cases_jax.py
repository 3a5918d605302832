"""State bytes in JAX from shapes alone, and what the compiler says about a step."""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
import stam_jax

from optim_bench.report.memory._report import Model

CASES: Mapping[str, optax.GradientTransformation] = MappingProxyType(
    {
        "AdamW": optax.adamw(1e-3, weight_decay=0.01),
        "STAM": stam_jax.stam(1e-3, weight_decay=0.01),
        "STAMLite": stam_jax.stam_lite(1e-3, weight_decay=0.01),
        "STAMLite, bfloat16 momentum": stam_jax.stam_lite(
            1e-3, weight_decay=0.01, state_dtype=jnp.bfloat16
        ),
    }
)


def measure(model: Model, case: str) -> dict[str, int | None]:
    """Return exact bytes of parameters and state, and the compiled step's peak.

    No array is made: shapes tell the state, and the compiler tells the peak of a donated, jitted
    step, arguments + outputs + temporaries - what the outputs share with the arguments.
    """
    params = [
        {
            "w": jax.ShapeDtypeStruct((inputs, outputs), jnp.float32),
            "b": jax.ShapeDtypeStruct((outputs,), jnp.float32),
        }
        for inputs, outputs in zip(model.widths, model.widths[1:], strict=False)
    ]
    transformation = CASES[case]
    state = jax.eval_shape(transformation.init, params)

    def step(params: Any, state: Any, grads: Any) -> Any:
        updates, state = transformation.update(grads, state, params)
        return optax.apply_updates(params, updates), state

    compiled = jax.jit(step, donate_argnums=(0, 1)).lower(params, state, params).compile()
    analysis = compiled.memory_analysis()
    peak = temporary = None
    if analysis is not None:  # a backend may not know
        temporary = int(analysis.temp_size_in_bytes)
        peak = (
            int(analysis.argument_size_in_bytes)
            + int(analysis.output_size_in_bytes)
            + temporary
            - int(analysis.alias_size_in_bytes)
        )
    return {
        "parameter_bytes": _bytes(params),
        "state_bytes": _bytes(state),
        "temporary_bytes": temporary,
        "peak_bytes": peak,
    }


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))
