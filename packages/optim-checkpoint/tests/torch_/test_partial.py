"""A part of a checkpoint into a model that is not the one that was saved, and its report."""

import copy
import warnings

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from torch import nn


class Net(nn.Module):
    def __init__(self, head=2, **layers):
        super().__init__()
        self.body = nn.Sequential(nn.Linear(3, 4), nn.Linear(4, 4))
        self.head = nn.Linear(4, head)
        for name, layer in layers.items():
            self.add_module(name, layer)


def trained(model, make=torch.optim.AdamW, **options):
    torch.manual_seed(7)
    optimizer = make(model.parameters(), lr=0.1, **options)
    for parameter in model.parameters():
        parameter.grad = torch.randn_like(parameter)
    optimizer.step()
    optimizer.zero_grad()
    return optimizer


@pytest.fixture
def saved(tmp_path):
    model = Net()
    optimizer = trained(model)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    return tmp_path, model, optimizer


def state_of(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def assert_equal(one, other):
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


BODY = ("body.0.bias", "body.0.weight", "body.1.bias", "body.1.weight")
HEAD = ("head.bias", "head.weight")


def test_the_report_of_a_whole_restore_lists_everything_as_loaded(saved):
    path, model, optimizer = saved
    report = ckpt.restore(path, model=model, optimizer=optimizer).report
    assert report.keys() == {"model", "optimizer"}
    for part in report.values():
        assert part.loaded == BODY + HEAD
        assert (part.missing, part.unexpected, part.left_out) == ((), (), ())
        assert (part.renamed, part.cast) == ({}, {})


def test_names_of_one_side_stay_and_are_listed(saved):
    path, model, optimizer = saved
    live = Net(adapter=nn.Linear(4, 4))
    del live.head
    own = trained(live)
    adapter = state_of(live.adapter)
    moments = [copy.deepcopy(own.state[p]) for p in live.adapter.parameters()]
    report = ckpt.restore(path, model=live, optimizer=own, strict=False).report
    for part in report.values():
        assert part.loaded == BODY
        assert part.missing == ("adapter.bias", "adapter.weight")
        assert part.unexpected == HEAD
    assert_equal(state_of(live.body), state_of(model.body))
    assert_equal(state_of(live.adapter), adapter)
    for there, here in zip(model.body.parameters(), live.body.parameters(), strict=True):
        assert_equal(own.state[here], optimizer.state[there])
    for before, parameter in zip(moments, live.adapter.parameters(), strict=True):
        assert_equal(own.state[parameter], before)


def test_names_of_one_side_are_an_error_unless_allowed(saved):
    path, *_ = saved
    live = Net(adapter=nn.Linear(4, 4))
    with pytest.raises(oc.IncompatibleCheckpointError) as info:
        ckpt.restore(path, model=live)
    assert info.value.differences == (
        "model entry adapter.bias is not in the checkpoint",
        "model entry adapter.weight is not in the checkpoint",
    )


@pytest.mark.parametrize(
    "rename",
    [
        {"body": "encoder.body", "head": "encoder.head"},
        {"body.0": "encoder.body.0", "body": "encoder.body", "head": "encoder.head"},
        lambda name: f"encoder.{name}",
    ],
    ids=["prefixes", "longest", "function"],
)
def test_a_renamed_model_takes_its_optimizer_along(saved, rename):
    path, model, optimizer = saved
    live = nn.ModuleDict({"encoder": Net()})
    own = trained(live, weight_decay=0.5)
    report = ckpt.restore(path, model=live, optimizer=own, rename=rename).report
    assert report["model"].renamed == {f"encoder.{name}": name for name in BODY + HEAD}
    assert report["optimizer"].renamed == report["model"].renamed
    assert_equal(state_of(live["encoder"]), state_of(model))
    for there, here in zip(model.parameters(), live.parameters(), strict=True):
        assert_equal(own.state[here], optimizer.state[there])
    assert own.param_groups[0]["weight_decay"] == 0.01


def test_a_prefix_is_taken_away(tmp_path):
    model = nn.ModuleDict({"model": Net()})
    ckpt.save(tmp_path, 1, model=model)
    live = Net()
    ckpt.restore(tmp_path, model=live, rename={"model": ""})
    assert_equal(state_of(live), state_of(model["model"]))


@pytest.mark.parametrize(
    ("only", "loaded"),
    [
        ("body.*", BODY),
        (["body.1.*", "*.bias"], (*BODY[:1], *BODY[2:], HEAD[0])),
        ("!head.*", BODY),
    ],
    ids=["one", "two", "leaving out"],
)
def test_only_what_a_pattern_names_is_loaded(saved, only, loaded):
    path, model, _ = saved
    live = Net(head=5) if "bias" not in str(only) else Net()
    own = trained(live)
    before = state_of(live)
    report = ckpt.restore(path, model=live, optimizer=own, only=only).report
    rest = tuple(sorted({*BODY, *HEAD} - {*loaded}))
    for part in report.values():
        assert (part.loaded, part.left_out, part.missing) == (tuple(sorted(loaded)), rest, ())
    after, there = state_of(live), state_of(model)
    assert_equal({n: after[n] for n in loaded}, {n: there[n] for n in loaded})
    assert_equal({n: after[n] for n in rest}, {n: before[n] for n in rest})


def test_a_group_without_a_counterpart_keeps_its_own_hyperparameters(saved):
    path, *_ = saved
    live = Net(adapter=nn.Linear(4, 4))
    old = [*live.body.parameters(), *live.head.parameters()]
    groups = [{"params": live.adapter.parameters(), "lr": 0.5}, {"params": old, "lr": 0.7}]
    own = torch.optim.AdamW(groups)
    ckpt.restore(path, model=live, optimizer=own, strict=False)
    assert [group["lr"] for group in own.param_groups] == [0.5, 0.1]


def test_a_scheduler_of_a_new_group_is_refused(tmp_path):
    model = Net()
    optimizer = trained(model)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer, scheduler=scheduler)
    model.add_module("adapter", nn.Linear(4, 4))
    optimizer.add_param_group({"params": model.adapter.parameters()})
    # Its rates would be another group's.
    with pytest.raises(oc.IncompatibleCheckpointError, match=r"no rates in the checkpoint for gro"):
        ckpt.restore(
            tmp_path,
            model=model,
            optimizer=optimizer,
            scheduler=torch.optim.lr_scheduler.StepLR(optimizer, 1),
            strict=False,
        )


