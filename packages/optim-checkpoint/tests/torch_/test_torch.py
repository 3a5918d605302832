import random

import optim_checkpoint as oc
import pytest
import safetensors
import torch
from optim_checkpoint import torch as ckpt


def make(seed=0, lr=1e-2):
    torch.manual_seed(seed)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.BatchNorm1d(4))
    return model, torch.optim.AdamW(model.parameters(), lr=lr)


def step(model, optimizer, seed=0):
    x = torch.randn(8, 3, generator=torch.Generator().manual_seed(seed))
    optimizer.zero_grad()
    model(x).square().sum().backward()
    optimizer.step()


def snapshot(model, optimizer):
    values = [*model.state_dict().values()]
    values += [v for slots in optimizer.state.values() for v in slots.values()]
    groups = [
        {key: value for key, value in group.items() if key != "params"}
        for group in optimizer.param_groups
    ]
    return [value.clone() for value in values], repr(groups)


def assert_same(first, second):
    assert first[1] == second[1]
    assert len(first[0]) == len(second[0])
    for one, two in zip(first[0], second[0], strict=True):
        assert one.dtype == two.dtype
        assert torch.equal(one, two)


def test_values_are_copied_into_the_live_tensors(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other, other_optimizer = make(1)
    pointers = [tensor.data_ptr() for tensor in other.state_dict().values()]
    restored = ckpt.restore(tmp_path, model=other, optimizer=other_optimizer)
    assert (restored.step, restored.extra, restored.skipped) == (1, None, ())
    assert [tensor.data_ptr() for tensor in other.state_dict().values()] == pointers
    assert_same(snapshot(model, optimizer), snapshot(other, other_optimizer))


def test_every_file_opens_with_safetensors(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    path = ckpt.save(tmp_path, 1, model=model, optimizer=optimizer, extra={"t": torch.ones(2)})
    names = {}
    for file in path.rglob("*.safetensors"):
        with safetensors.safe_open(file, "pt") as opened:
            names[file.parent.name] = set(opened.keys())
            for name in opened.keys():  # noqa: SIM118 - not a dict
                opened.get_tensor(name)
    assert names["model"] == set(model.state_dict())
    assert "state.0.weight.exp_avg" in names["optim"]
    assert names["train"] >= {"extra['t']", "rng['torch']"}


def test_tied_tensors_are_stored_once(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    model["b"].weight = model["a"].weight
    ckpt.save(tmp_path, 1, model=model)
    stored = {t.name for t in oc.inspect(tmp_path).tensors if t.part == "model"}
    assert stored == {"a.weight", "a.bias", "b.bias"}
    for tied in (True, False):
        other = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
        if tied:
            other["b"].weight = other["a"].weight
        ckpt.restore(tmp_path, model=other)
        assert torch.equal(other["b"].weight, model["a"].weight)


def test_untied_values_do_not_go_into_tied_tensors(tmp_path):
    model = torch.nn.ModuleDict({"a": torch.nn.Linear(3, 3), "b": torch.nn.Linear(3, 3)})
    ckpt.save(tmp_path, 1, model=model)
    model["b"].weight = model["a"].weight
    with pytest.raises(oc.IncompatibleCheckpointError, match=r"a\.weight and b\.weight are tied"):
        ckpt.restore(tmp_path, model=model)


# The compiler of torch 2.10 calls what that release deprecates.
@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_wrapper_prefixes_do_not_change_names(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    compiled = torch.compile(model, backend="eager")
    named = torch.optim.AdamW(compiled.named_parameters())
    named.load_state_dict(optimizer.state_dict())
    ckpt.save(tmp_path, 1, model=compiled, optimizer=named)
    other, other_optimizer = make(1)
    ckpt.restore(tmp_path, model=other, optimizer=other_optimizer)
    assert_same((snapshot(model, optimizer)[0], ""), (snapshot(other, other_optimizer)[0], ""))


def test_without_names_positions_are_used_and_said(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    with pytest.warns(oc.CheckpointWarning, match="without a name are stored by position"):
        ckpt.save(tmp_path, 1, optimizer=optimizer)
    with pytest.warns(oc.CheckpointWarning, match="without a name"):
        ckpt.restore(tmp_path, optimizer=optimizer)


def test_every_difference_is_listed_and_nothing_changes(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 3)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer, scheduler=scheduler)
    torch.manual_seed(9)
    other = torch.nn.Sequential()
    other.add_module("0", torch.nn.Linear(3, 5))
    other.add_module("norm", torch.nn.BatchNorm1d(4, dtype=torch.float64))
    sgd = torch.optim.SGD(other.parameters(), lr=0.1, momentum=0.9)
    cosine = torch.optim.lr_scheduler.CosineAnnealingLR(sgd, 5)
    before = snapshot(other, sgd)
    generators = torch.get_rng_state()
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, model=other, optimizer=sgd, scheduler=cosine)
    text = str(caught.value)
    assert text.startswith(
        f"the checkpoint does not fit ({len(caught.value.differences)} differences); nothing was"
    )
    for expected in (
        "model entry 0.weight has shape [4, 3] in the checkpoint, [5, 3] in the live one",
        "model entry norm.weight is not in the checkpoint (nearest: 1.weight)",
        "model entry 1.weight is in the checkpoint but not in the live one (nearest: norm.weight)",
        "the optimizer is torch.optim.adamw.AdamW in the checkpoint, torch.optim.sgd.SGD here",
        "optimizer parameter 0.weight is F32[4, 3] in the checkpoint, F32[5, 3] here",
        "group 0 has no hyperparameter 'betas', the checkpoint has",
        "scheduler entry gamma is in the checkpoint but not in the live one",
        "scheduler entry T_max is not in the checkpoint",
    ):
        assert f"  - {expected}" in text
    assert_same(before, snapshot(other, sgd))
    assert torch.equal(generators, torch.get_rng_state())


def test_what_was_not_saved_is_said(tmp_path):
    model, optimizer = make()
    ckpt.save(tmp_path, 1, extra={})
    with pytest.raises(oc.IncompatibleCheckpointError, match="step 1 holds no model"):
        ckpt.restore(tmp_path, model=model)
    with pytest.raises(oc.IncompatibleCheckpointError, match="step 1 holds no optimizer"):
        ckpt.restore(tmp_path, optimizer=optimizer)
    scaler = torch.amp.GradScaler("cpu")
    with pytest.raises(oc.IncompatibleCheckpointError, match="holds no scaler"):
        ckpt.restore(tmp_path, scaler=scaler)


def test_merged_groups_must_agree(tmp_path):
    model, _ = make()
    first, second = list(model.named_parameters())[:2], list(model.named_parameters())[2:]
    groups = [{"params": first}, {"params": second, "lr": 5.0}]
    optimizer = torch.optim.SGD(groups, lr=1.0)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    merged = torch.optim.SGD(model.parameters(), lr=0.5)
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="group 0 merges groups that differ in lr"
    ):
        ckpt.restore(tmp_path, model=model, optimizer=merged)


class Explodes(torch.optim.AdamW):
    """Fails in the middle of its loading."""

    def load_state_dict(self, state_dict):
        super().load_state_dict(state_dict)
        raise RuntimeError("in the middle")


class ExplodingScheduler:
    """Fails after everything else was loaded."""

    def state_dict(self):
        return {"x": 1}

    def load_state_dict(self, state_dict):
        if state_dict["x"] == 1:
            raise RuntimeError("late")


@pytest.mark.parametrize("late", [False, True])
def test_a_failure_in_the_middle_takes_everything_back(tmp_path, late):
    model, optimizer = make()
    step(model, optimizer)
    optimizer.__class__ = torch.optim.AdamW if late else Explodes
    scheduler = ExplodingScheduler() if late else None
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer, scheduler=scheduler)
    step(model, optimizer, 1)
    optimizer.param_groups[0]["lr"] = 0.5
    before = snapshot(model, optimizer)
    generators = torch.get_rng_state()
    with pytest.raises(RuntimeError, match="late" if late else "in the middle"):
        ckpt.restore(tmp_path, model=model, optimizer=optimizer, scheduler=scheduler)
    assert_same(before, snapshot(model, optimizer))
    assert torch.equal(generators, torch.get_rng_state())


def test_damage_falls_back_before_anything_changes(tmp_path):
    model, optimizer = make()
    for number in (1, 2):
        step(model, optimizer, number)
        ckpt.save(tmp_path, number, model=model, optimizer=optimizer)
    expected = ckpt.restore(tmp_path, 1, model=model, optimizer=optimizer)
    expected = snapshot(model, optimizer)
    file = tmp_path / "step-00000002" / "train" / "train.safetensors"
    raw = bytearray(file.read_bytes())
    raw[-1] ^= 4
    file.write_bytes(raw)
    other, other_optimizer = make(4)
    with pytest.warns(oc.CheckpointWarning, match="skipped a damaged checkpoint: step-00000002"):
        restored = ckpt.restore(tmp_path, model=other, optimizer=other_optimizer)
    assert (restored.step, len(restored.skipped)) == (1, 1)
    assert_same(expected, snapshot(other, other_optimizer))


class Stranger:
    pass


def test_a_lazy_module_is_refused(tmp_path):
    with pytest.raises(oc.UnsupportedStateError, match="model weight: is not initialised yet"):
        ckpt.save(tmp_path, 1, model=torch.nn.LazyLinear(3))


def test_state_that_cannot_be_stored_names_parameter_and_slot(tmp_path):
    model, optimizer = make()
    step(model, optimizer)
    optimizer.state[model[0].bias]["odd"] = Stranger()
    with pytest.raises(oc.UnsupportedStateError, match=r"^0\.bias\.odd: a .*Stranger"):
        ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)


