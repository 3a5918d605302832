"""A step that is exported for shapes that are not known yet."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_jax
from jax import export

BOTH = pytest.mark.parametrize("make", [stam_jax.stam, stam_jax.stam_lite])


def exported(make, **options):
    """Return an exported update of a leaf of any length, and the update itself, over leaves."""
    optimizer = make(0.1, **options)
    (n,) = export.symbolic_shape("n")
    shapes = {
        "b": jax.ShapeDtypeStruct((3,), jnp.float32),
        "w": jax.ShapeDtypeStruct((n, 4), jnp.float32),
    }
    leaves, treedef = jax.tree.flatten((shapes, jax.eval_shape(optimizer.init, shapes), shapes))

    def update(*leaves):
        return jax.tree.leaves(optimizer.update(*treedef.unflatten(leaves)))

    return export.export(jax.jit(update))(*leaves), update, optimizer


@BOTH
@pytest.mark.parametrize(
    "options", [{}, {"stat_axes": lambda path, leaf: (leaf.ndim - 1,) if leaf.ndim > 1 else ()}]
)
def test_one_program_for_every_length(make, options):
    program, update, optimizer = exported(make, **options)
    for n in (2, 5000):
        params = {"b": jnp.ones(3), "w": jnp.linspace(-1.0, 2.0, 4 * n).reshape(n, 4)}
        leaves = jax.tree.leaves((params, optimizer.init(params), params))
        for found, expected in zip(program.call(*leaves), update(*leaves), strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-5)


@BOTH
@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"stat_sample": 8}, r"leaf 'w' has the symbolic shape \(n, 4\), and stat_sample needs"),
        (
            {"stat_axes": lambda path, leaf: (0,)},
            r"stat_axes returned axis 0 for leaf 'w', whose length n is a symbol",
        ),
    ],
)
def test_what_needs_a_size_says_so(make, options, says):
    with pytest.raises(ValueError, match=says):
        exported(make, **options)