def test_state_in_the_parameters_dtype_is_cast_with_it(tmp_path):
    model = Net().bfloat16()
    ckpt.save(tmp_path, 1, model=model, optimizer=(optimizer := trained(model)))
    live = Net()
    own = trained(live)
    with pytest.raises(oc.IncompatibleCheckpointError, match="dtype BF16 in the checkpoint"):
        ckpt.restore(tmp_path, model=live)
    report = ckpt.restore(tmp_path, model=live, optimizer=own, cast="safe").report
    for part in report.values():
        assert part.cast == dict.fromkeys(BODY + HEAD, ("BF16", "F32"))
    assert_equal(state_of(live), {name: t.float() for name, t in model.state_dict().items()})
    for there, here in zip(model.parameters(), live.parameters(), strict=True):
        expected = optimizer.state[there]
        assert own.state[here]["exp_avg"].dtype == torch.float32
        assert torch.equal(own.state[here]["exp_avg"], expected["exp_avg"].float())
        assert torch.equal(own.state[here]["step"], expected["step"])
    trained(live)


def test_an_integer_is_cast_to_a_wider_one(tmp_path):
    model = nn.Module()
    model.register_buffer("steps", torch.tensor([3, 255], dtype=torch.uint8))
    ckpt.save(tmp_path, 1, model=model)
    model.steps = torch.zeros(2, dtype=torch.int16)
    ckpt.restore(tmp_path, model=model, cast="safe")
    assert torch.equal(model.steps, torch.tensor([3, 255], dtype=torch.int16))


def test_a_cast_that_rounds_is_asked_for_by_dtype(saved):
    path, model, _ = saved
    live = Net().half()
    with pytest.raises(oc.IncompatibleCheckpointError, match="does not hold every value"):
        ckpt.restore(path, model=live, cast="safe")
    with pytest.raises(oc.IncompatibleCheckpointError, match="and cast is BF16"):
        ckpt.restore(path, model=live, cast=torch.bfloat16)
    ckpt.restore(path, model=live, cast=torch.float16)
    assert_equal(state_of(live), {name: t.half() for name, t in model.state_dict().items()})


