"""Prove that a package installed alone brings what it needs and nothing else.

`python -I check_alone.py PACKAGE`, in an environment that holds that package's wheel, the wheels it
declares, and nothing that was installed by hand. Uses the standard library only, for that reason.
"""

import doctest
import importlib
import inspect
import pkgutil
import sys
from importlib import metadata

FRAMEWORKS = {"jax", "jaxlib", "optax", "torch"}
# Package: a name whose module has examples that it must run alone, and what it may not bring along.
ALONE = {
    "stam-core": ("stam_core:STAMHyperparams", FRAMEWORKS),
    "stam-jax": ("stam_jax:stam", {"torch", "stac-torch", "optim-bench", "optim-checkpoint"}),
    "stac-torch": ("stac_torch:STAC", {"jax", "jaxlib", "optax", "stam-jax", "optim-bench"}),
    "optim-checkpoint": (
        "optim_checkpoint:steps",
        FRAMEWORKS | {"stam-core", "stam-jax", "stac-torch", "safetensors", "typer", "rich"},
    ),
    "optim-bench": (
        "optim_bench.protocol.catalog:parse_optimizer",
        FRAMEWORKS | {"stam-jax", "stac-torch"},
    ),
}


def main(package: str) -> None:
    """Print what is installed and how many lines of examples ran, or end with what is wrong."""
    public, forbidden = ALONE[package]
    installed = {distribution.name.lower() for distribution in metadata.distributions()}
    version = metadata.version(package)
    if not any(file.suffix == ".so" for file in metadata.files(package) or ()):
        # The examples of STAC show that it takes the kernel, which its pure wheel has not.
        public = public.replace("stac_torch:STAC", "stac_torch:STAM")
    print(f"{package} {version} came with {', '.join(sorted(installed))}")
    module = importlib.import_module(package.replace("-", "_"))
    ran = doctest.testmod(inspect.getmodule(pkgutil.resolve_name(public)))
    faults = {
        "stam-core must need NumPy alone": package == "stam-core" and len(installed) > 2,
        f"it must install without {sorted(forbidden & installed)}": forbidden & installed,
        f"it came from {module.__file__}": "site-packages" not in str(module.__file__),
        f"it calls itself {module.__version__}": module.__version__ != version,
        f"of the examples beside {public}, {ran}": ran.failed or not ran.attempted,
    }
    if found := [fault for fault, there in faults.items() if there]:
        raise SystemExit(f"{package}: {'; '.join(found)}")
    print(f"{package} works alone: {ran.attempted} lines of examples")


if __name__ == "__main__":
    main(sys.argv[1])
