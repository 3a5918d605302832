"""`extra` of a JAX run: its arrays are filled after its containers were made."""

from collections import OrderedDict

import jax
import jax.numpy as jnp
import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import jax as ckpt
from optim_checkpoint.jax._leaves import Pending, settle_jax


def test_containers_stay_what_they_were(tmp_path):
    shared = [jnp.arange(3), 1]
    extra = {
        "shared": [shared, (shared,), {"a": shared}],
        "ordered": OrderedDict(b=jnp.ones(2), a=1),
        "long": list(range(5000)),
        "fortran": np.asfortranarray(np.ones((2, 3))),
    }
    ckpt.save(tmp_path, 1, extra=extra)
    found = ckpt.restore(tmp_path).extra
    one, two, three = found["shared"]
    assert one is two[0] is three["a"]
    assert isinstance(one[0], jax.Array)
    assert one[0].tolist() == [0, 1, 2]
    assert type(found["ordered"]) is OrderedDict
    assert isinstance(found["ordered"]["b"], jax.Array)
    assert found["long"] == extra["long"]
    assert found["fortran"].flags.f_contiguous


def test_sharing_that_doubles_at_every_level_takes_no_time():
    """A small file can say that; a restore must not walk it as the tree that it unfolds to."""
    value = (Pending(np.zeros(1, np.float32)),)
    for level in range(60):
        value = [value, value] if level % 2 else (value, value)
    found = settle_jax(value)
    for _ in range(60):
        assert found[0] is found[1]
        found = found[0]
    assert isinstance(found[0], jax.Array)


def test_views_of_one_memory_are_refused(tmp_path):
    base = np.zeros(4)
    with pytest.raises(oc.UnsupportedStateError, match=r"^extra\['b'\]: shares memory with"):
        ckpt.save(tmp_path, 1, extra={"a": base, "b": base[1:]})
    assert oc.steps(tmp_path) == []


def test_a_numpy_scalar_in_the_state_is_kept(tmp_path):
    state = {"scale": np.float32(1.5), "steps": 3}
    ckpt.save(tmp_path, 1, opt_state=state)
    found = ckpt.restore(tmp_path, opt_state=state).opt_state
    assert repr(found) == repr(state)


def test_more_dimensions_than_numpy_has_are_refused(tmp_path):
    with pytest.raises(oc.UnsupportedStateError, match=r"has 65 dimensions, the limit of NumPy is"):
        ckpt.save(tmp_path, 1, extra={"x": jnp.zeros((1,) * 65)})
    assert oc.steps(tmp_path) == []
