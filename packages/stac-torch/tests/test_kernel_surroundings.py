"""Threads, processes, profilers and modes around the CPU kernel: the bits of the loop, no hang."""

import os
import signal
import threading

import pytest
import torch
from stac_torch import STAC, _fused_cpu
from torch import nn

LOOP = {"fused": False, "foreach": False}
# More than one thread's share.
ENTRIES = 100_003


@pytest.fixture(autouse=True)
def _two_threads():
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    yield
    torch.set_num_threads(before)


def problem(how, seed=0, **options):
    generator = torch.Generator().manual_seed(seed)
    p = nn.Parameter(torch.randn(ENTRIES, generator=generator))
    p.grad = torch.randn(ENTRIES, generator=generator)
    return p, STAC([p], role="sign", weight_decay=0.1, **how, **options)


def after_steps(how, around, seed=0):
    p, optimizer = problem(how, seed)
    for number in range(4):
        around(number, optimizer.step)
        p.grad.neg_()
    return torch.stack([p.detach(), optimizer.state[p]["exp_avg"]])


def other_threads(number, step):
    torch.set_num_threads((1, 3, 2, 4)[number])
    step()


def in_a_thread_of_its_own(number, step):
    thread = threading.Thread(target=step)
    thread.start()
    thread.join()


def looking_for_anomalies(number, step):
    with torch.autograd.set_detect_anomaly(True):
        step()


def deterministic(number, step):
    torch.use_deterministic_algorithms(True)
    try:
        step()
    finally:
        torch.use_deterministic_algorithms(False)


def in_low_precision(number, step):
    with torch.autocast("cpu"):
        step()


def profiled(number, step):
    with torch.profiler.profile():
        step()


@pytest.mark.filterwarnings("ignore:Anomaly Detection has been enabled")
@pytest.mark.parametrize(
    "around",
    [
        other_threads,
        in_a_thread_of_its_own,
        looking_for_anomalies,
        deterministic,
        in_low_precision,
        profiled,
    ],
)
def test_what_is_around_a_step_changes_no_bit(around):
    loop = after_steps(LOOP, lambda number, step: step())
    assert torch.equal(after_steps({}, around), loop)


def test_a_profiler_shows_the_kernel_and_no_profiler_is_not_asked(monkeypatch):
    _, optimizer = problem({})
    with torch.profiler.profile() as profile:
        optimizer.step()
    names = [event.name for event in profile.events()]
    assert names.count("stac_torch::sign_step") == 1
    assert names.count("stac_torch::all_finite") == 1
    monkeypatch.delattr(_fused_cpu, "record_function")
    optimizer.step()


def test_threads_that_step_at_once():
    """Each its own optimizer: what one process keeps of the kernel is shared by all of them."""
    alone = [after_steps(LOOP, lambda number, step: step(), seed) for seed in range(4)]
    found = {}

    def work(seed):
        found[seed] = after_steps({}, lambda number, step: step(), seed)

    threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for seed, expected in enumerate(alone):
        assert torch.equal(found[seed], expected)


def test_threads_that_share_parameters():
    """Without locks a step may be lost and nothing else: every entry moved by whole steps."""
    p = nn.Parameter(torch.zeros(ENTRIES))

    def work():
        own = nn.Parameter(p.detach())
        own.grad = torch.ones(ENTRIES)
        optimizer = STAC([own], role="sign", lr=0.5)
        for _ in range(8):
            optimizer.step()

    threads = [threading.Thread(target=work) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(p.unique().tolist()) <= {-0.5 * n for n in range(8, 25)}


@pytest.mark.skipif(not hasattr(os, "fork"), reason="this system has no fork")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded, use of fork")
def test_processes_that_share_parameters():
    """Each steps its own rows of one shared parameter, after its parent has stepped all of them."""
    p, optimizer = problem({})
    p.data.share_memory_()
    optimizer.step()
    children = []
    for rows in (slice(0, ENTRIES // 2), slice(ENTRIES // 2, None)):
        child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(100)
            own = nn.Parameter(p.detach()[rows])
            own.grad = p.grad[rows]
            after = STAC([own], role="sign", weight_decay=0.1)
            after.state[own]["exp_avg"] = optimizer.state[p]["exp_avg"][rows]
            after.step()
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0, 0]
    q, plain = problem(LOOP)
    for _ in range(2):
        plain.step()
    assert torch.equal(p, q)
