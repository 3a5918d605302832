"""What was loaded is read back, and what a refused restore wrote in place is put back."""

import itertools

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from torch import nn


def stepped(cls, times=1, **options):
    torch.manual_seed(0)
    model = nn.Linear(2, 2)
    optimizer = cls(model.parameters(), **options)
    step(model, optimizer, times)
    return model, optimizer


def step(model, optimizer, times):
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.ones(1, 2)).sum().backward()
        optimizer.step()


@pytest.mark.parametrize("shared", [1e-3, 3e-4])
def test_optimizers_of_one_rate_tensor_are_parted(tmp_path, shared):
    models = {name: nn.Linear(2, 2) for name in "gd"}

    def optimizers(g, d):
        rates = {"g": g, "d": d}
        return {n: torch.optim.SGD(m.parameters(), lr=rates[n]) for n, m in models.items()}

    given = optimizers(torch.tensor(1e-3), torch.tensor(shared))
    ckpt.save(tmp_path, 1, model=models, optimizer=given)
    rate = torch.tensor(1.0)
    given = optimizers(rate, rate)
    ckpt.restore(tmp_path, model=models, optimizer=given)
    groups = {name: optimizer.param_groups[0] for name, optimizer in given.items()}
    assert groups["g"]["lr"] == torch.tensor(1e-3)
    assert groups["d"]["lr"] == torch.tensor(shared)
    assert groups["g"]["lr"] is rate
    assert (groups["d"]["lr"] is rate) == (shared == 1e-3)


class Late(torch.optim.SGD):
    """Writes a key only after some steps."""

    def step(self):
        super().step()
        for group in self.param_groups:
            group["n"] = group.get("n", 0) + 1
            if group["n"] > 2:
                group["averaging"] = True


class Stateless(torch.optim.Optimizer):
    """Counts in its groups and keeps no state."""

    def __init__(self, parameters):
        super().__init__(parameters, {"lr": 0.1})

    def step(self):
        for group in self.param_groups:
            group["t"] = group.get("t", 0) + 1


@pytest.mark.parametrize(("cls", "before", "key"), [(Late, 1, "averaging"), (Stateless, 0, "t")])
def test_a_key_that_a_later_step_wrote_is_refused(tmp_path, cls, before, key):
    model, optimizer = stepped(cls, before)
    ckpt.save(tmp_path, before, model=model, optimizer=optimizer)
    step(model, optimizer, 5)
    said = f"group 0 has '{key}', the checkpoint has not: where a step wrote it, build the optim"
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    del optimizer.param_groups[0][key]
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert key not in optimizer.param_groups[0]


def test_what_schedulers_write_into_groups_may_be_there_already(tmp_path):
    model, optimizer = stepped(torch.optim.SGD, lr=0.25)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    torch.optim.lr_scheduler.StepLR(optimizer, 2)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["initial_lr"] == 0.25


class Dropping(torch.optim.Adam):
    """Takes hyperparameters only."""

    def load_state_dict(self, state_dict):
        for group, loaded in zip(self.param_groups, state_dict["param_groups"], strict=True):
            group.update({key: value for key, value in loaded.items() if key != "params"})


class Cold(torch.optim.Adam):
    """Starts its second moments anew."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for slots in self.state.values():
            slots["exp_avg_sq"] = torch.zeros_like(slots["exp_avg_sq"])


class Partial(torch.optim.Adam):
    """Loads without its second moments."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        for slots in self.state.values():
            del slots["exp_avg_sq"]


def emptied(parameters):
    optimizer = torch.optim.Adam(parameters)
    optimizer.register_load_state_dict_pre_hook(lambda _, given: {**given, "state": {}})
    return optimizer


@pytest.mark.parametrize(
    ("make", "said"),
    [
        (Dropping, "the state of weight was loaded, .* has none"),
        (emptied, "the state of bias was loaded, .* has none"),
        (Cold, r"the state of weight was loaded, state_dict\(\) has another \['exp_avg_sq'\]"),
        (Partial, r"the state of weight was loaded, state_dict\(\) has no \['exp_avg_sq'\]"),
    ],
)
def test_an_optimizer_that_drops_its_state_is_refused(tmp_path, make, said):
    model, optimizer = stepped(make)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other, resumed = stepped(make, 0)
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, model=other, optimizer=resumed)
    assert not resumed.state


class InPlace(torch.optim.Adam):
    """Copies into the tensors it has, those in containers and attributes too."""

    def __init__(self, parameters):
        super().__init__(parameters)
        self.total = [torch.zeros(())]

    def step(self):
        super().step()
        for parameter in self.param_groups[0]["params"]:
            self.state[parameter].setdefault("past", []).append(parameter.detach().clone())
        self.total[0] += 1

    def state_dict(self):
        return {**super().state_dict(), "total": self.total}

    def load_state_dict(self, state_dict):
        given = state_dict["state"]
        for number, parameter in enumerate(self.param_groups[0]["params"]):
            own = self.state[parameter]
            own["past"][:] = given[number]["past"]
            for key in ("step", "exp_avg", "exp_avg_sq"):
                own[key].copy_(given[number][key])
        self.total[0].copy_(state_dict["total"][0])


