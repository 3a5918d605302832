import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import optim_checkpoint.jax
from optim_checkpoint._collect import Staging, read_staged
from optim_checkpoint._folder import parse_name
from optim_checkpoint._fs import open_folder, opened
from optim_checkpoint._generation import Generation
from optim_checkpoint.jax._leaves import Pending, pending_leaf

SCRIPT = Path(__file__).with_name("sharded_worker.py")


def test_eight_devices_save_and_two_restore(tmp_path):
    for mode in ("save", "restore"):
        done = subprocess.run(
            [sys.executable, str(SCRIPT), mode, str(tmp_path)], capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr


def test_a_leaf_that_two_places_share_is_read_where_either_wants_it(tmp_path):
    values = np.arange(24, dtype=np.float32).reshape(4, 6)
    path = optim_checkpoint.jax.save(tmp_path, 1, params={"w": values})

    def template(*indices):
        sharding = SimpleNamespace(
            is_fully_addressable=False,
            addressable_devices_indices_map=lambda shape: dict(enumerate(indices)),
        )
        return SimpleNamespace(sharding=sharding)

    with opened(open_folder(tmp_path)) as root, Generation(root, parse_name(path.name)) as found:
        staging = Staging.of(found, "model")
        leaf = pending_leaf(staging)("array", "w")
        assert isinstance(leaf, Pending)
        leaf.array[:] = -1
        leaf.narrow(template((slice(0, 2), slice(None))))
        leaf.narrow(template((slice(0, 2), slice(0, 3)), (slice(3, 4), slice(4, 6))))
        read_staged(found, staging)
    expected = np.full_like(values, -1)
    expected[:2] = values[:2]
    expected[3:, 4:] = values[3:, 4:]
    assert (leaf.array == expected).all()
