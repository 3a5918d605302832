from pathlib import Path

import jax
import jax.numpy as jnp
import optax
from optim_checkpoint import jax as ckpt

GOLDEN = Path(__file__).parent.parent / "golden" / "v1-jax"


def test_format_1_is_restored():
    params = {"w": jnp.zeros(2, jnp.bfloat16), "b": [jnp.zeros(())]}
    found = ckpt.restore(GOLDEN, params=params, opt_state=optax.adamw(0.5).init(params))
    assert (found.step, found.extra) == (1, {"epoch": 1})
    assert found.params["w"].tolist() == [1.0, 2.0]
    assert found.params["b"][0] == 3.0
    assert found.opt_state[0].count == 1
    assert found.opt_state[0].mu["w"].tolist() == [1.0, 1.0]
    assert jax.random.key_data(found.rng).tolist() == [0, 7]
