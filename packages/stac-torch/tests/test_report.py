"""describe() and diagnostics()."""

import pytest
import torch
from stac_torch import STAC
from torch import nn


def test_describe_counts_what_a_step_creates():
    model = nn.Sequential(nn.Linear(64, 64), nn.LayerNorm(64), nn.Linear(64, 10))
    optimizer = STAC(model, sign_state_dtype="int8", norms_on_adamw=True)
    before = optimizer.describe()
    assert before.splitlines() == [
        "layer  role   form   parameters  state bytes",
        "0      sign   fused       4,160        4,608",
        "1      adamw  loop          128        1,032",
        "2      adamw  loop          650        5,208",
        "total                     4,938       10,848",
        "adamw, loop: torch's fused AdamW rounds otherwise than its loop",
    ]
    model(torch.ones(1, 64)).sum().backward()
    optimizer.step()
    assert optimizer.describe() == before
    real = sum(t.numel() * t.element_size() for s in optimizer.state.values() for t in s.values())
    assert real == 10848


def test_diagnostics_of_a_known_step():
    p = nn.Parameter(torch.tensor([1.0, 512.0, 1.0, 1.0]).bfloat16())
    optimizer = STAC([p], role="sign", lr=0.1, sign_momentum=0.5, track_diagnostics=True)
    assert optimizer.diagnostics() == {
        "skipped_steps": 0,
        "frozen_share": None,
        "sign_agreement": None,
        "int8_saturation": None,
    }
    p.grad = torch.tensor([2.0, 2.0, 2.0, 0.0]).bfloat16()
    optimizer.step()
    # 512 cannot move by 0.1; the last entry has no sign.
    assert optimizer.diagnostics()["frozen_share"] == pytest.approx(1 / 3)
    assert optimizer.diagnostics()["sign_agreement"] == 1.0
    p.grad = torch.tensor([-1.0, -1.0, -3.0, 0.0]).bfloat16()
    optimizer.step()
    # m was 1: now 0, 0 and -1.
    assert optimizer.diagnostics()["sign_agreement"] == 1.0
    p.grad = torch.tensor([1.0, 1.0, 0.5, 0.0]).bfloat16()
    optimizer.step()
    # m is 0.5, 0.5, -0.25: the third goes against its gradient.
    assert optimizer.diagnostics()["sign_agreement"] == pytest.approx(2 / 3)


def test_a_step_that_the_device_leaves_out_has_nothing_to_count():
    p = nn.Parameter(torch.zeros(2))
    optimizer = STAC([p], role="sign", capturable=True, track_diagnostics=True)
    p.grad = torch.tensor([float("inf"), 1.0])
    optimizer.step()
    found = optimizer.diagnostics()
    assert (found["skipped_steps"], found["frozen_share"]) == (1, None)


def test_tracking_does_not_change_the_step():
    results = []
    for track in (False, True):
        p = nn.Parameter(torch.linspace(-1, 1, 40))
        optimizer = STAC([p], role="sign", track_diagnostics=track, foreach=True, maximize=True)
        for step in range(4):
            p.grad = torch.linspace(-2, 1, 40) + step
            optimizer.step()
        results.append(p.detach().clone())
    torch.testing.assert_close(results[0], results[1], rtol=0, atol=0)
    assert optimizer.diagnostics()["sign_agreement"] > 0.8


def test_saturation_counts_the_ends_of_the_code():
    p = nn.Parameter(torch.zeros(16, 256))
    optimizer = STAC([p], role="sign", sign_state_dtype="int8")
    p.grad = torch.full((16, 256), 0.1)
    p.grad[:8, 1:] = 0.0
    optimizer.step()
    expected = (8 + 8 * 256) / (16 * 256)
    assert optimizer.diagnostics()["int8_saturation"] == pytest.approx(expected)


def test_skips_are_reported():
    p = nn.Parameter(torch.zeros(2))
    optimizer = STAC([p], role="sign", track_diagnostics=True)
    p.grad = torch.full((2,), float("nan"))
    optimizer.step()
    assert optimizer.diagnostics()["skipped_steps"] == 1
