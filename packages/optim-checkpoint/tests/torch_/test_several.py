"""Several models, optimizers and schedulers in one checkpoint, by name."""

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from optim_checkpoint._export import export
from safetensors.torch import load_file


class Run:
    """A generator and a critic of equal shapes, each with an optimizer and a scheduler."""

    def __init__(self, seed):
        torch.manual_seed(seed)
        self.model = {"g": torch.nn.Linear(2, 2), "d": torch.nn.Linear(2, 2)}
        self.optimizer = {
            "g": torch.optim.Adam(self.model["g"].parameters(), lr=0.1),
            "d": torch.optim.Adam(self.model["d"].parameters(), lr=0.2),
        }
        self.scheduler = {
            name: torch.optim.lr_scheduler.StepLR(self.optimizer[name], size)
            for name, size in (("g", 1), ("d", 2))
        }

    def train(self, steps):
        for _ in range(steps):
            for name, model in self.model.items():
                self.optimizer[name].zero_grad()
                model(torch.ones(1, 2)).square().sum().backward()
                self.optimizer[name].step()
                self.scheduler[name].step()

    @property
    def given(self):
        return {"model": self.model, "optimizer": self.optimizer, "scheduler": self.scheduler}

    def values(self):
        states = [o.state_dict()["state"] for o in self.optimizer.values()]
        rates = [o.param_groups[0]["lr"] for o in self.optimizer.values()]
        tensors = [v for m in self.model.values() for v in m.state_dict().values()]
        tensors += [v for state in states for slots in state.values() for v in slots.values()]
        return [t.tolist() for t in tensors], rates


def save(path, run, background):
    if not background:
        return ckpt.save(path, 3, **run.given)
    with ckpt.AsyncCheckpointer(path) as checkpointer:
        checkpointer.save(3, **run.given)
    return None


@pytest.mark.parametrize("background", [False, True], ids=["sync", "async"])
def test_several_are_restored_by_name_whatever_their_order(tmp_path, background):
    run, other = Run(0), Run(1)
    run.train(3)
    save(tmp_path, run, background)
    for given in (other.model, other.optimizer, other.scheduler):
        given["g"] = given.pop("g")
    ckpt.restore(tmp_path, **other.given)
    for given in (other.model, other.optimizer, other.scheduler):
        given["d"] = given.pop("d")
    assert other.values() == run.values()
    run.train(2)
    other.train(2)
    assert other.values() == run.values()


def test_models_by_name_are_those_of_a_module_dict(tmp_path):
    run, other = Run(0), Run(1)
    run.train(1)
    path = ckpt.save(tmp_path, 1, model=torch.nn.ModuleDict(run.model), optimizer=run.optimizer)
    ckpt.restore(tmp_path, model=other.model, optimizer=other.optimizer)
    assert other.values()[0] == run.values()[0]
    shown = oc.inspect(tmp_path)
    assert shown.sections == ("model", "optimizer/d", "optimizer/g", "rng")
    assert shown.optimizer == "d: torch.optim.adam.Adam, g: torch.optim.adam.Adam"
    assert {t.name for t in shown.tensors if t.part == "model"} == {
        f"{name}.{entry}" for name in "gd" for entry in ("weight", "bias")
    }
    assert "g.state.g.weight.exp_avg" in {t.name for t in shown.tensors}
    assert path.name == "step-00000001"


def test_names_that_differ_are_listed_and_nothing_changes(tmp_path):
    run, other = Run(0), Run(1)
    run.train(1)
    ckpt.save(tmp_path, 1, **run.given)
    before = other.values()
    del other.scheduler["g"]
    other.optimizer["critic"] = other.optimizer.pop("d")
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, **other.given)
    assert caught.value.differences == (
        "the checkpoint of step 1 holds no optimizer/critic, it holds optimizer/d, optimizer/g",
        "the checkpoint of step 1 holds optimizer/d, which was not asked for: give all or none",
        "the checkpoint of step 1 holds scheduler/g, which was not asked for: give all or none",
    )
    alone = torch.optim.Adam(other.model["g"].parameters())
    with pytest.raises(oc.IncompatibleCheckpointError, match="holds no optimizer, it holds opt"):
        ckpt.restore(tmp_path, model=other.model, optimizer=alone)
    assert other.values() == before


def test_a_difference_says_whose_it_is(tmp_path):
    run, other = Run(0), Run(1)
    ckpt.save(tmp_path, 1, **run.given)
    other.optimizer["d"] = torch.optim.SGD(other.model["d"].parameters())
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, model=other.model, optimizer=other.optimizer)
    assert caught.value.differences[0] == (
        "optimizer d: the optimizer is torch.optim.adam.Adam in the checkpoint, "
        "torch.optim.sgd.SGD here"
    )
    assert all(each.startswith("optimizer d: ") for each in caught.value.differences)


MODEL = torch.nn.Linear(2, 2)
ADAM = torch.optim.Adam(MODEL.parameters())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        (
            {"optimizer": [ADAM, ADAM]},
            r"optimizer is a list of 2: give each a name that stays, as in optimizer=\{",
        ),
        ({"scheduler": ()}, "scheduler is a tuple of 0: give each"),
        ({"model": {}}, "model is an empty mapping; leave it out"),
        ({"model": {"a.b": MODEL}}, r"model has the name 'a\.b'; a name is printable text without"),
        ({"optimizer": {1: ADAM}}, "optimizer has the name 1; a name is"),
        ({"model": ADAM}, r"model is a Adam; it has to be a torch\.nn\.Module"),
        ({"model": {"g": None}}, r"model\['g'\] is a NoneType; it has to be"),
        (
            {"optimizer": MODEL},
            "optimizer is a Linear, which has no param_groups and no state; give",
        ),
        (
            {"scheduler": {"g": 3}},
            r"scheduler\['g'\] is a int, which has no state_dict and no load",
        ),
    ],
)
def test_what_is_no_object_and_no_mapping_is_refused(tmp_path, given, said):
    for call in (lambda: ckpt.save(tmp_path, 1, **given), lambda: ckpt.restore(tmp_path, **given)):
        with pytest.raises(TypeError, match=said):
            call()
    assert list(tmp_path.iterdir()) == []


class KeyedBy:
    """Anything with a state dict."""

    def __init__(self, key):
        self.key = key

    def state_dict(self):
        return {self.key: 1, "other": 2}

    def load_state_dict(self, state_dict):
        raise AssertionError("not to be called")


def test_a_key_of_another_type_is_told_apart(tmp_path):
    ckpt.save(tmp_path, 1, scheduler=KeyedBy(0))
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, scheduler=KeyedBy("0"))
    said = "scheduler entry 0: the key is int in the checkpoint, str here"
    assert caught.value.differences == (said,)


def test_an_export_of_tied_weights_loads_strictly(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    model[1].weight = model[0].weight
    ckpt.save(tmp_path / "run", 1, model=model)
    assert export(tmp_path / "run", tmp_path / "model.safetensors") == 4
    other = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Linear(2, 2))
    other.load_state_dict(load_file(tmp_path / "model.safetensors"), strict=True)
    assert torch.equal(other[1].weight, model[0].weight)