def test_a_model_on_the_meta_device_gets_the_memory_that_was_read(saved):
    path, model, optimizer = saved
    with torch.device("meta"):
        live = Net()
    live.head.weight.requires_grad_(False)
    live.head.weight.note = "kept"
    own = torch.optim.AdamW(live.parameters(), lr=9.0)
    parameters = list(live.parameters())
    report = ckpt.restore(path, model=live, optimizer=own, assign=True).report
    assert report["model"].loaded == BODY + HEAD
    assert list(map(id, live.parameters())) == list(map(id, parameters))
    assert [p.requires_grad for p in parameters] == [True] * 4 + [False, True]
    assert live.head.weight.note == "kept"
    assert_equal(state_of(live), state_of(model))
    for there, here in zip(model.parameters(), parameters, strict=True):
        assert_equal(own.state[here], optimizer.state[there])
    for p, q in zip(model.parameters(), parameters, strict=True):
        p.grad = torch.ones_like(p)
        q.grad = torch.ones_like(q)
    optimizer.step()
    own.step()
    assert_equal(state_of(live), state_of(model))


def test_assigned_memory_is_in_the_dtype_asked_for(saved):
    path, model, _ = saved
    with torch.device("meta"):
        live = Net()
    ckpt.restore(path, model=live, cast=torch.bfloat16, assign=True)
    assert_equal(state_of(live), {name: t.bfloat16() for name, t in model.state_dict().items()})


def test_assigned_memory_of_a_live_model_is_new_and_its_ties_stay(tmp_path):
    model = Net()
    model.body[1].weight = model.body[0].weight = nn.Parameter(torch.randn(4, 4))
    ckpt.save(tmp_path, 1, model=model)
    live = copy.deepcopy(model)
    weight, address = live.body[0].weight, live.body[0].weight.data_ptr()
    with torch.no_grad():
        weight.zero_()
    ckpt.restore(tmp_path, model=live, assign=True)
    assert live.body[1].weight is live.body[0].weight is weight
    assert weight.data_ptr() != address
    assert torch.equal(weight, model.body[0].weight)
    untied = Net()
    untied.body[0] = nn.Linear(4, 4)
    ckpt.restore(tmp_path, model=untied, assign=True, strict=False)
    assert untied.body[0].weight.data_ptr() != untied.body[1].weight.data_ptr()
    assert torch.equal(untied.body[0].weight, untied.body[1].weight)


class Refusing(torch.optim.SGD):
    def load_state_dict(self, state_dict):
        raise RuntimeError("not today")


def test_what_was_assigned_is_taken_back_where_something_refuses(tmp_path):
    model = Net()
    ckpt.save(tmp_path, 1, model=model, optimizer=Refusing(model.parameters(), 0.1))
    with torch.device("meta"):
        live = Net()
    other = Net()
    before, address = state_of(other), other.head.weight.data_ptr()
    for each in (live, other):
        own = Refusing(each.parameters(), 0.1)
        with pytest.raises(RuntimeError, match="not today"):
            ckpt.restore(tmp_path, model=each, optimizer=own, assign=True)
    assert all(parameter.is_meta for parameter in live.parameters())
    assert_equal(state_of(other), before)
    assert other.head.weight.data_ptr() == address


