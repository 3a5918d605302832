"""Objects by their names: `module:object` for what can be imported, `file.py:object` for a file.

A file is looked for in the folders of the module search path, of which the working directory is
one, and becomes the module of its stem: what lies beside it can be imported from it.
"""

import importlib
import importlib.util
import sys
from importlib.machinery import SourceFileLoader
from pathlib import Path
from types import CodeType, ModuleType
from typing import Any

_FILE = ".py"
# File -> what it held when it was loaded. An edited one is loaded anew.
_LOADED: dict[Path, tuple[bytes, ModuleType]] = {}


class _FromSource(SourceFileLoader):
    """Takes no compiled file: to those, an edit of equal length within a second is no edit."""

    def get_code(self, fullname: str) -> CodeType:
        return self.source_to_code(self.get_data(self.path), self.path)


def import_object(reference: str, wanted: str = "factory") -> Any:
    """Import `"module:name"` or `"file.py:name"`.

    Args:
        reference: what was typed.
        wanted: what the name should be of, for the message.

    Raises:
        ValueError: the reference has another form, or names nothing that can be imported.

    Example:
        >>> import_object("math:hypot")(3, 4)
        5.0
    """
    place, separator, attribute = reference.rpartition(":")
    if not (separator and place and attribute):
        raise ValueError(
            f"{reference!r} is no reference; write module:{wanted} or file.py:{wanted}"
        )
    found: Any = _load_file(place) if place.endswith(_FILE) else _load_module(reference, place)
    for part in attribute.split("."):
        if not hasattr(found, part):
            kind = "file" if place.endswith(_FILE) else "module"
            raise ValueError(f"{reference!r}: {kind} {place} has no {attribute}")
        found = getattr(found, part)
    return found


def is_reference(name: str) -> bool:
    """Return whether a name is a reference and no registered name."""
    return ":" in name


def module_of(reference: str) -> str:
    """Return the name of the module that a reference names.

    Example:
        >>> module_of("pack.mod:f"), module_of("folder/mine.py:f")
        ('pack.mod', 'mine')
    """
    place = reference.rpartition(":")[0]
    return Path(place).stem if place.endswith(_FILE) else place


def _load_module(reference: str, name: str) -> ModuleType:
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        raise ValueError(
            f"{reference!r} cannot be imported: {error}; is it installed or on PYTHONPATH?"
        ) from error


def _load_file(text: str) -> ModuleType:
    path = _find(text)
    content = path.read_bytes()
    if path in _LOADED and _LOADED[path][0] == content:
        return _LOADED[path][1]
    name = path.stem
    taken = getattr(sys.modules.get(name), "__file__", None)
    if name in sys.stdlib_module_names or (taken and Path(taken).resolve() != path):
        raise ValueError(
            f"{text} would be the module {name}, and there is another one of that name "
            f"({taken or 'of Python itself'}); rename the file"
        )
    if (folder := str(path.parent)) not in sys.path:
        sys.path.append(folder)
    spec = importlib.util.spec_from_file_location(name, path, loader=_FromSource(name, str(path)))
    if spec is None or spec.loader is None:
        raise ValueError(f"{text} cannot be imported; is it a Python file?")
    module = importlib.util.module_from_spec(spec)
    before = sys.modules.get(name)
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        if before is None:
            del sys.modules[name]
        else:
            sys.modules[name] = before
        if not isinstance(error, Exception):
            raise
        line = error.__traceback__
        while line is not None and line.tb_next is not None:
            line = line.tb_next
        where = f", line {line.tb_lineno}" if line is not None else ""
        raise ValueError(
            f"{text} cannot be imported: {type(error).__name__}: {error}{where}"
        ) from error
    _LOADED[path] = content, module
    return module


def _find(text: str) -> Path:
    for folder in dict.fromkeys((str(Path.cwd()), *sys.path)):
        path = Path(folder, text)
        if path.is_file():
            return path.resolve()
    raise ValueError(f"there is no file {text} in {Path.cwd()}; name it by its path from there")
