"""One of two processes with one mesh over loopback; `test_processes.py` starts them.

Run by path: ``process_worker.py PORT RANK FOLDER``. It goes on from what one process saved, saves,
restores on another mesh, and fails on purpose; process 0 writes what was found as JSON. It ends by
itself after two minutes.
"""

import json
import signal
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optim_checkpoint as oc
from jax.experimental import multihost_utils
from jax.sharding import NamedSharding
from jax.sharding import PartitionSpec as P
from optim_checkpoint import _fs
from optim_checkpoint import jax as ckpt

STEPS = 3
TX = optax.chain(optax.clip(1.0), optax.adamw(optax.linear_schedule(1e-2, 0.0, 50)))
SPECS = {
    "rows": {"w": P("x"), "k": P("x", None), "b": P(), "n": P()},
    "columns": {"w": P(), "k": P(None, "x"), "b": P("x"), "n": P()},
}


def fresh():
    """Return parameters of several dtypes as NumPy arrays."""
    rng = np.random.default_rng(0)
    return {
        "w": rng.standard_normal(8).astype(np.float32),
        "k": rng.standard_normal((4, 6)).astype(jnp.bfloat16),
        "b": rng.standard_normal(4).astype(np.float32),
        "n": rng.standard_normal(3).astype(np.float32),
    }


@jax.jit
def train_step(params, state):
    grads = jax.tree.map(lambda p: p * 0.5 - 0.25, params)
    updates, state = TX.update(grads, state, params)
    return optax.apply_updates(params, updates), state


def train(params, state, count=STEPS):
    for _ in range(count):
        params, state = train_step(params, state)
    return params, state


def place(tree, shardings):
    """Spread NumPy arrays over the processes."""
    return jax.tree.map(
        lambda x, s: jax.make_array_from_callback(x.shape, s, lambda i: x[i]), tree, shardings
    )


def bits(tree):
    """Return every leaf whole, as dtype and hexadecimal bytes."""
    found = []
    for leaf in jax.tree.leaves(tree):
        array = leaf
        if not getattr(leaf, "is_fully_addressable", True):
            array = multihost_utils.process_allgather(leaf, tiled=True)
        array = np.asarray(array)
        found.append(f"{array.dtype}{array.shape}{array.tobytes().hex()}")
    return found


def error_of(work):
    try:
        work()
    except oc.CheckpointError as error:
        return [type(error).__name__, str(error)]
    return ["nothing", ""]


class FullDisk(_fs.FileOps):
    def write(self, fd, data):
        raise OSError(28, "No space left on device")


def work(folder, rank):
    """Return what this process found."""
    mesh = jax.make_mesh((jax.device_count(),), ("x",))
    shardings = {
        name: {key: NamedSharding(mesh, spec) for key, spec in specs.items()}
        for name, specs in SPECS.items()
    }
    params = place(jax.tree.map(np.zeros_like, fresh()), shardings["rows"])
    state = jax.jit(TX.init)(params)
    found = ckpt.restore(folder / "one", params=params, opt_state=state)
    result = {"from one": bits((found.params, found.opt_state))}
    result["placed"] = [leaf.sharding == params[key].sharding for key, leaf in found.params.items()]
    params, state = train(found.params, found.opt_state)
    result["trained"] = bits((params, state))
    everywhere = NamedSharding(mesh, P())
    key = jax.jit(lambda: jax.random.key(7), out_shardings=everywhere)()
    keys = {"k": key, "local": jax.random.key(5)}
    path = ckpt.save(
        folder / "two", 2 * STEPS, params=params, opt_state=state, rng=keys, extra={"epoch": 3}
    )
    result["files"] = sorted(str(p.relative_to(path)) for p in path.rglob("*.safetensors"))
    zeros = place(jax.tree.map(np.zeros_like, fresh()), shardings["columns"])
    again = ckpt.restore(folder / "two", params=zeros, opt_state=jax.jit(TX.init)(zeros))
    result["other mesh"] = bits((again.params, again.opt_state)) == result["trained"]
    result["moved"] = again.params["k"].sharding == zeros["k"].sharding != params["k"].sharding
    result["keys"] = [
        jax.random.key_data(again.rng[name]).tolist() == jax.random.key_data(value).tolist()
        for name, value in (("k", jax.random.key(7)), ("local", jax.random.key(5)))
    ]
    weak = jax.jit(lambda: jnp.asarray(2.0), out_shardings=everywhere)()
    tree = {"key": key, "weak": weak}
    ckpt.save(folder / "leaves", 1, params=tree)
    back = ckpt.restore(folder / "leaves", params=tree).params
    result["leaves"] = [
        back["key"].sharding == key.sharding,
        jax.random.key_data(back["key"]).tolist() == jax.random.key_data(key).tolist(),
        back["weak"].weak_type == tree["weak"].weak_type,
        back["weak"].sharding == tree["weak"].sharding,
    ]
    result["differing"] = error_of(
        lambda: ckpt.save(folder / "two", 9, params=params, extra={"epoch": rank})
    )
    wrong = {**zeros, "k": place(np.zeros((4, 8), np.float32), shardings["columns"]["k"])}
    result["mismatch"] = error_of(lambda: ckpt.restore(folder / "two", params=wrong))
    if rank:
        _fs.ops = FullDisk()
    result["full"] = error_of(lambda: ckpt.save(folder / "two", 9, params=params))
    result["left"] = sorted(p.name for p in (folder / "two").iterdir())
    return result


def main(port, rank, folder):
    """Run one process."""
    signal.alarm(120)
    jax.config.update("jax_cpu_collectives_implementation", "gloo")
    jax.distributed.initialize(f"127.0.0.1:{port}", num_processes=2, process_id=rank)
    result = work(folder, rank)
    (folder / f"result{rank}.json").write_text(json.dumps(result))
    jax.distributed.shutdown()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
