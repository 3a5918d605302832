"""Names, ranges and plugins: what is refused, with which words, and what a third party can add."""

import dataclasses
from importlib import metadata

import pytest
from optim_bench.executors.train import MissingExtraError, train
from optim_bench.optimizers import (
    ENTRY_POINT_GROUP,
    OPTIMIZERS,
    OptimizerInfo,
    Parameter,
    discover,
    learning_rate,
    resolve,
)
from optim_bench.protocol.catalog import (
    Request,
    absent_optimizers,
    all_optimizers,
    build_plan,
    check_installed,
)
from optim_bench.records import RunSpec

PLUGIN = """
from optim_bench.optimizers import OptimizerInfo, Parameter, learning_rate


def factory(module, *, learning_rate, momentum):
    import torch
    return torch.optim.SGD(module.parameters(), learning_rate, momentum=momentum)


HEAVY = OptimizerInfo(
    "heavy", "torch", "A plugin", "third-party", factory,
    {"learning_rate": learning_rate(0.05), "momentum": Parameter(0.8, 0.0, 1.0, high_open=True)},
)
BOTH = [HEAVY]
NOTHING = 42
TAKEN = OptimizerInfo(
    "adamw", "torch", "Impostor", "third-party", factory, {"learning_rate": learning_rate(1.0)}
)
"""


@pytest.fixture
def plugin(tmp_path, monkeypatch):
    """Install a distribution whose entry points are given as name -> object."""

    def install(**points):
        (tmp_path / "bench_plugin.py").write_text(PLUGIN)
        info = tmp_path / "bench_plugin-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text("Metadata-Version: 2.1\nName: bench-plugin\nVersion: 1.0\n")
        lines = [f"{name} = {target}" for name, target in points.items()]
        (info / "entry_points.txt").write_text("\n".join([f"[{ENTRY_POINT_GROUP}]", *lines]))
        monkeypatch.syspath_prepend(str(tmp_path))

    return install


def heavy_spec(name: str, hyperparameters: dict) -> RunSpec:
    return RunSpec("diamonds-mlp", 1, "torch", name, hyperparameters, 0, 25, "cosine")


def test_an_entry_point_adds_an_optimizer(plugin):
    plugin(heavy="bench_plugin:HEAVY")

    info = resolve("heavy", "torch")
    assert (info.title, info.learning_rate) == ("A plugin", 0.05)
    assert discover().problems == {}
    assert train(heavy_spec("heavy", {"learning_rate": 0.05})).status == "ok"


def test_an_entry_point_may_hold_several(plugin):
    plugin(some="bench_plugin:BOTH")

    assert set(discover().optimizers) == {"torch/heavy"}


@pytest.mark.parametrize(
    ("target", "problem"),
    [
        ("bench_plugin:NOTHING", "bench_plugin:NOTHING is no OptimizerInfo and no sequence of"),
        ("bench_plugin:TAKEN", "bench_plugin:TAKEN: the name torch/adamw is already taken"),
        ("bench_plugin_gone:X", "bench_plugin_gone:X fails to load: ModuleNotFoundError: No mod"),
    ],
)
def test_a_broken_plugin_is_reported_and_stops_nothing(plugin, target, problem):
    plugin(broken=target)

    assert discover().problems["broken"].startswith(problem)
    assert resolve("adamw", "torch").title == "AdamW"
    with pytest.raises(ValueError, match=r"no torch optimizer named 'heavy'.*; plugin broken: "):
        resolve("heavy", "torch")


def test_a_reference_to_a_factory_runs_with_free_hyperparameters(plugin):
    plugin()

    info = resolve("bench_plugin:factory", "torch")
    assert (info.family, info.learning_rate) == ("third-party", 1e-3)
    spec = heavy_spec("bench_plugin:factory", {"learning_rate": 0.05, "momentum": 0.8})
    assert (
        train(spec).metrics
        == train(dataclasses.replace(spec, optimizer="bench_plugin:HEAVY")).metrics
    )


def test_a_reference_may_name_an_info_but_of_the_right_framework(plugin):
    plugin()

    assert resolve("bench_plugin:HEAVY", "torch").name == "heavy"
    with pytest.raises(ValueError, match="bench_plugin:HEAVY is a torch optimizer, not a jax one"):
        resolve("bench_plugin:HEAVY", "jax")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("adamv", r"^no torch optimizer named 'adamv'; did you mean adamw\?$"),
        ("xyz", r"^no torch optimizer named 'xyz'; there are adafactor, adamw, "),
        ("novograd", r"novograd exists only in the other framework"),
        ("no_such_module:f", r"^'no_such_module:f' cannot be imported: No module named 'no_such_"),
        ("math:no_such", r"^'math:no_such': module math has no no_such$"),
        ("math:pi", r"^math:pi is a float; it has to be a factory or an OptimizerInfo$"),
        (":f", r"^':f' is no reference; write module:factory or file\.py:factory$"),
    ],
)
def test_what_cannot_be_resolved_says_why(name, message):
    with pytest.raises(ValueError, match=message):
        resolve(name, "torch")


