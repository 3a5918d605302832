"""Prove that a package installed alone brings what it needs and nothing else.

`python -I check_alone.py PACKAGE`, in an environment that holds that package's wheel, the wheels it
declares, and nothing that was installed by hand. Uses the standard library only, for that reason.
"""

import importlib
import sys
from collections.abc import Callable
from importlib import metadata

FRAMEWORKS = {"jax", "jaxlib", "optax", "torch"}


def step_core() -> str:
    """Ask the core rules for one step of NumPy arrays."""
    import numpy as np
    from stam_core import STAM, reference

    params = {"w": np.ones(4, np.float32)}
    run = reference.Driver(STAM)
    state = run.init(params)
    stepped, _ = run.step(params, {"w": np.full(4, 0.5, np.float32)}, state)
    return f"{stepped['w'][0]:.6f}"


def step_jax() -> str:
    """Take one jitted step with the optax transformation."""
    import jax.numpy as jnp
    import optax
    from stam_jax import stam

    params = {"w": jnp.ones(4)}
    optimizer = stam(1e-2)
    updates, _ = optimizer.update({"w": jnp.full(4, 0.5)}, optimizer.init(params), params)
    return f"{float(optax.apply_updates(params, updates)['w'][0]):.6f}"


def step_torch() -> str:
    """Take one step with the torch optimizer, and with its kernel where the wheel has one."""
    import os

    import torch
    from stac_torch import STAC

    os.environ["PATH"] = ""  # so that no compiler is found
    has_kernel = "Root-Is-Purelib: false" in (
        metadata.distribution("stac-torch").read_text("WHEEL") or ""
    )
    results = []
    for fused in (False, True) if has_kernel else (False,):
        torch.manual_seed(0)
        model = torch.nn.Sequential(torch.nn.Linear(40, 30), torch.nn.Linear(30, 1))
        optimizer = STAC(model, lr=1e-2, fused=fused, adamw_modules=[], last_n_layers=0)
        model(torch.ones(2, 40)).sum().backward()
        optimizer.step()
        results.append(torch.cat([p.detach().flatten() for p in model.parameters()]))
    if not torch.equal(results[0], results[-1]):
        raise SystemExit("the kernel's bits are not those of the plain path")
    if has_kernel:
        return f"{results[0].abs().sum().item():.6f} with and without the kernel"
    try:
        optimizer.param_groups[0]["fused"] = True
        optimizer.step()
    except RuntimeError as error:
        if "this installation is the pure wheel" in str(error):
            return f"{results[0].abs().sum().item():.6f} without a kernel"
    raise SystemExit("the pure wheel does not say that it has no kernel")


def steps_of_a_folder() -> str:
    """List the checkpoints of an empty folder."""
    import tempfile

    import optim_checkpoint

    with tempfile.TemporaryDirectory() as folder:
        return f"{list(optim_checkpoint.steps(folder))}"


def registry() -> str:
    """Count the registered workloads and optimizers."""
    from optim_bench.optimizers import OPTIMIZERS
    from optim_bench.tasks.built_in import WORKLOADS

    return f"{len(WORKLOADS)} workloads, {len(OPTIMIZERS)} optimizers"


# Package: what it may not bring along, and what it must be able to do without it.
ALONE: dict[str, tuple[set[str], Callable[[], str]]] = {
    "stam-core": (FRAMEWORKS, step_core),
    "stam-jax": ({"torch", "stac-torch", "optim-bench", "optim-checkpoint"}, step_jax),
    "stac-torch": ({"jax", "jaxlib", "optax", "stam-jax", "optim-bench"}, step_torch),
    "optim-checkpoint": (
        FRAMEWORKS | {"stam-core", "stam-jax", "stac-torch", "safetensors", "typer", "rich"},
        steps_of_a_folder,
    ),
    "optim-bench": (FRAMEWORKS | {"stam-jax", "stac-torch"}, registry),
}


def main(package: str) -> int:
    """Print what is installed and what the package did; return the exit status."""
    forbidden, use = ALONE[package]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    version = metadata.version(package)
    print(f"{package} {version} came with {', '.join(sorted(installed))}")
    module = importlib.import_module(package.replace("-", "_"))
    faults = {
        "stam-core must need NumPy alone": package == "stam-core" and len(installed) > 2,
        f"it must install without {sorted(forbidden & installed)}": forbidden & installed,
        f"it came from {module.__file__}": "site-packages" not in str(module.__file__),
        f"it calls itself {module.__version__}": module.__version__ != version,
    }
    if found := [fault for fault, there in faults.items() if there]:
        print(f"{package}: {'; '.join(found)}")
        return 1
    print(f"{package} works alone: {use()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
