"""Coming from other checkpoints, and going back: exact, by name, no pickled code run."""

from typing import TYPE_CHECKING, Any

from optim_checkpoint.migrate._export import export_checkpoint
from optim_checkpoint.migrate._found import Report
from optim_checkpoint.migrate._import import import_checkpoint

if TYPE_CHECKING:
    from optim_checkpoint.migrate._naming import names_of

__all__ = ["Report", "export_checkpoint", "import_checkpoint", "names_of"]


def __getattr__(name: str) -> Any:
    # It needs torch, which an import from Orbax does without.
    if name == "names_of":
        from optim_checkpoint.migrate._naming import names_of

        return names_of
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