class Own(nn.Module):
    """Loads itself: its extra state is no tensor."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(2))
        self.bias = nn.Parameter(torch.zeros(2))
        self.count = 0

    def get_extra_state(self):
        return self.count

    def set_extra_state(self, state):
        self.count = state


def test_what_stays_on_the_meta_device_is_named(tmp_path):
    def build():
        layer = nn.Linear(3, 4)
        layer.register_buffer("frequencies", torch.ones(2), persistent=False)
        return layer

    ckpt.save(tmp_path, 1, model=build())
    with torch.device("meta"):
        model = build()
    with pytest.warns(oc.CheckpointWarning, match="^frequencies got nothing .* the meta device"):
        ckpt.restore(tmp_path, model=model, assign=True)
    assert not model.weight.is_meta


@pytest.mark.parametrize("assign", [False, True])
@pytest.mark.parametrize(
    ("dtype", "names"), [(torch.float16, "weight"), (torch.float8_e4m3fn, "bias, weight")]
)
def test_values_beyond_the_range_of_a_cast_are_named(tmp_path, dtype, names, assign):
    model = nn.Linear(3, 4)
    with torch.no_grad():
        model.weight[0, 0], model.weight[0, 1] = -7e4, float("inf")
        model.bias[0] = float("-inf")
    ckpt.save(tmp_path, 1, model=model)
    with pytest.warns(oc.CheckpointWarning, match=f"^cast: {names} had values beyond"):
        ckpt.restore(tmp_path, model=nn.Linear(3, 4).to(dtype), cast=dtype, assign=assign)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        ckpt.restore(tmp_path, model=nn.Linear(3, 4).bfloat16(), cast=torch.bfloat16)


@pytest.mark.parametrize(
    ("saved", "dtype", "value"),
    [
        (torch.float32, torch.float8_e4m3fn, float("inf")),
        (torch.float32, torch.float8_e4m3fnuz, float("-inf")),
        (torch.float32, torch.float8_e8m0fnu, 0.0),
        (torch.float16, torch.float8_e8m0fnu, -3.0),
    ],
)
def test_a_value_that_the_dtype_of_a_cast_lacks_is_named(tmp_path, saved, dtype, value):
    model = nn.ParameterDict({"a": torch.ones(2, dtype=saved), "b": torch.ones(2, dtype=saved)})
    with torch.no_grad():
        model["b"][0] = value
    ckpt.save(tmp_path, 1, model=model)
    with pytest.warns(oc.CheckpointWarning, match="^cast: b had values beyond"):
        ckpt.restore(tmp_path, model=model.to(dtype), cast=dtype)


def test_a_part_that_loads_itself_keeps_what_is_not_loaded(tmp_path):
    model = Net(own=Own())
    model.own.count = 5
    with torch.no_grad():
        model.own.weight.fill_(3)
        model.own.bias.fill_(4)
    ckpt.save(tmp_path, 1, model=model)
    live = Net(own=Own())
    ckpt.restore(tmp_path, model=live, only=["own.weight", "body.*"])
    assert (live.own.count, live.own.bias.tolist()) == (0, [0, 0])
    assert live.own.weight.tolist() == [3, 3]
    with torch.device("meta"):
        live = Net(own=Own())
    with pytest.raises(oc.IncompatibleCheckpointError, match="loads it by code of its own"):
        ckpt.restore(tmp_path, model=live, assign=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rename": {"nobody": "x"}}, "rename has 'nobody', and nothing in the checkpoint has"),
        ({"only": ["body.*", "tail.*"]}, r"only has 'tail\.\*', which no name matches"),
        ({"rename": lambda _: "head.bias"}, "and head.bias would both be head.bias: rename one"),
        ({"rename": {"head": "body.0"}}, "body.0.bias and head.bias would both be body.0.bias"),
    ],
)
def test_what_stands_for_nothing_is_an_error(saved, options, message):
    path, model, _ = saved
    before = state_of(model)
    with pytest.raises(oc.IncompatibleCheckpointError, match=message):
        ckpt.restore(path, model=model, strict=False, **options)
    assert_equal(state_of(model), before)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rename": ["a"]}, TypeError, "^rename is a list; it must be a mapping"),
        ({"rename": {"a": 1}}, TypeError, "^rename maps 'a' to 1; both must be text"),
        ({"rename": lambda _: None}, TypeError, "^rename made None of 'body.0.weight'; it must"),
        ({"only": []}, TypeError, r"^only is \[\]; it must be a pattern or a list"),
        ({"only": [1]}, TypeError, "^only has the pattern 1; a pattern is text"),
        ({"cast": "float32"}, ValueError, "^cast is 'float32'; it must be None, \"safe\" or"),
        ({"cast": torch.int32}, ValueError, '^cast is torch.int32; it must be None, "safe" or'),
    ],
)
def test_arguments_of_another_kind_are_refused(saved, options, error, message):
    path, model, _ = saved
    with pytest.raises(error, match=message):
        ckpt.restore(path, model=model, **options)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.uint8])
@pytest.mark.parametrize("staging", [True, False])
def test_an_empty_tensor_alone_is_no_damage(tmp_path, dtype, staging):
    model = torch.nn.Module()
    model.register_buffer("empty", torch.empty(0, 3, dtype=dtype))
    model.register_buffer("other", torch.ones(2))
    ckpt.save(tmp_path, 1, model=model)
    model.other.zero_()
    found = ckpt.restore(tmp_path, model=model, only=["empty"], staging=staging)
    assert found.report["model"].loaded == ("empty",)
    assert model.other.tolist() == [0, 0]
