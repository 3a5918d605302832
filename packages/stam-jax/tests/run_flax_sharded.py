"""Flax's sharding metadata on eight host devices; prints a JSON object: check -> difference.

    python run_flax_sharded.py KIND ...

Both ways in which Flax users shard an optimizer's state: metadata on the parameters is handed on to
whatever `init` makes with their shape, and the shardings are read from the whole state. Run in a
process of its own, because the number of devices is fixed when JAX starts.
"""

import json
import os
import sys
import traceback

os.environ["XLA_FLAGS"] = "--xla_force_host_platform_device_count=8"
os.environ["JAX_PLATFORMS"] = "cpu"

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import stam_jax
from flax import nnx
from jax.sharding import AxisType
from jax.sharding import PartitionSpec as P

MAKERS = {"stam": stam_jax.stam, "stam_lite": stam_jax.stam_lite}
STEPS = 5


def mesh():
    return jax.make_mesh((8,), ("x",), axis_types=(AxisType.Auto,))


def batch():
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.standard_normal((32, 4)), jnp.float32)
    return x, jnp.sin(x.sum(1, keepdims=True))


def difference(a, b):
    pairs = zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True)
    return max(float(np.abs(np.asarray(x, float) - np.asarray(y, float)).max()) for x, y in pairs)


class LinenNet(nn.Module):
    """A hidden layer whose weights are spread over `x`, and a head that is replicated."""

    @nn.compact
    def __call__(self, x):
        hidden = nn.Dense(
            16,
            kernel_init=nn.with_partitioning(nn.initializers.lecun_normal(), (None, "x")),
            bias_init=nn.with_partitioning(nn.initializers.zeros_init(), ("x",)),
        )
        return nn.Dense(1)(nn.tanh(hidden(x)))


def linen(make):
    """nn.get_sharding of the abstract state gives the out_shardings of a jitted init."""
    x, y = batch()
    net, optimizer = LinenNet(), make(0.05)

    def init(key):
        params = net.init(key, x)["params"]
        return params, optimizer.init(params)

    def loss(params):
        return jnp.mean((net.apply({"params": params}, x) - y) ** 2)

    @jax.jit
    def step(params, state):
        updates, state = optimizer.update(jax.grad(loss)(params), state, params)
        return optax.apply_updates(params, updates), state

    abstract = jax.eval_shape(init, jax.random.key(0))
    specs = nn.get_partition_spec(abstract)[1][0]
    assert specs.mu["Dense_0"] == {"kernel": P(None, "x"), "bias": P("x")}, specs.mu
    assert specs.beta1 == P(), specs.beta1

    def drive(params, state):
        for _ in range(STEPS):
            params, state = step(params, state)
        return nn.unbox((params, state))

    shardings = nn.get_sharding(abstract, mesh())
    params, state = jax.jit(init, out_shardings=shardings)(jax.random.key(0))
    moment = nn.unbox(state)[0].mu["Dense_0"]["kernel"]
    assert moment.addressable_shards[0].data.shape == (4, 2), moment.sharding
    return difference(drive(params, state), drive(*jax.jit(init)(jax.random.key(0))))


class NnxNet(nnx.Module):
    """The same layers in Flax NNX."""

    def __init__(self, rngs):
        spread = nnx.with_partitioning(nnx.initializers.lecun_normal(), (None, "x"))
        self.hidden = nnx.Linear(4, 16, kernel_init=spread, rngs=rngs)
        self.head = nnx.Linear(16, 1, rngs=rngs)

    def __call__(self, x):
        return self.head(nnx.tanh(self.hidden(x)))


def nnx_optimizer(make):
    """nnx.get_partition_spec of a model with its nnx.Optimizer says where everything goes."""
    x, y = batch()

    @nnx.jit
    def step(model, optimizer):
        grads = nnx.grad(lambda m: jnp.mean((m(x) - y) ** 2))(model)
        optimizer.update(model, grads)

    def drive(model, optimizer):
        for _ in range(STEPS):
            step(model, optimizer)
        return nnx.to_pure_dict(nnx.state((model, optimizer)))

    the_mesh = mesh()
    # Newer Flax places each annotated variable as it is made, and wants a mesh for that.
    with jax.set_mesh(the_mesh) if hasattr(jax, "set_mesh") else the_mesh:
        model = NnxNet(nnx.Rngs(0))
        optimizer = nnx.Optimizer(model, make(0.05), wrt=nnx.Param)
        graph, state = nnx.split((model, optimizer))
        specs = nnx.to_pure_dict(nnx.get_partition_spec(state))[1]["opt_state"][0]
        assert specs["mu"]["hidden"] == {"kernel": P(None, "x"), "bias": P()}, specs
        assert specs["beta1"] == P(), specs
        state = jax.device_put(state, nnx.get_named_sharding(state, the_mesh))
        sharded = drive(*nnx.merge(graph, state))
        moment = sharded[1]["opt_state"][0]["mu"]["hidden"]["kernel"]
        assert moment.addressable_shards[0].data.shape == (4, 2), moment.sharding
        state = jax.device_put(nnx.split((model, optimizer))[1], jax.devices()[0])
    return difference(sharded, drive(*nnx.merge(graph, state)))


def main(kinds):
    report = {}
    for check in (linen, nnx_optimizer):
        for kind in kinds:
            try:
                report[f"{check.__name__}-{kind}"] = check(MAKERS[kind])
            except Exception:  # noqa: BLE001 (reported, and failed on, by the test)
                report[f"{check.__name__}-{kind}"] = traceback.format_exc()[-1500:]
    print(json.dumps(report))  # noqa: T201


if __name__ == "__main__":
    assert jax.device_count() == 8
    main(sys.argv[1:])
