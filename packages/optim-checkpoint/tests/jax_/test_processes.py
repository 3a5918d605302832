"""Arrays that are spread over processes: 1 -> 2 -> 1 processes, and what goes wrong."""

import importlib.util
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optim_checkpoint as oc
import pytest
import safetensors
from optim_checkpoint import jax as ckpt

SCRIPT = Path(__file__).with_name("process_worker.py")
pytestmark = pytest.mark.slow


def load_worker():
    spec = importlib.util.spec_from_file_location("process_worker", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


worker = load_worker()


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("processes")


@pytest.fixture(scope="module")
def start(folder):
    """Train and save in this process."""
    params = jax.tree.map(jnp.asarray, worker.fresh())
    params, state = worker.train(params, worker.TX.init(params))
    ckpt.save(folder / "one", worker.STEPS, params=params, opt_state=state)
    return params, state


@pytest.fixture(scope="module")
def found(folder, start):
    """Go on in two processes; return what each found."""
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {
        **os.environ,
        "XLA_FLAGS": "--xla_force_host_platform_device_count=1",
        # A program over several processes is not what JAX keeps of one.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(SCRIPT), str(port), str(rank), str(folder)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in processes]
    assert [process.returncode for process in processes] == [0, 0], "\n".join(errors)[-4000:]
    return [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_read_what_one_saved(start, found):
    expected = worker.bits(start)
    assert [result["from one"] for result in found] == [expected, expected]
    assert [result["placed"] for result in found] == [[True] * 4] * 2


def test_training_goes_on_bit_for_bit_and_back_in_one_process(folder, start, found):
    expected = worker.bits(worker.train(*start))
    assert found[0]["trained"] == found[1]["trained"] == expected
    params, state = jax.tree.map(jnp.zeros_like, start)
    back = ckpt.restore(folder / "two", params=params, opt_state=state)
    assert worker.bits((back.params, back.opt_state)) == expected
    assert back.extra == {"epoch": 3}
    assert (jax.random.key_data(back.rng["k"]) == jax.random.key_data(jax.random.key(7))).all()


def test_each_process_writes_its_shards_and_replicas_are_written_once(folder, found):
    assert found[0]["files"] == [
        "model/model-00001-of-00002.safetensors",
        "model/model-00002-of-00002.safetensors",
        "optim/optim-00001-of-00002.safetensors",
        "optim/optim-00002-of-00002.safetensors",
        "train/train.safetensors",
    ]
    path = folder / "two" / "step-00000006" / "model"
    with safetensors.safe_open(path / "model-00002-of-00002.safetensors", "np") as file:
        assert sorted(file.keys()) == ["k", "w"]
        assert file.get_slice("k").get_shape() == [2, 6]
    shapes = {t.name: t.shape for t in oc.inspect(folder / "two").tensors if t.part == "model"}
    assert shapes == {"w": (8,), "k": (4, 6), "b": (4,), "n": (3,)}


def test_another_mesh_gets_the_same_arrays(found):
    for result in found:
        assert result["other mesh"]
        assert result["moved"]
        assert result["keys"] == [True, True]


def test_keys_and_weak_types_keep_their_place(found):
    assert [result["leaves"] for result in found] == [[True] * 4] * 2


def test_failures_are_errors_in_every_process(found):
    for result in found:
        kind, text = result["differing"]
        assert kind == "UnsupportedStateError"
        assert "train.extra: process 0 and process 1 differ here" in text
        kind, text = result["mismatch"]
        assert kind == "IncompatibleCheckpointError"
        assert "params k has shape [4, 6] in the checkpoint, [4, 8] here" in text
        assert "params k has dtype bfloat16 in the checkpoint, float32 here" in text
        kind, text = result["full"]
        assert kind == "CheckpointWriteError"
        assert "ENOSPC" in text
    # Process 0 takes away what was written before it raises.
    assert found[0]["left"] == [".lock", "step-00000006"]
    assert found[0]["full"][1].endswith("(process 1)")


def test_a_sharded_checkpoint_is_verified_like_any_other(folder, found, tmp_path):
    import shutil

    copy = tmp_path / "run"
    shutil.copytree(folder / "two", copy)
    assert oc.verify(copy).tensors == len(oc.inspect(copy).tensors)
    victim = copy / "step-00000006" / "optim" / "optim-00002-of-00002.safetensors"
    raw = bytearray(victim.read_bytes())
    raw[-1] ^= 1
    victim.write_bytes(raw)
    with pytest.raises(oc.CorruptCheckpointError, match=r"optim-00002.*, tensor 'state\."):
        oc.verify(copy)
    params = jax.tree.map(np.asarray, worker.fresh())
    with pytest.raises(oc.CorruptCheckpointError, match="its digest is"):
        ckpt.restore(copy, params=params)
