"""How tensors lie in memory: strides of optimizer state, and memory that overlaps."""

import warnings

import optim_checkpoint as oc
import pytest
import torch
from optim_checkpoint import torch as ckpt
from optim_checkpoint.torch._layout import overlaps

FORMATS = {
    "channels_last": lambda: torch.nn.Conv2d(3, 4, 3).to(memory_format=torch.channels_last),
    "channels_last_3d": lambda: torch.nn.Conv3d(3, 4, 3).to(memory_format=torch.channels_last_3d),
    "transposed": lambda: with_weight(torch.randn(4, 3).t()),
    "not dense": lambda: with_weight(torch.randn(4, 6)[:, ::2]),
}


def with_weight(weight):
    model = torch.nn.Module()
    model.weight = torch.nn.Parameter(weight)
    return model


def train(model, optimizer, first, last):
    for number in range(first, last):
        generator = torch.Generator().manual_seed(number)
        for parameter in model.parameters():
            # As autograd does, which gives a dense parameter a gradient of its strides.
            gradient = torch.randn(parameter.shape, generator=generator)
            dense = torch.empty_like(parameter).stride() == parameter.stride()
            like = torch.empty_like(parameter) if dense else torch.empty(parameter.shape)
            parameter.grad = like.copy_(gradient)
        optimizer.step()


OPTIMIZERS = {
    "AdamW": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True),
    "AdamW fused": lambda p: torch.optim.AdamW(p, lr=0.1, amsgrad=True, fused=True),
    "SGD": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9),
    "SGD fused": lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9, fused=True),
    "Adagrad fused": lambda p: torch.optim.Adagrad(p, lr=0.1, fused=True),
    "RMSprop foreach": lambda p: torch.optim.RMSprop(p, lr=0.1, momentum=0.9, foreach=True),
}


def strides(model, optimizer):
    return {
        (name, slot): value.stride()
        for name, parameter in model.named_parameters()
        for slot, value in optimizer.state[parameter].items()
        if isinstance(value, torch.Tensor)
    }


@pytest.mark.parametrize("layout", FORMATS)
@pytest.mark.parametrize("make", OPTIMIZERS.values(), ids=OPTIMIZERS)
def test_a_resume_is_bitwise_in_every_memory_format(tmp_path, make, layout):
    torch.manual_seed(0)
    model = FORMATS[layout]()
    optimizer = make(model.parameters())
    train(model, optimizer, 0, 3)
    ckpt.save(tmp_path, 3, model=model, optimizer=optimizer)
    torch.manual_seed(1)
    other = FORMATS[layout]()
    resumed = make(other.parameters())
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    if layout != "not dense":
        assert strides(other, resumed) == strides(model, optimizer)
    train(model, optimizer, 3, 6)
    train(other, resumed, 3, 6)
    for one, two in zip(model.parameters(), other.parameters(), strict=True):
        assert torch.equal(one, two)


def test_state_lies_as_the_live_parameter_does(tmp_path):
    torch.manual_seed(0)
    model = torch.nn.Conv2d(3, 4, 3)
    optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    train(model, optimizer, 0, 1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other = FORMATS["channels_last"]()
    resumed = torch.optim.AdamW(other.parameters(), fused=True)
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    state, saved = resumed.state[other.weight]["exp_avg"], optimizer.state[model.weight]["exp_avg"]
    assert state.stride() == other.weight.stride() != model.weight.stride()
    assert torch.equal(state, saved)


class Odd(torch.optim.SGD):
    """State in C order for a parameter that is not, and transposed state of another shape."""

    def step(self):
        super().step()
        for group in self.param_groups:
            for parameter in group["params"]:
                self.state[parameter]["plain"] = torch.randn(parameter.shape)
                self.state[parameter]["factor"] = torch.randn(5, 2, 3).permute(2, 0, 1)
                self.state[parameter]["strided"] = torch.randn(2, 6, 4).transpose(0, 2)[:, ::2]


def test_state_that_lies_in_another_order_keeps_it(tmp_path):
    model = FORMATS["channels_last"]()
    optimizer = Odd(model.parameters(), lr=0.1, momentum=0.9)
    train(model, optimizer, 0, 1)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other = FORMATS["channels_last"]()
    resumed = Odd(other.parameters(), lr=0.1, momentum=0.9)
    ckpt.restore(tmp_path, model=other, optimizer=resumed)
    found, saved = resumed.state[other.weight], optimizer.state[model.weight]
    for slot in ("plain", "factor", "momentum_buffer"):
        assert found[slot].stride() == saved[slot].stride()
        assert torch.equal(found[slot], saved[slot])
    # The memory between its elements is not stored.
    assert (found["strided"].shape, found["strided"].stride()) == ((4, 3, 2), (1, 4, 12))
    assert torch.equal(found["strided"], saved["strided"])


class Expanded(torch.nn.Module):
    def __init__(self, shared):
        super().__init__()
        self.first = torch.nn.Parameter(torch.zeros(2))
        rows = torch.zeros(1, 3).expand(4, 3)
        self.register_buffer("rows", rows if shared else rows.contiguous())


def test_memory_that_overlaps_is_refused_before_anything_changes(tmp_path):
    with pytest.raises(
        oc.UnsupportedStateError, match="model rows: has elements that share memory"
    ):
        ckpt.save(tmp_path, 1, model=Expanded(True))
    model = Expanded(False)
    model.first.data.fill_(1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.5)
    ckpt.save(tmp_path, 1, model=model, optimizer=optimizer)
    other = Expanded(True)
    optimizer = torch.optim.SGD(other.parameters(), lr=0.1)
    with pytest.raises(oc.IncompatibleCheckpointError, match="entry rows has elements that share"):
        ckpt.restore(tmp_path, model=other, optimizer=optimizer)
    assert other.first.tolist() == [0, 0]
    assert optimizer.param_groups[0]["lr"] == 0.1


@pytest.mark.parametrize(
    ("tensor", "expected"),
    [
        (torch.zeros(5).unfold(0, 3, 1), True),
        (torch.zeros(9).unfold(0, 3, 3), False),
        (torch.zeros(20).as_strided((2, 3), (3, 2)), False),
        (torch.zeros(20).as_strided((3, 4), (3, 1)), True),
        (torch.zeros(1, 7).expand(1, 7), False),
        (torch.zeros(()).expand(2), True),
        (torch.zeros(3, 4, 5).permute(2, 0, 1)[::2], False),
    ],
)
def test_overlap_is_told_exactly(tensor, expected):
    assert overlaps(tensor) is expected


def test_tensors_without_plain_memory_are_refused_before_anything_changes(tmp_path):
    model = torch.nn.Module()
    model.register_buffer("table", torch.eye(3))
    ckpt.save(tmp_path, 1, model=model)
    with warnings.catch_warnings():
        # Torch calls all nested tensors a prototype.
        warnings.simplefilter("ignore")
        nested = torch.nested.nested_tensor([torch.ones(2), torch.ones(3)])
    for tensor, says in [(torch.eye(3).to_sparse(), r"torch\.sparse_coo"), (nested, "nested")]:
        model.table = tensor
        with pytest.raises(oc.IncompatibleCheckpointError, match=f"table is {says} here"):
            ckpt.restore(tmp_path, model=model)
        with pytest.raises(oc.UnsupportedStateError, match=r"model table: layout .* only dense"):
            ckpt.save(tmp_path, 2, model=model)