@pytest.mark.parametrize(
    ("key", "hyperparameters", "message"),
    [
        (
            "jax/stam",
            {"adapt_strength": 0.6},
            r"adapt_strength is 0\.6; it has to lie in \[0, 0\.5\]",
        ),
        ("jax/stam", {"b1_base": 1.0}, r"b1_base is 1\.0; it has to lie in \(0, 1\)"),
        (
            "jax/stam",
            {"statistics": "x"},
            r"statistics is 'x'; it has to be one of 'published', 'cor",
        ),
        ("jax/stam_lite", {"beta1_update_interval": 0}, r"has to lie in \[1, inf\)"),
        (
            "jax/stam_lite",
            {"beta1_update_interval": 2.5},
            r"has to be a whole number in \[1, inf\)",
        ),
        ("jax/adamw", {"weight_decay": -1}, r"weight_decay is -1; it has to lie in \[0, inf\)"),
        ("jax/adamw", {"b1": True}, r"b1 is True; it has to be a number in \[0, 1\)"),
        ("jax/adamw", {"b1": "0.9"}, r"b1 is '0\.9'; it has to be a number in \[0, 1\)"),
        ("jax/adamw", {"learning_rate": 0}, r"learning_rate is 0; it has to lie in \(0, inf\)"),
        ("jax/adamw", {"eps": float("inf")}, r"eps is inf; it has to lie in \(0, inf\)"),
        (
            "torch/stac",
            {"norms_on_adamw": 1},
            r"norms_on_adamw is 1; it has to be one of False, True",
        ),
        (
            "torch/stac",
            {"sign_state_dtype": "int3"},
            r"has to be one of None, 'float32', 'bfloat16'",
        ),
        (
            "torch/adamw",
            {"beta1": 0.9},
            r"no hyperparameter named 'beta1'; it takes learning_rate, b1",
        ),
    ],
)
def test_out_of_range_is_refused_in_one_line(key, hyperparameters, message):
    with pytest.raises(ValueError, match=message) as caught:
        OPTIMIZERS[key].validate(hyperparameters)
    assert str(caught.value).startswith(f"{key}: ")
    assert "\n" not in str(caught.value)


def test_validate_fills_in_the_defaults_and_makes_numbers_canonical():
    merged = OPTIMIZERS["jax/adamw"].validate({"learning_rate": 1, "weight_decay": 0})

    assert merged == {
        "learning_rate": 1.0,
        "b1": 0.9,
        "b2": 0.999,
        "eps": 1e-8,
        "weight_decay": 0.0,
    }
    assert {type(value) for value in merged.values()} == {float}
    assert OPTIMIZERS["jax/stam_lite"].validate({})["beta1_update_interval"] == 5


def test_an_optional_hyperparameter_changes_a_run_only_where_it_is_given():
    info = OPTIMIZERS["torch/stac"]

    assert "fused" not in info.validate({})
    assert info.validate({"fused": True, "nonfinite": "raise"})["fused"] is True
    with pytest.raises(ValueError, match="fused is 1; it has to be one of None, False, True"):
        info.validate({"fused": 1})
    with pytest.raises(
        ValueError, match=r"jax/stam: stat_sample is 0; it has to lie in \[1, inf\)"
    ):
        OPTIMIZERS["jax/stam"].validate({"stat_sample": 0})


def test_what_a_run_gives_reaches_stac(monkeypatch):
    import stac_torch
    import torch

    given = {}
    monkeypatch.setattr(stac_torch, "STAC", lambda module, **options: given.update(options))
    info = OPTIMIZERS["torch/stac"]
    chosen = {"fused": True, "sign_state_dtype": "int8", "nonfinite": "raise"}
    info.load_factory()(torch.nn.Linear(2, 2), **info.validate(chosen))
    assert {name: given[name] for name in chosen} == chosen
    assert given["last_n_layers"] == 1


def test_an_optional_optimizer_is_known_but_not_entered_where_it_is_absent(monkeypatch):
    def version(name):
        raise metadata.PackageNotFoundError(name)

    assert resolve("adamw_8bit", "torch").requires == "torchao"
    monkeypatch.setattr(metadata, "version", version)
    assert "torch/adamw_8bit" not in all_optimizers()
    assert {info.name for info in absent_optimizers()} == {"adamw_8bit", "stac_published"}
    plan = build_plan(Request(optimizers=["adamw_8bit", "stac_published"], frameworks=["torch"]))
    with pytest.raises(
        MissingExtraError,
        match=r"^torch/adamw_8bit needs torchao, torch/stac_published needs stac-optimizer, which "
        r"are not installed: pip install stac-optimizer torchao$",
    ):
        check_installed(plan, "process")
    monkeypatch.setattr(metadata, "version", lambda name: "1")
    assert "torch/adamw_8bit" in all_optimizers()
    assert absent_optimizers() == []


def test_an_info_without_learning_rate_or_with_a_bad_default_is_refused():
    with pytest.raises(ValueError, match="torch/x: parameters need a 'learning_rate'"):
        OptimizerInfo("x", "torch", "X", "baseline", "m:f", {})
    bad = {"learning_rate": learning_rate(0.1), "b": Parameter(2.0, 0.0, 1.0)}
    with pytest.raises(ValueError, match=r"torch/x: the default b=2\.0 has to lie in \[0, 1\]"):
        OptimizerInfo("x", "torch", "X", "baseline", "m:f", bad)


def test_an_optimizer_that_needs_another_distribution_names_it(plugin, monkeypatch):
    plugin()
    info = dataclasses.replace(resolve("bench_plugin:HEAVY", "torch"), requires="no-such-dist")
    import bench_plugin

    monkeypatch.setattr(bench_plugin, "HEAVY", info)
    with pytest.raises(
        MissingExtraError,
        match=r"^torch/heavy needs no-such-dist, which is not installed: pip install no-such-dist$",
    ):
        train(heavy_spec("bench_plugin:HEAVY", {"learning_rate": 0.1}))