class Refusing(nn.Linear):
    refuses = False

    def load_state_dict(self, *given, **options):
        if self.refuses:
            raise RuntimeError("no")
        return super().load_state_dict(*given, **options)


@pytest.mark.filterwarnings("ignore:.*refused what it had before")
@pytest.mark.parametrize("refuses", [False, True])
def test_what_an_optimizer_writes_in_place_is_put_back(tmp_path, refuses):
    model = Refusing(2, 2)
    optimizer = InPlace(model.parameters())
    step(model, optimizer, 1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    step(model, optimizer, 3)
    model.refuses = refuses
    slots = optimizer.state[model.weight]
    before = {key: slots[key].clone() for key in ("step", "exp_avg", "exp_avg_sq")}
    memory = slots["exp_avg"]
    if refuses:
        with pytest.raises(oc.IncompatibleCheckpointError, match="RuntimeError: no"):
            ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    else:
        ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert optimizer.state[model.weight]["exp_avg"] is memory
    assert all(torch.equal(slots[key], value) == refuses for key, value in before.items())
    assert len(slots["past"]) == (4 if refuses else 1)
    assert optimizer.total == [4 if refuses else 1]


class Plain:
    """Anything with a state dict."""

    def __init__(self, **state):
        self.state = state

    def state_dict(self):
        return dict(self.state)

    def load_state_dict(self, state):
        self.state = dict(state)


class Deaf(Plain):
    def load_state_dict(self, state):
        pass


class Narrow(Plain):
    def load_state_dict(self, state):
        if state.keys() - self.state.keys():
            self.state["a"] = 7
            raise KeyError("seen")
        self.state = dict(state)


class Ticking(Plain):
    ticks = itertools.count()

    def state_dict(self):
        return {**self.state, "now": next(self.ticks)}


def test_a_state_whose_keys_grow_is_taken(tmp_path):
    ckpt.save(tmp_path, 1, scheduler=Plain(seen=5, past=[1, 2]))
    live = Plain()
    ckpt.restore(tmp_path, scheduler=live)
    assert live.state == {"seen": 5, "past": [1, 2]}
    ckpt.save(tmp_path, 2, scheduler=Plain())
    ckpt.restore(tmp_path, scheduler=live)
    assert live.state == {}


@pytest.mark.parametrize(
    ("live", "said"),
    [
        (Deaf(a=1, seen=1), r"scheduler entry a was loaded as 5, state_dict\(\) has 1"),
        (Deaf(a=5), "scheduler entry seen"),
        (Narrow(a=5), r"load_state_dict\(\) of the scheduler raised KeyError: 'seen'"),
    ],
)
def test_an_object_that_does_not_take_its_state_is_refused(tmp_path, live, said):
    ckpt.save(tmp_path, 1, scheduler=Plain(a=5, seen=2))
    before = dict(live.state)
    with pytest.raises(oc.IncompatibleCheckpointError, match=said):
        ckpt.restore(tmp_path, scheduler=live)
    assert live.state == before


class Later(Plain):
    """Takes up what it is given when it is iterated, and shows its old state until then."""

    given = None

    def load_state_dict(self, state):
        self.given = state

    def __iter__(self):
        self.state.update(self.given or {})
        yield from range(self.state["a"], 7)


def test_a_stream_that_takes_up_its_state_later_is_taken(tmp_path):
    ckpt.save(tmp_path, 1, data=Later(a=5))
    live = Later(a=1)
    ckpt.restore(tmp_path, data=live)
    assert list(live) == [5, 6]


class Stubborn(Plain):
    """Refuses every state, after it has changed what it has."""

    def load_state_dict(self, state):
        self.state["a"] += 1
        raise KeyError("never")


def test_an_object_that_refuses_what_it_had_is_said(tmp_path):
    ckpt.save(tmp_path, 1, scheduler=Plain(a=5))
    said = "Stubborn refused what it had before; its attributes were put back: 'never'"
    with pytest.warns(oc.CheckpointWarning, match=said), pytest.raises(KeyError, match="never"):
        ckpt.restore(tmp_path, scheduler=Stubborn(a=1))


def test_what_is_never_the_same_twice_is_not_compared(tmp_path):
    ckpt.save(tmp_path, 1, scheduler=Ticking(a=5))
    live = Ticking(a=1)
    ckpt.restore(tmp_path, scheduler=live)
    assert live.state["a"] == 5


def test_a_scheduler_of_torch_does_not_take_the_keys_of_another(tmp_path):
    _, optimizer = stepped(torch.optim.SGD, lr=0.25)
    schedulers = torch.optim.lr_scheduler
    ckpt.save(tmp_path, 1, scheduler=schedulers.StepLR(optimizer, 2))
    live = schedulers.ExponentialLR(optimizer, 0.5)
    with pytest.raises(oc.IncompatibleCheckpointError, match="scheduler entry step_size"):
        ckpt.restore(tmp_path, scheduler=live)
    assert not hasattr(live, "step_size")
