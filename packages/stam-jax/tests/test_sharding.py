"""One device against eight, and two processes: the numbers are the same."""

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import stam_jax
from jax.sharding import Mesh, NamedSharding, PartitionSpec, SingleDeviceSharding

HERE = Path(__file__).parent
# Each way in which statistics become global is tried on every version; its variants on the newest.
FLOWS = ["fully_sharded", "shard_map_with_axis_name", "shard_map_without_axis_name_is_refused"]
VARIANTS = [
    "zero1",
    "map_params_specs",
    "shard_map_skips_on_all_shards",
    "rounding_does_not_depend_on_sharding",
    "rows_kept_apart_stay_replicated",
    "shard_map_over_two_axes",
]
CODES = ["rows_with_their_scales", "cut_rows", "codes_by_zero1", "codes_in_shard_map"]
# Sharding in types came after the oldest JAX that is supported.
TYPED = hasattr(jax, "set_mesh")
VARIANTS += ["explicit_mesh", "explicit_mesh_samples_and_axes"] if TYPED else []
CODES += ["codes_on_an_explicit_mesh", "cut_rows_on_an_explicit_mesh"] if TYPED else []


def report_of(script, checks):
    """Run checks in a process of its own, which has eight devices."""
    command = [sys.executable, str(HERE / script), *checks]
    for _ in range(4):
        result = subprocess.run(command, capture_output=True, text=True, check=False)
        # Eight devices share the threads of two cores: JAX 0.8.3 may wait for one it never runs.
        if "Termination timeout" not in result.stderr:
            break
    assert result.returncode == 0, result.stderr[-4000:]
    return json.loads(result.stdout.splitlines()[-1])


@pytest.fixture(scope="module")
def on_eight_devices(selected_values):
    flows = selected_values("test_eight_devices_compute_what_one_does", "flow")
    return report_of("run_sharded.py", flows)


@pytest.fixture(scope="module")
def codes_on_eight_devices(selected_values):
    return report_of(
        "run_sharded_codes.py", selected_values("test_codes_are_those_of_one_device", "codes")
    )


@pytest.mark.parametrize("kind", ["stam", "stam_lite"])
@pytest.mark.parametrize(
    "flow", [*FLOWS, *(pytest.param(flow, marks=pytest.mark.slow) for flow in VARIANTS)]
)
def test_eight_devices_compute_what_one_does(on_eight_devices, flow, kind):
    difference = on_eight_devices[f"{flow}-{kind}"]
    assert isinstance(difference, float), difference
    assert difference <= 2e-6


@pytest.mark.parametrize(
    "codes", [CODES[0], *(pytest.param(name, marks=pytest.mark.slow) for name in CODES[1:])]
)
def test_codes_are_those_of_one_device(codes_on_eight_devices, codes):
    for kind in ("stac", "four_bits"):
        difference = codes_on_eight_devices[f"{codes}-{kind}"]
        assert isinstance(difference, float), difference
        assert difference <= 2e-6


@pytest.mark.slow
def test_two_processes_compute_what_one_does():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    environment = {
        **os.environ,
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": "--xla_force_host_platform_device_count=2",
        # A program over several processes is not what JAX keeps of one.
        "JAX_ENABLE_COMPILATION_CACHE": "false",
    }
    processes = [
        subprocess.Popen(
            [sys.executable, str(HERE / "run_two_processes.py"), str(port), str(rank)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=environment,
        )
        for rank in range(2)
    ]
    try:
        outputs = [process.communicate(timeout=240) for process in processes]
    finally:
        for process in processes:
            process.kill()
    for process, (_, errors) in zip(processes, outputs, strict=True):
        assert process.returncode == 0, errors[-4000:]
    reports = [json.loads(out.splitlines()[-1]) for out, _ in outputs]
    assert [report["devices"] for report in reports] == [4, 4]
    assert max(report["difference"] for report in reports) <= 2e-6


def one_device_shardings():
    # Not make_mesh, whose default axis types change between the releases of the matrix.
    mesh = Mesh(np.asarray(jax.devices()[:1]), ("x",))
    return {"w": NamedSharding(mesh, PartitionSpec("x", None))}


def test_state_shardings_of_a_chain_with_schedules():
    params = {"w": jnp.ones((4, 2))}
    optimizer = stam_jax.stam(lambda count: 1e-3, weight_decay=lambda count: 1e-3)
    shardings = stam_jax.state_shardings(one_device_shardings(), params, optimizer)
    assert jax.tree.structure(shardings) == jax.tree.structure(optimizer.init(params))
    assert tuple(shardings[0].nu["w"].spec) == ("x", None)
    assert tuple(shardings[1].count.spec) == ()


@pytest.mark.parametrize(
    "partition", [None, {"a": "sign", "b": "adamw"}, lambda tree: {"a": "sign", "b": "adamw"}]
)
def test_state_shardings_of_a_partition(partition):
    sharding = one_device_shardings()["w"]
    params = {"a": {"w": jnp.ones((64, 64))}, "b": {"w": jnp.ones((4, 2))}}
    optimizer = stam_jax.stac(partition=partition, sign_state_dtype="int8")
    shardings = jax.tree.map(lambda _: sharding, params)
    tree = stam_jax.state_shardings(shardings, params, optimizer)
    state = jax.jit(optimizer.init, out_shardings=tree)(params)
    assert jax.tree.structure(tree) == jax.tree.structure(state)
    by_sign, by_adam = (tree.inner_states[role].inner_state[0] for role in ("sign", "adamw"))
    assert by_sign.mu["a"]["w"].spec == sharding.spec
    assert by_sign.mu_scale["a"]["w"].spec == PartitionSpec("x")
    assert by_adam.nu["b"]["w"].spec == sharding.spec


@pytest.mark.parametrize(
    ("shardings", "axis", "error", "says"),
    [
        ({}, None, ValueError, "params_shardings is empty"),
        (
            one_device_shardings,
            "y",
            ValueError,
            r"zero1_axis 'y' is not an axis of the mesh: it has",
        ),
        (
            lambda: {"w": SingleDeviceSharding(jax.devices()[0])},
            None,
            TypeError,
            "params_shardings must hold NamedSharding, got SingleDeviceSharding",
        ),
    ],
)
def test_bad_shardings(shardings, axis, error, says):
    shardings = shardings() if callable(shardings) else shardings
    with pytest.raises(error, match=says):
        stam_jax.state_shardings(
            shardings, {"w": jnp.ones((4, 2))}, stam_jax.stam(), zero1_axis=axis
        )
