"""The optimizers of this repository on several processes: STAC 2 -> 1 -> 4, STAM 1 -> 2 -> 1."""

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
import optim_checkpoint.jax
import optim_checkpoint.torch
import pytest
import safetensors
import torch

HERE = Path(__file__).parent
pytestmark = pytest.mark.slow


def load(name):
    spec = importlib.util.spec_from_file_location(f"siblings_{name}", HERE / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


mesh, processes = load("mesh_worker"), load("process_worker")


def spawn(world, folder):
    done = subprocess.run(
        [sys.executable, str(HERE / "mesh_worker.py"), str(world), str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads((folder / f"result{world}.json").read_text())


@pytest.fixture(scope="module")
def stac(tmp_path_factory):
    """Train on two processes, go on in this one and then on four."""
    folder = tmp_path_factory.mktemp("stac")
    found = {2: spawn(2, folder), 1: {}}
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    for number, case in enumerate(mesh.CASES):
        model, make = mesh.build(case)
        optimizer = make()
        state = {"model": model, "optimizer": optimizer}
        optim_checkpoint.torch.restore(folder / str(number), **state)
        found[1][case] = {"start": mesh.fingerprint(model, optimizer)}
        mesh.train(model, optimizer, mesh.STEPS)
        found[1][case]["end"] = mesh.fingerprint(model, optimizer)
        optim_checkpoint.torch.save(folder / str(number), 2 * mesh.STEPS, **state)
    torch.set_num_threads(threads)
    found[4] = spawn(4, folder)
    return found


@pytest.mark.parametrize("case", mesh.CASES)
def test_stac_goes_on_from_two_processes_in_one_and_in_four_bit_for_bit(stac, case):
    two, one, four = (stac[world][case] for world in (2, 1, 4))
    assert one["start"] == two["start"]
    assert one["end"] == two["middle"] != two["start"]
    assert four["start"] == two["middle"]
    assert four["end"] == two["end"] != two["middle"]
    assert four["kinds"] == two["kinds"]


@pytest.mark.parametrize(("code", "dtype"), [("int8", "torch.int8"), ("int4", "torch.uint8")])
def test_the_codes_and_scales_are_sharded(stac, code, dtype):
    kinds = {tuple(kind) for kind in stac[4][f"{code} state"]["kinds"]}
    assert ("exp_avg", "DTensor", dtype) in kinds
    assert ("exp_avg_scale", "DTensor", "torch.float32") in kinds


@pytest.fixture(scope="module")
def stam(tmp_path_factory):
    """Train in this process and go on in two; return what each found."""
    folder = tmp_path_factory.mktemp("stam")
    starts = {}
    for number, (name, make) in enumerate(processes.CASES.items()):
        tx = make()
        params = jax.tree.map(jnp.asarray, processes.fresh())
        params, state = processes.train(tx, params, tx.init(params))
        optim_checkpoint.jax.save(folder / f"one{number}", 1, params=params, opt_state=state)
        starts[name] = (tx, params, state)
    with socket.socket() as server:
        server.bind(("127.0.0.1", 0))
        port = server.getsockname()[1]
    environment = {**os.environ, "XLA_FLAGS": "--xla_force_host_platform_device_count=1"}
    command = [sys.executable, str(HERE / "process_worker.py"), str(port)]
    started = [
        subprocess.Popen(
            [*command, str(rank), str(folder)],
            stderr=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            env=environment,
        )
        for rank in range(2)
    ]
    errors = [process.communicate(timeout=200)[1].decode() for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(errors)[-4000:]
    found = [json.loads((folder / f"result{rank}.json").read_text()) for rank in range(2)]
    return folder, starts, found


def close(ours, theirs):
    """Assert that the leaves agree up to the order of a sum over a sharded tensor."""
    for (dtype, values), (other, expected) in zip(ours, theirs, strict=True):
        assert dtype == other
        np.testing.assert_allclose(values, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", processes.CASES)
def test_stam_goes_on_in_two_processes_and_comes_back_to_one(stam, name):
    folder, starts, found = stam
    tx, params, state = starts[name]
    expected = processes.leaves((params, state))
    assert found[0][name]["start"] == found[1][name]["start"] == expected
    # Its statistics are sums over each tensor, which two processes add in another order.
    close(found[0][name]["end"], processes.leaves(processes.train(tx, params, state)))
    number = list(processes.CASES).index(name)
    zeros = jax.tree.map(jnp.zeros_like, (params, state))
    back = optim_checkpoint.jax.restore(
        folder / f"two{number}", params=zeros[0], opt_state=zeros[1]
    )
    assert processes.leaves((back.params, back.opt_state)) == found[0][name]["end"]


def test_packed_statistics_of_a_sharded_stam_are_stored_once_per_parameter(stam):
    folder, _, _ = stam
    names = []
    for file in sorted((folder / "two0" / "step-00000002" / "optim").glob("*.safetensors")):
        with safetensors.safe_open(file, "np") as opened:
            names += list(opened.keys())
    assert names.count("state.a.w.0.tau") == 1
    assert names.count("state.a.w.0.mu") == 2
