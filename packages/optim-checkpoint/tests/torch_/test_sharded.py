"""FSDP2 and tensor-parallel states: 2 -> 1 -> 4 processes, other meshes, and what goes wrong.

Two spawns do everything; each test looks at one part of what they found.
"""

import importlib.util
import json
import re
import subprocess
import sys
from pathlib import Path

import optim_checkpoint as oc
import pytest
import safetensors
import torch
from optim_checkpoint import torch as ckpt

SCRIPT = Path(__file__).with_name("mesh_worker.py")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not torch.distributed.is_available(), reason="this torch is built without distributed"
    ),
]


def load_training():
    path = SCRIPT.with_name("mesh_training.py")
    spec = importlib.util.spec_from_file_location("mesh_training", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


training = load_training()


def spawn(world, folder):
    """Run `world` processes; return how they ended and what they found."""
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(world), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    # Older gloo writes to the standard output itself.
    codes = json.loads(done.stdout.splitlines()[-1])
    assert codes[0] == 0, done.stderr[-3000:]
    return codes, json.loads((folder / f"result{world}.json").read_text())


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("mesh")


@pytest.fixture(scope="module")
def two(folder):
    return spawn(2, folder)


@pytest.fixture(scope="module")
def one(folder, two):
    """Restore each run in this process without any group, go on, and save."""
    result = {}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for case, saved in two[1]["save"].items():
        model, make = training.build(case)
        optimizer = make()
        scheduler = torch.optim.lr_scheduler.StepLR(optimizer, 2, 0.5)
        state = {"model": model, "optimizer": optimizer, "scheduler": scheduler}
        found = ckpt.restore(saved["run"], **state)
        start = training.fingerprint(model, optimizer)
        training.train(model, optimizer, training.STEPS, scheduler=scheduler)
        ckpt.save(saved["run"], 2 * training.STEPS, **state)
        (Path(saved["run"]) / "case.json").write_text(json.dumps(case))
        result[case] = {
            "start": start,
            "end": training.fingerprint(model, optimizer),
            "extra": found.extra,
        }
    torch.set_num_threads(threads)
    return result


@pytest.fixture(scope="module")
def four(folder, one):
    return spawn(4, folder)[1]


@pytest.mark.parametrize("case", training.CASES)
def test_one_process_goes_on_from_two_bit_for_bit(two, one, case):
    saved = two[1]["save"][case]
    assert one[case]["start"] == saved["start"]
    assert one[case]["end"] == saved["middle"] != saved["start"]
    assert one[case]["extra"] == {"case": case}


@pytest.mark.parametrize("case", training.CASES)
def test_four_processes_go_on_from_one_bit_for_bit(two, four, case):
    saved = two[1]["save"][case]
    assert four["resume"][case]["start"] == saved["middle"]
    assert four["resume"][case]["end"] == saved["end"] != saved["middle"]
    assert four["resume"][case]["kinds"] == saved["kinds"]


def test_what_is_replicated_is_written_once_and_shards_by_each(two):
    path = Path(two[1]["save"]["AdamW torch.float32"]["path"])
    files = sorted((path / "model").glob("*.safetensors"))
    held = []
    for file in files:
        with safetensors.safe_open(file, "pt") as opened:
            held.append(set(opened.keys()))
    first, second = held
    assert {"scale", "embed.weight", "up.weight"} <= first
    # One row cannot be split: the second process has an empty shard of it and stores none.
    assert "last.weight" in first - second
    assert "embed.weight" in second
    assert "scale" not in second
    # The tied weight is one tensor.
    assert not any("head" in key for key in first | second)
    assert oc.verify(path.parent, training.STEPS).files == 4


def test_every_file_opens_and_the_whole_is_inspected_and_exported(two, tmp_path):
    from optim_checkpoint._export import export

    saved = two[1]["save"]["AdamW torch.float32"]
    item = oc.inspect(saved["run"], training.STEPS)
    shapes = {(t.part, t.name): t.shape for t in item.tensors}
    assert shapes["model", "embed.weight"] == (7, 6)
    assert shapes["optim", "state.embed.weight.exp_avg"] == (7, 6)
    assert len(shapes) == len(item.tensors)
    export(saved["run"], tmp_path / "m.safetensors", training.STEPS)
    with safetensors.safe_open(tmp_path / "m.safetensors", "pt") as opened:
        exported = opened.get_tensor("embed.weight")
    model, _ = training.build()
    ckpt.restore(saved["run"], training.STEPS, model=model)
    assert torch.equal(exported, model.embed.weight)


def test_the_reader_of_torch_loads_the_sharded_optimizer_folder(two):
    assert two[1]["reader"] == {"equal": True, "count": 27}


def test_each_process_gets_its_own_generators_and_data_back(two):
    expected = {"equal": [True, True], "distinct": True, "data": [10, 11]}
    assert two[1]["generators"] == expected


def test_fewer_processes_say_whose_generators_are_not_restored(folder, two):
    model, _ = training.build()
    with pytest.warns(oc.CheckpointWarning, match="generators of 2 processes were saved, 1 are"):
        ckpt.restore(folder / "rng", model=model)
    sampler = torch.nn.Linear(1, 1)
    before = sampler.weight.clone()
    with pytest.raises(
        oc.IncompatibleCheckpointError, match="the data of 2 processes were saved, 1"
    ):
        ckpt.restore(folder / "rng", model=model, data=sampler)
    assert torch.equal(sampler.weight, before)


def test_a_group_without_shards_stores_one_copy_and_all_generators(two):
    assert two[1]["replicas"] == {
        "files": [
            "manifest.json",
            "model/model.safetensors",
            "optim/optim.safetensors",
            "train/train-00001-of-00002.safetensors",
            "train/train-00002-of-00002.safetensors",
            "train/train.safetensors.index.json",
        ],
        "equal": [True, True],
    }


FAILURES = {
    "unsupported": (
        "UnsupportedStateError",
        r"^extra\['f'\]: a builtins.*\(process 1\)$",
        "^extra",
    ),
    "differing": ("UnsupportedStateError", r"^train\.extra: .* differ here", None),
    "exists": ("CheckpointExistsError", "already holds step 1", r"\(process 0\)$"),
    "steps": ("CheckpointWriteError", r"the processes save with different step: \[2, 3\]", None),
    "replica": ("UnsupportedStateError", "^scale: process 0 and process 1 hold different", None),
    "full disk of process 1": ("CheckpointWriteError", r"ENOSPC .* \(process 1\)$", "ENOSPC"),
    "full disk of process 0": ("CheckpointWriteError", "ENOSPC", r"ENOSPC .* \(process 0\)$"),
    "elsewhere": ("CheckpointWriteError", "is not visible to process 1: all processes", None),
    "replicas that differ": ("UnsupportedStateError", r"^extra\['t'\]: process 0 and", None),
    "background": (
        "UnsupportedStateError",
        r"^extra\['f'\]: a builtins.*\(process 1\)$",
        "^extra",
    ),
    "background, again": ("UnsupportedStateError", r"^train\.extra: .* differ here", None),
}


@pytest.mark.parametrize("case", FAILURES)
def test_a_failure_in_one_process_is_an_error_in_all(two, case):
    kind, first, second = FAILURES[case]
    errors = two[1]["failures"][case]
    for (name, text), pattern in zip(errors, (first, second or first), strict=True):
        assert name == kind
        assert re.search(pattern, text), text


def test_failures_leave_nothing_behind(two):
    assert two[1]["failures"]["left"] == [".lock", "step-00000001"]


def test_a_save_in_the_background_writes_what_one_in_front_does(two):
    found = two[1]["background"]
    assert "optim-00002-of-00002.safetensors" in found["files"]
    assert "manifest.json" in found["files"]
    assert all(found["equal"]), found
    assert found["steps"] == [[1, 2], [1, 2]]


def test_shards_are_read_into_the_live_memory_without_staging(two):
    found = two[1]["background"]
    assert found["restored"] == [True, True]
    assert found["moved"] == [0, 0]


def test_all_take_the_older_generation_where_one_finds_damage(two):
    found = two[1]["damage"]
    assert found["step"] == [1, 1]
    assert found["equal"] == [True, True]
    for texts in found["warnings"]:
        assert len(texts) == 1
        assert "optim-00002-of-00002.safetensors, tensor 'state." in texts[0]
    for kind, text in found["asked for"]:
        assert kind == "CorruptCheckpointError"
        assert "optim-00002-of-00002.safetensors, tensor 'state." in text


def test_a_mismatch_lists_every_difference_in_every_process(two):
    found = two[1]["damage"]
    for kind, text in found["mismatch"]:
        assert kind == "IncompatibleCheckpointError"
        for line in (
            "model entry down.weight has shape [6, 10] in the checkpoint, [5, 10]",
            "model entry scale has shape [2] in the checkpoint, [3]",
            "optimizer parameter down.bias is F32[6] in the checkpoint, F32[5] here",
        ):
            assert line in text
    assert found["untouched"]


def test_a_refusal_in_one_process_is_taken_back_in_all(two):
    found = two[1]["damage"]
    assert found["refused"] == [
        ["CheckpointError", "restoring: process 1 failed with RuntimeError: no"],
        ["RuntimeError", "no"],
    ]
    assert found["rolled back"] == [True, True]


def test_a_killed_process_leaves_the_step_before(two):
    codes, result = two
    assert codes == [0, -9]
    kind, text = result["killed"]["error"]
    assert kind == "CheckpointWriteError"
    assert "saving step 2: process 0 of 2 cannot reach the others" in text
    assert result["killed"]["left"] == [".lock", "step-00000001"]


@pytest.mark.parametrize("mesh", ["hybrid", "tensor parallel"])
def test_two_dimensional_meshes_restore_on_any_other(folder, four, mesh):
    found = four["meshes"][mesh]
    assert found["same mesh"]
    assert found["flat mesh"]
    torch.manual_seed(1)
    model = torch.nn.Sequential(torch.nn.Linear(6, 8), torch.nn.ReLU(), torch.nn.Linear(8, 6))
    optimizer = torch.optim.AdamW(model.parameters())
    ckpt.restore(folder / mesh, model=model, optimizer=optimizer)
    assert training.fingerprint(model, optimizer) == found["fingerprint"]
    # In the hybrid mesh two processes hold each shard; one of them writes it.
    assert found["files"] == {"hybrid": 4, "tensor parallel": 8}[mesh]
    assert ("_StridedShard" in str(found["placements"])) == (mesh == "tensor parallel")


def test_any_dimension_can_be_sharded_and_comes_back_whole(four):
    assert four["meshes"]["plain"] == [[True, True, True]] * 4


def test_a_partial_sum_is_refused_with_its_path(four):
    for kind, text in four["meshes"]["partial"]:
        assert kind == "UnsupportedStateError"
        assert text.startswith("extra['t']: the placement P")
        assert "is neither a shard nor a replica; redistribute it" in text
