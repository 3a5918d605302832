"""`extra` of a JAX run: its arrays are filled after its containers were made."""

from collections import Counter, OrderedDict, defaultdict

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


SHARED = [1]
ROWS = {
    "plain": [None, True, 3, 0.5, 1j, "a", b"b", (1,), [2], {"k": 1}],
    "long": list(range(5000)),
    "OrderedDict": OrderedDict(b=jnp.ones(2), a=1),
    "Counter": Counter("aab"),
    "defaultdict": defaultdict(list, {"x": [1]}),
    "array": [jnp.ones(2), np.ones(3), np.float32(1.5)],
    "order": np.asfortranarray(np.ones((2, 3))),
    "view": np.arange(9)[::2],
    "twice": [SHARED, SHARED],
}


@pytest.mark.parametrize("row", ROWS)
def test_what_came_back_can_be_saved_again(tmp_path, row):
    ckpt.save(tmp_path, 1, extra={"v": ROWS[row]})
    once = ckpt.restore(tmp_path).extra
    ckpt.save(tmp_path, 2, extra=once)
    assert repr(ckpt.restore(tmp_path).extra) == repr({"v": ROWS[row]})
    assert getattr(once["v"], "__dict__", {}) == {}


def test_extra_itself_keeps_its_class(tmp_path):
    ckpt.save(tmp_path, 1, extra=OrderedDict(b=1, a=2))
    assert repr(ckpt.restore(tmp_path).extra) == repr(OrderedDict(b=1, a=2))


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
