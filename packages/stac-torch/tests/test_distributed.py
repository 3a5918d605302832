"""DDP, FSDP2, ZeRO and resharded checkpoints on gloo: equal to one process."""

import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

SCRIPT = Path(__file__).parent / "distributed_script.py"
pytestmark = pytest.mark.slow


# They assert on every rank, and write nothing.
OWNERSHIP = ["owned", "dead", "sparse", "overlap", "replicas", "clipped", "clipped_sparse"]

# A world of two saves what the others load. The processes are the same ones: each imports torch.
PLAN = {
    2: ["ddp", "fsdp", "fsdp_nan", "group_nan", "zero", "save", *OWNERSHIP, "flat", "stam"],
    1: ["single", "load", "stam"],
    4: ["fsdp", "ddp", "load", *OWNERSHIP, "meshes", "clipped_meshes", "stam", "stam_replicated"],
}
STATES = ["none", "int8"]


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Run every case; return the folder of what each wrote."""
    folder = tmp_path_factory.mktemp("ranks")
    plan = [f"{world}:{','.join(cases)}" for world, cases in PLAN.items()]
    logs = [folder / f"rank{rank}.log" for rank in range(max(PLAN))]
    ranks = []
    try:
        for rank, log in enumerate(logs):
            command = [sys.executable, str(SCRIPT), str(rank), str(folder), ",".join(STATES), *plan]
            with log.open("w") as stream:
                ranks.append(subprocess.Popen(command, stderr=stream, stdout=stream))
        codes = [None]
        # Where one has failed the others would wait for it.
        while None in codes and not any(codes):
            time.sleep(0.1)
            codes = [rank.poll() for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
            rank.wait()
    assert not any(codes), "\n".join(log.read_text()[-3000:] for log in logs)
    return folder


@pytest.fixture(scope="module", params=STATES)
def runs(request, written):
    return {
        world: {
            case: torch.load(written / f"{case}-{world}-{request.param}.pt", weights_only=True)
            for case in cases
        }
        for world, cases in PLAN.items()
    }


@pytest.mark.parametrize(
    ("case", "world"), [("ddp", 2), ("ddp", 4), ("fsdp", 2), ("fsdp", 4), ("zero", 2)]
)
def test_wrapped_training_is_that_of_one_process(runs, case, world):
    # A gradient of about 0 may change its sign with the order of a sum: one step of 0.0075 is off.
    expected = runs[1]["single"][0]
    for name, p in runs[world][case][0].items():
        off = (p - expected[name]).abs() > 1e-4
        assert off.float().mean() < 0.005, name
        assert (p - expected[name]).abs().max() <= 5 * 2 * 0.0075


def test_states_are_sharded_and_whole_again(runs):
    for name, state in runs[1]["single"][1].items():
        other = runs[2]["fsdp"][1][name]
        assert {k: (v.dtype, v.shape) for k, v in other.items()} == {
            k: (v.dtype, v.shape) for k, v in state.items()
        }


def test_a_nan_in_one_shard_is_skipped_by_all(runs):
    """The script asserts it on every rank; here, that the other four steps were taken."""
    states = runs[2]["fsdp_nan"][1]
    assert states["3.weight"]["step"] == 4


@pytest.mark.parametrize("world", [1, 4])
def test_a_checkpoint_of_two_ranks_loads_on_others(runs, world):
    saved, loaded = runs[2]["save"], runs[world]["load"]
    torch.testing.assert_close(loaded, saved, rtol=0, atol=0)
    dtypes = {k: v.dtype for k, v in saved[1]["0.weight"].items()}
    assert {k: v.dtype for k, v in loaded[1]["0.weight"].items()} == dtypes


@pytest.mark.parametrize(("case", "world"), [("stam", 2), ("stam", 4), ("stam_replicated", 4)])
def test_statistics_are_those_of_whole_tensors(runs, case, world):
    pairs = zip(runs[world][case], runs[1]["stam"], strict=True)
    for (params, states), (one_params, one_states) in pairs:
        torch.testing.assert_close(states, one_states, rtol=1e-3, atol=1e-6)
        torch.testing.assert_close(params, one_params, rtol=1e-4, atol=1e-5)
