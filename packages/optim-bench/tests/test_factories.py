"""What may be named as an optimizer, and what is refused before anything trains."""

import functools

import optax
import pytest
import stac_torch
import torch
from optim_bench import compare
from optim_bench.errors import BenchError
from optim_bench.optimizers import call_factory, enter_optimizer, resolve
from optim_bench.records import RunRecord
from optim_bench.results.store import Store
from torch import nn

SGD = torch.optim.SGD


class OfAModule(SGD):
    def __init__(self, module, learning_rate):
        super().__init__(module.parameters(), lr=learning_rate)


class OfAModel(SGD):
    def __init__(self, model, lr, momentum=0.0):
        super().__init__(model.parameters(), lr=lr, momentum=momentum)


@pytest.mark.parametrize(
    ("factory", "settings", "expected"),
    [
        (SGD, {}, {"lr": 0.5, "momentum": 0}),
        (SGD, {"momentum": 0.9}, {"lr": 0.5, "momentum": 0.9}),
        (functools.partial(SGD, lr=3.0, momentum=0.9), {}, {"lr": 0.5, "momentum": 0.9}),
        (functools.partial(functools.partial(SGD), momentum=0.8), {}, {"lr": 0.5, "momentum": 0.8}),
        (OfAModule, {}, {"lr": 0.5}),
        (OfAModel, {"momentum": 0.8}, {"lr": 0.5, "momentum": 0.8}),
        (stac_torch.STAMLite, {}, {"lr": 0.5}),
    ],
)
def test_a_class_of_torch_is_given_what_it_takes(factory, settings, expected):
    module = nn.Linear(2, 3)
    made = call_factory("mine", "torch", factory, {"learning_rate": 0.5, **settings}, module)
    assert isinstance(made, torch.optim.Optimizer)
    assert {id(p) for group in made.param_groups for p in group["params"]} == {
        id(p) for p in module.parameters()
    }
    for group in made.param_groups:
        assert expected.items() <= group.items()


def own_default(module, learning_rate=0.25):
    raise NotImplementedError


def none(module, learning_rate):
    return None


@pytest.mark.parametrize(
    ("given", "framework", "centre"),
    [
        ("torch.optim:Adagrad", "torch", 0.01),
        (own_default, "torch", 0.25),
        (none, "torch", 1e-3),
        ("optax:adamw", "jax", 1e-3),
        ("optax.contrib:prodigy", "jax", 1.0),
    ],
)
def test_the_search_is_centred_on_the_default_of_the_signature(given, framework, centre):
    name = given if isinstance(given, str) else enter_optimizer(given, framework)
    assert resolve(name, framework).learning_rate == centre


def test_a_class_is_compared_by_name_and_as_an_object(tmp_path):
    found = [
        compare(
            "rosenbrock", [optimizer], framework="torch", tier="smoke", seeds=1,
            executor="inline", output=tmp_path / name, quiet=True,
        )
        for name, optimizer in (("class", torch.optim.Adagrad), ("name", "torch.optim:Adagrad"))
    ]  # fmt: skip
    rows = [[row for row in one.records() if row["optimizer"] != "adamw"] for one in found]
    assert [row[0]["optimizer"] for row in rows] == ["Adagrad", "torch.optim:Adagrad"]
    assert rows[0][0]["mean"] == rows[1][0]["mean"]


def schedule(module, learning_rate):
    made = SGD(module.parameters(), lr=learning_rate)
    return torch.optim.lr_scheduler.StepLR(made, 1)


def pair(module, learning_rate):
    return SGD(module.parameters(), lr=learning_rate), None


def rateless(module, learning_rate):
    made = SGD(module.parameters(), lr=learning_rate)
    del made.param_groups[0]["lr"]
    return made


def of_parameters(params, lr):
    return SGD(params, lr)


def looks(learning_rate):
    return optax.sgd(float(learning_rate))


TORCH_LINE = (
    "; write: def mine(module, learning_rate): "
    "return OPTIMIZER(module.parameters(), lr=learning_rate)"
)
JAX_LINE = "; write: def mine(learning_rate): return OPTIMIZER(learning_rate)"
FORM = "cannot be called as factory(module, learning_rate) with learning_rate"
JAX_FORM = "cannot be called as factory(learning_rate) with learning_rate"
REFUSED = [
    ("torch", none, "none: the factory returned a NoneType; return a torch.optim.Optimizer"),
    ("torch", schedule, "schedule: the factory returned a StepLR; return a torch.optim.Optimizer"),
    ("torch", pair, "pair: the factory returned a tuple; return a torch.optim.Optimizer"),
    (
        "torch",
        torch.optim.LBFGS,
        "LBFGS: its step needs a closure, and the benchmark takes the gradients of one batch for a",
    ),
    ("torch", rateless, "group 0 of SGD has no 'lr'; the benchmark sets it before every step, so "),
    (
        "torch",
        of_parameters,
        f"of_parameters {FORM}: missing a required argument: 'lr'{TORCH_LINE}",
    ),
    (
        "torch",
        functools.partial(SGD, [torch.zeros(1)]),
        f"SGD {FORM}: multiple values for argument 'lr'{TORCH_LINE}",
    ),
    ("torch", "torch.optim:SGD,lr=0.1", "torch.optim:SGD: lr is given twice; write learning_rate"),
    (
        "torch",
        "torch.optim:SGD,moment=0.9",
        f"torch.optim:SGD {FORM}, moment: got an unexpected keyword argument 'moment'{TORCH_LINE}",
    ),
    (
        "jax",
        optax.scale_by_adam,
        f"scale_by_adam {JAX_FORM}: got an unexpected keyword argument 'learning_rate'{JAX_LINE}",
    ),
    ("jax", looks, "looks: the factory looks at the value of learning_rate, which is traced here"),
    (
        "jax",
        optax.constant_schedule,
        "constant_schedule cannot be called as factory(learning_rate)",
    ),
]


@pytest.mark.parametrize(("framework", "factory", "message"), REFUSED)
def test_what_makes_no_optimizer_is_one_sentence_before_any_run(
    framework, factory, message, tmp_path
):
    with pytest.raises(BenchError) as caught:
        compare(
            "rosenbrock", [factory], framework=framework, tier="smoke", executor="inline",
            output=tmp_path / "out", quiet=True,
        )  # fmt: skip
    assert str(caught.value).startswith(message)
    assert not (tmp_path / "out").exists()


def test_what_shows_in_the_first_run_alone_ends_the_comparison_there(tmp_path, monkeypatch):
    # On a GPU nothing is made before the runs.
    monkeypatch.setattr("optim_bench.cli.compare.check_factories", lambda *_: None)
    with pytest.raises(BenchError, match=r"^pair: the factory returned a tuple; return a torch"):
        compare(
            "rosenbrock", [pair], framework="torch", tier="smoke", executor="inline",
            output=tmp_path / "out", quiet=True,
        )  # fmt: skip
    runs: list[RunRecord] = list(Store(tmp_path / "out").records().values())
    assert runs == []


def test_what_the_factory_itself_raises_is_left_to_its_runs(tmp_path):
    with pytest.raises(BenchError, match=r"^every run of Muon on .* failed, the first with ValueE"):
        compare(
            "rosenbrock", [torch.optim.Muon], framework="torch", tier="smoke", seeds=1,
            executor="inline", output=tmp_path / "out", quiet=True,
        )  # fmt: skip
