"""Where a data iterator is, and saves of nothing."""

import jax.numpy as jnp
import numpy as np
import optim_checkpoint as oc
import pytest
from optim_checkpoint import jax as ckpt


class Iterator:
    """As Grain's."""

    def __init__(self, at=0):
        self.at = at

    def get_state(self):
        return {"at": self.at, "array": np.arange(self.at)}

    def set_state(self, state):
        assert len(state["array"]) == state["at"]
        self.at = state["at"]


class Loader:
    def __init__(self, at=0):
        self.at = at

    def state_dict(self):
        return {"at": self.at}

    def load_state_dict(self, state):
        if state["at"] == 9:
            raise RuntimeError("not today")
        self.at = state["at"]


class Nodes:
    """As torchdata.nodes.Loader: asked for its state, it begins, and what is loaded comes next."""

    def __init__(self, count=5):
        self.count, self.at, self.begun, self.loaded = count, 0, False, 0

    def __iter__(self):
        if not self.begun:
            self.at, self.begun = self.loaded, True
        while self.at < self.count:
            self.at += 1
            yield self.at

    def state_dict(self):
        if not self.begun:
            self.at, self.begun = self.loaded, True
        return {"at": self.at}

    def load_state_dict(self, state):
        self.loaded = state["at"]


@pytest.mark.parametrize("background", [False, True])
def test_an_iterator_goes_on_where_it_was(tmp_path, background):
    data = {"train": Iterator(7), "val": Loader(3)}
    if background:
        with ckpt.AsyncCheckpointer(tmp_path) as checkpointer:
            checkpointer.save(1, data=data, metrics={"loss": jnp.float32(0.5)})
    else:
        ckpt.save(tmp_path, 1, data=data, metrics={"loss": jnp.float32(0.5)})
    live = {"val": Loader(), "train": Iterator()}
    ckpt.restore(tmp_path, data=live)
    assert (live["train"].at, live["val"].at) == (7, 3)
    assert oc.retained(tmp_path)[0].metrics == {"loss": 0.5}
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="holds data/train, data/val, asked fo"
    ):
        ckpt.restore(tmp_path, data=Loader())


def test_a_loader_that_begins_when_it_is_asked_goes_on_where_it_was(tmp_path):
    loader, other = Nodes(), Nodes()
    rest = iter(loader)
    next(rest)
    ckpt.save(tmp_path, 1, data=loader)
    ckpt.restore(tmp_path, data=other)
    assert list(other) == list(rest) == [2, 3, 4, 5]


def test_where_one_refuses_all_are_where_they_were(tmp_path):
    ckpt.save(tmp_path, 1, params=jnp.ones(2), data={"a": Iterator(7), "b": Loader(9)})
    live = {"a": Iterator(1), "b": Loader(2)}
    with pytest.raises(RuntimeError, match="not today"):
        ckpt.restore(tmp_path, data=live)
    assert (live["a"].at, live["b"].at) == (1, 2)


def test_what_has_no_state_is_no_data(tmp_path):
    with pytest.raises(
        TypeError, match=r"^data is a list, which has no state_dict and no load_stat"
    ):
        ckpt.save(tmp_path, 1, data=[Iterator()])
    with pytest.raises(TypeError, match=r"^data has the name 'a\.b'; a name is printable text"):
        ckpt.save(tmp_path, 1, data={"a.b": Iterator()})


def test_a_save_of_nothing_is_refused(tmp_path):
    with pytest.raises(
        ValueError, match=r"^step 1 has nothing to save: give params, opt_state, rng"
    ):
        ckpt.save(tmp_path, 1)
    assert oc.steps(tmp_path) == []