def test_hyperparameters_of_another_kind_are_refused(tmp_path):
    model, optimizer = make()
    optimizer.param_groups[0]["amsgrad"] = 3
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other, other_optimizer = make()
    with pytest.raises(oc.IncompatibleCheckpointError) as caught:
        ckpt.restore(tmp_path, model=other, optimizer=other_optimizer)
    # Once, not for each parameter of the group.
    expected = ("group 0: amsgrad is 3 in the checkpoint, False here",)
    assert caught.value.differences == expected


@pytest.mark.parametrize("rate", [float("nan"), float("inf"), -float("inf")])
def test_a_rate_that_is_no_number_comes_back(tmp_path, rate):
    model, optimizer = make()
    optimizer.param_groups[0]["lr"] = rate
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    optimizer.param_groups[0]["lr"] = 0.1
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert repr(optimizer.param_groups[0]["lr"]) == repr(rate)


class WithExtraState(torch.nn.Linear):
    """A module with a number beside its tensors."""

    seen = 0

    def get_extra_state(self):
        return {"seen": self.seen}

    def set_extra_state(self, state):
        self.seen = state["seen"]


def test_extra_state_of_modules_is_restored(tmp_path):
    model = WithExtraState(2, 2)
    model.seen = 7
    ckpt.save(tmp_path, 1, model=model)
    other = WithExtraState(2, 2)
    ckpt.restore(tmp_path, model=other)
    assert other.seen == 7
    assert torch.equal(other.weight, model.weight)


