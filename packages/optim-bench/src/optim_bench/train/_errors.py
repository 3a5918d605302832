"""What can go wrong before a run starts."""

import importlib.util


class MissingExtraError(RuntimeError):
    """A framework or a package that a run needs is not installed."""


# Framework -> the modules that its extra brings.
FRAMEWORK_MODULES = {"jax": ("jax", "optax", "stam_jax"), "torch": ("torch", "stac_torch")}


def require_framework(framework: str) -> None:
    """Check that a framework's extra is installed, without importing anything.

    Raises:
        MissingExtraError: a module is missing; the message holds the command that installs it.
    """
    for module in FRAMEWORK_MODULES[framework]:
        if importlib.util.find_spec(module) is None:
            raise MissingExtraError(
                f"{framework} runs need {module}, which is not installed: "
                f"pip install 'optim-bench[{framework}]'"
            )
