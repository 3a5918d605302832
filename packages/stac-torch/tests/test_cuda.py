"""On a CUDA device: graphs, synchronisations, memory, and the same steps as on the CPU."""

import math

import pytest
import torch
from stac_torch import STAC, _records
from torch import nn

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device"),
]

STATES = [None, "bfloat16", "int8"]


def build(device="cuda"):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 128), nn.Tanh(), nn.Linear(128, 64), nn.Linear(64, 4)).to(
        device
    )


def give_gradients(model, step, bad=False):
    generator = torch.Generator().manual_seed(step)
    for p in model.parameters():
        grad = torch.randn(p.shape, generator=generator)
        if bad:
            grad.view(-1)[0] = math.nan
        p.grad = grad.to(p.device) if p.grad is None else p.grad.copy_(grad)


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize(
    "options",
    [{}, {"foreach": False}, {"foreach": True}, {"capturable": True}, {"fused": True}],
)
def test_as_on_the_cpu(state, options):
    here, there = build("cpu"), build()
    there.load_state_dict(here.state_dict())
    one = STAC(here, sign_state_dtype=state, weight_decay=0.1)
    other = STAC(there, sign_state_dtype=state, weight_decay=0.1, **options)
    for step in range(10):
        for model, optimizer in ((here, one), (there, other)):
            give_gradients(model, step, bad=step == 5)
            optimizer.step()
    assert one.nonfinite_skipped_steps == other.nonfinite_skipped_steps == 1
    for p, q in zip(here.parameters(), there.parameters(), strict=True):
        off = (p - q.cpu()).abs() > 1e-5
        assert off.float().mean() < 0.002


@pytest.mark.parametrize("fused", [None, True])
@pytest.mark.parametrize("state", STATES)
def test_graph_replay_is_eager(state, fused):
    eager, captured = build(), build()
    options = {
        "lr": torch.tensor(1e-3, device="cuda"),
        "sign_state_dtype": state,
        "capturable": True,
        "fused": fused,
    }
    one, other = (STAC(m, **options) for m in (eager, captured))
    for step in range(3):
        give_gradients(eager, step)
        one.step()
    stream = torch.cuda.Stream()
    with torch.cuda.stream(stream):
        for step in range(3):
            give_gradients(captured, step)
            other.step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        other.step()
    for step in range(3, 8):
        give_gradients(eager, step, bad=step == 5)
        give_gradients(captured, step, bad=step == 5)
        one.step()
        graph.replay()
    for p, q in zip(eager.parameters(), captured.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=0, atol=0)
    assert one.nonfinite_skipped_steps == other.nonfinite_skipped_steps == 1


@pytest.mark.parametrize("options", [{"capturable": True}, {"fused": True}])
@pytest.mark.parametrize("state", STATES)
def test_a_step_does_not_wait(state, options):
    model = build()
    optimizer = STAC(model, sign_state_dtype=state, **options)
    give_gradients(model, 0)
    optimizer.step()
    torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(5):
            optimizer.step()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("state", STATES)
@pytest.mark.parametrize("how", [{"foreach": False}, {"foreach": True}, {"fused": True}])
def test_peak_memory_is_bounded_by_the_chunk(state, how):
    params = [nn.Parameter(torch.zeros(4096, 8192, device="cuda")) for _ in range(4)]
    for p in params:
        p.grad = torch.ones_like(p)
    optimizer = STAC(params, role="sign", sign_state_dtype=state, **how)
    optimizer.step()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    optimizer.step()
    torch.cuda.synchronize()
    # The kernel reads a table of a few kilobytes; nonfinite="skip" adds a flag.
    bound = 1 << 20 if "fused" in how else 8 * 4 * _records.CHUNK_ENTRIES
    assert torch.cuda.max_memory_allocated() - before <= bound


def test_a_cpu_checkpoint_loads_on_the_device():
    model = build("cpu")
    optimizer = STAC(model, sign_state_dtype="bf16")
    give_gradients(model, 0)
    optimizer.step()
    there = build()
    other = STAC(there, sign_state_dtype="bf16")
    other.load_state_dict(optimizer.state_dict())
    state = other.state[there[0].weight]["exp_avg"]
    assert (state.device.type, state.dtype) == ("cuda", torch.bfloat16)
    assert other.state[there[3].weight]["step"].device.type == "cpu"
    give_gradients(there, 1)
    other.step()


@pytest.mark.parametrize("state", STATES)
def test_a_fused_scaler_skips_on_the_device(state):
    """GradScaler hands over its flag and factor; an overflow changes nothing but the scale."""
    model = build()
    optimizer = STAC(model, sign_state_dtype=state, fused=True)
    scaler = torch.amp.GradScaler("cuda", init_scale=2.0**7)
    for step in range(3):
        optimizer.zero_grad()
        before = [p.detach().clone() for p in model.parameters()]
        loss = model(torch.ones(4, 64, device="cuda")).square().sum()
        scaler.scale(loss * math.inf if step == 1 else loss).backward()
        scaler.step(optimizer)
        scaler.update()
        same = all(torch.equal(p, q) for p, q in zip(model.parameters(), before, strict=True))
        assert same is (step == 1)
    assert scaler.get_scale() == 64.0
    assert optimizer.nonfinite_skipped_steps == 0