def test_a_tensor_rate_stays_the_tensor_it_is(tmp_path):
    model, _ = make()
    rate = torch.tensor(0.5)
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    rate.fill_(0.25)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[0]["lr"] is rate
    assert rate.item() == 0.5


def test_groups_without_parameters_keep_their_hyperparameters(tmp_path):
    model, _ = make()

    def build(lr):
        return torch.optim.SGD([{"params": list(model.parameters())}, {"params": [], "lr": lr}])

    ckpt.save(tmp_path, 1, model=model, optimizer=build(0.75))
    optimizer = build(0.5)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert optimizer.param_groups[1]["lr"] == 0.75


def test_an_optimizer_that_has_not_stepped_loses_later_state(tmp_path):
    model, optimizer = make()
    ckpt.save(tmp_path, 0, model=model, optimizer=optimizer)
    step(model, optimizer)
    ckpt.restore(tmp_path, model=model, optimizer=optimizer)
    assert dict(optimizer.state) == {}


def test_saving_does_not_draw_from_the_generators(tmp_path):
    torch.manual_seed(0)
    random.seed(0)
    before = torch.get_rng_state(), random.getstate()
    model, optimizer = make()
    torch.set_rng_state(before[0])
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()


def test_a_model_without_memory_is_refused(tmp_path):
    ckpt.save(tmp_path, 1, model=torch.nn.Linear(2, 2))
    with pytest.raises(oc.IncompatibleCheckpointError, match="weight is on the meta device"):
        ckpt.restore(tmp_path, model=torch.nn.Linear(2, 2, device="meta"))


def test_a_restore_tells_autograd_that_parameters_changed(tmp_path):
    model = torch.nn.Linear(3, 1)
    ckpt.save(tmp_path, 1, model=model)
    loss = model.weight.square().sum()
    ckpt.restore(tmp_path, model=model)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        loss.backward()


def test_tensors_that_are_not_plain_memory_are_restored_in_place(tmp_path):
    class Odd(torch.nn.Module):
        def __init__(self, value):
            super().__init__()
            base = torch.full((4, 6), value)
            self.register_buffer("transposed", base.t())
            self.register_buffer("strided", torch.full((4, 6), value)[:, ::2])
            self.register_buffer("conjugate", torch.full((3,), complex(value, value)).conj())
            self.register_buffer("scalar", torch.tensor(value))
            self.register_buffer("empty", torch.empty(0, 3))

    ckpt.save(tmp_path, 1, model=Odd(2.0))
    other = Odd(1.0)
    memory = {name: buffer.data_ptr() for name, buffer in other.named_buffers()}
    ckpt.restore(tmp_path, model=other)
    for name, buffer in other.named_buffers():
        assert buffer.data_ptr() == memory[name]
        assert torch.equal(buffer, Odd(2.0).get_buffer(name))
