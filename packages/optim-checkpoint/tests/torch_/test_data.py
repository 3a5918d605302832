"""Where a data loader is, and saves of nothing."""

from collections import OrderedDict

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt


class Loader:
    """As torchdata's: a state dict of numbers and tensors."""

    def __init__(self, count=5):
        self.order, self.at = torch.randperm(count), 0

    def __next__(self):
        self.at += 1
        return int(self.order[self.at - 1])

    def state_dict(self):
        return {"order": self.order, "at": self.at}

    def load_state_dict(self, state):
        self.order, self.at = state["order"], state["at"]


class Iterator:
    """As Grain's: other names, and bytes."""

    def __init__(self):
        self.at = 0

    def get_state(self):
        return str(self.at).encode()

    def set_state(self, state):
        self.at = int(state)


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


class Refusing(Loader):
    def load_state_dict(self, state):
        raise RuntimeError("not today")


@pytest.mark.parametrize("several", [False, True])
def test_a_loader_goes_on_where_it_was(tmp_path, several):
    loader, iterator = Loader(), Iterator()
    for _ in range(2):
        next(loader)
    iterator.at = 7
    data = {"train": loader, "val": iterator} if several else loader
    ckpt.save(tmp_path, 1, data=data)
    expected = [next(loader) for _ in range(3)]
    other, second = Loader(), Iterator()
    ckpt.restore(tmp_path, data={"val": second, "train": other} if several else other)
    assert [next(other) for _ in range(3)] == expected
    assert second.at == (7 if several else 0)


def test_a_loader_that_begins_when_it_is_asked_goes_on_where_it_was(tmp_path):
    loader, other = Nodes(), Nodes()
    rest = iter(loader)
    next(rest)
    ckpt.save(tmp_path, 1, data=loader)
    ckpt.restore(tmp_path, data=other)
    assert list(other) == list(rest) == [2, 3, 4, 5]


def test_a_loader_saved_in_the_background_and_one_that_refuses(tmp_path):
    model = torch.nn.Linear(2, 2)
    with ckpt.AsyncCheckpointer(tmp_path) as background:
        background.save(1, model=model, data=Loader(), metrics={"loss": 1})
    assert oc.retained(tmp_path)[0].metrics == {"loss": 1.0}
    live, loader = torch.nn.Linear(2, 2), Refusing()
    before = live.weight.clone()
    with pytest.raises(RuntimeError, match="not today"):
        ckpt.restore(tmp_path, model=live, data=loader)
    assert torch.equal(live.weight, before)
    with pytest.raises(oc.IncompatibleCheckpointError, match="holds no data/x, it holds data"):
        ckpt.restore(tmp_path, data={"x": Loader()})


def test_a_state_that_is_an_ordered_dict_comes_back_as_one(tmp_path):
    class Ordered(Loader):
        def state_dict(self):
            return OrderedDict(super().state_dict())

        def load_state_dict(self, state):
            assert type(state) is OrderedDict
            super().load_state_dict(state)

    loader, other = Ordered(), Ordered()
    next(loader)
    ckpt.save(tmp_path, 1, data=loader)
    ckpt.restore(tmp_path, data=other)
    assert (other.at, next(other)) == (1, next(loader))


def test_what_has_no_state_is_no_data(tmp_path):
    with pytest.raises(TypeError, match=r"^data is a list of 1: give each a name"):
        ckpt.save(tmp_path, 1, data=[Loader()])
    with pytest.raises(
        TypeError, match=r"^data is a range, which has no state_dict and no load_st"
    ):
        ckpt.save(tmp_path, 1, data=range(3))
    with pytest.raises(TypeError, match=r"unexpected keyword argument 'modle'"):
        ckpt.AsyncCheckpointer(tmp_path).save(1, modle=Loader())


def test_a_save_of_nothing_is_refused(tmp_path):
    message = (
        r"^step 1 has nothing to save: give model, optimizer, scheduler, scaler, data or extra"
    )
    with pytest.raises(ValueError, match=message):
        ckpt.save(tmp_path, step=1)
    with pytest.raises(ValueError, match=message):
        ckpt.AsyncCheckpointer(tmp_path).save(1, metrics={"loss": 0.1})
    assert oc.steps(tmp_path) == []
