"""What an optimizer or a task from outside was, when it ran: its source, as one short text.

What this package brings is identified by the versions that workloads and protocol declare. A user's
own code has no version, and edited code must never be answered from runs of what it was: its
identity is part of a run's key. It is

    name==version     for modules of an installed distribution
    sha256:...        over the files of all others, with every file of the user's that they import
    used:...          over which of their functions are used, and what these hold
    settings:...      over what a task declares beside its functions

Modules of the standard library are left out, and the frameworks, whose versions every record
holds. What a module reads at run time, such as a configuration file, is not seen. Of a notebook,
which is no file, the functions count that are used, with the values that they read as globals,
defaults or from around them: plain ones, arrays, and lists, dictionaries and sets of both. Other
objects there, such as a data frame or a model, do not.
"""

import ast
import functools
import hashlib
import importlib.util
import inspect
import site
import sys
import sysconfig
from collections.abc import Iterator
from contextlib import suppress
from importlib import metadata
from importlib.machinery import EXTENSION_SUFFIXES, ModuleSpec
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

from optim_bench.optimizers import OPTIMIZERS, OPTIONAL, OptimizerInfo
from optim_bench.references import is_reference, module_of
from optim_bench.results._values import values_text
from optim_bench.tasks import Entry

# Recorded with every run (`executors.train.environment`), or governed by declared versions.
_RECORDED = frozenset(
    {"jax", "jaxlib", "numpy", "optax", "optim_bench", "stac_torch", "stam_core", "stam_jax"}
    | {"torch"}
)
# What was read of a module when it was first looked at: a later edit does not change loaded code.
_READ: dict[str, tuple[ModuleSpec, bytes]] = {}
# Likewise what an object held, by its id: a cache that fills up in training makes no other task.
_HELD: dict[int, tuple[Any, str]] = {}


def source_of(info: OptimizerInfo, reference: str, entry: Entry) -> str | None:
    """Return the identity of what comes from outside this package, None where nothing does.

    Args:
        info: the optimizer.
        reference: what it was named by, for example `"module:factory"`.
        entry: what it trains.

    Raises:
        ValueError: the source of something cannot be found.
    """
    objects: list[Any] = []
    if info.key not in OPTIMIZERS and info.key not in OPTIONAL:
        objects += [part for part in (reference, info.factory, info.evaluation) if part is not None]
    objects += entry.written_in()
    parts: dict[str, bytes] = {}
    distributions: set[str] = set()
    for part in objects:
        for name, origin in _modules_of(part):
            _collect(name, origin, parts, distributions)
    found = sorted(distributions)
    if parts:
        digest = hashlib.sha256()
        for name, content in sorted(parts.items()):
            # Line ends differ between checkouts of the same file.
            content_digest = hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()
            digest.update(f"{name} {content_digest}\n".encode())
        found.append(f"sha256:{digest.hexdigest()}")
    # One file may hold two tasks, and one function make them.
    if used := [told for part in objects for told in _told(part, parts)]:
        found.append(f"used:{hashlib.sha256(repr(used).encode()).hexdigest()[:16]}")
    if settings := entry.settings():
        found.append(f"settings:{hashlib.sha256(settings.encode()).hexdigest()[:16]}")
    return " ".join(found) or None


def _modules_of(part: Any) -> Iterator[tuple[str, Any]]:
    """Give the modules in which a reference or a callable is written, with what it is."""
    if isinstance(part, str):
        if is_reference(part):
            yield module_of(part), None
        return
    for inner in _all_of(part):
        if not isinstance(inner, functools.partial):
            yield from _written_in(inner)


def _all_of(part: Any) -> Iterator[Any]:
    """Give a callable and every callable that it holds."""
    # An inner function that calls itself holds itself. The objects stay here, so that no other one
    # gets the id of one that was seen.
    seen: dict[int, Any] = {}
    waiting = [part]
    while waiting:
        part = waiting.pop()
        if id(part) in seen:
            continue
        seen[id(part)] = part
        yield part
        waiting += [held for held in reversed(_held(part)) if callable(held)]


def _told(part: Any, parts: dict[str, bytes]) -> Iterator[str]:
    """Give, for all that is written in the user's files, which function it is and what it holds."""
    for inner in () if isinstance(part, str) else _all_of(part):
        partial = isinstance(inner, functools.partial)
        name = next(_written_in(inner.func if partial else inner))[0]
        if name in parts or (partial and name.partition(".")[0] != "optim_bench"):
            if id(inner) not in _HELD:
                _HELD[id(inner)] = inner, _place_of(inner)
            yield _HELD[id(inner)][1]


def _place_of(part: Any) -> str:
    plain = getattr(part, "__func__", part)
    owner = plain if hasattr(plain, "__qualname__") else type(plain)
    kept: Any = {}
    place = owner.__qualname__
    if isinstance(part, functools.partial):
        kept = {"args": part.args, **part.keywords}
    elif isinstance(plain, FunctionType):
        code = plain.__code__
        columns = [(line, at) for line, _, at, _ in code.co_positions() if line and at]
        place += f" {code.co_firstlineno} {min(columns, default='')}"
        kept = _kept_values(plain) | dict(getattr(getattr(part, "__self__", None), "__dict__", {}))
    elif not inspect.isclass(part):
        kept = dict(getattr(part, "__dict__", {}))
    told = [place]
    for name, value in kept.items():
        with suppress(ValueError):  # an array of Python objects
            told.append(f"{name}={values_text(value)}")
    return " ".join(told)


def _written_in(part: Any) -> Iterator[tuple[str, Any]]:
    # A bound method, a function, a class, or an object with __call__.
    plain = getattr(part, "__func__", part)
    owner = plain if hasattr(plain, "__name__") else type(plain)
    # Methods of C types have a name and no module.
    yield getattr(owner, "__module__", None) or "builtins", owner
    # A decorated function calls itself by the name and module of what it wraps.
    if isinstance(plain, FunctionType):
        yield plain.__globals__.get("__name__", "builtins"), owner


def _held(part: Any) -> list[Any]:
    """Return what a partial applies, or what a function closes over."""
    if isinstance(part, functools.partial):
        return [part.func, *part.args, *part.keywords.values()]
    plain = getattr(part, "__func__", part)
    held: list[Any] = []
    for cell in (plain.__closure__ or ()) if isinstance(plain, FunctionType) else ():
        with suppress(ValueError):  # the cell of a name that was not assigned
            held.append(cell.cell_contents)
    return held


def _collect(name: str, origin: Any, parts: dict[str, bytes], distributions: set[str]) -> None:
    """Add a module, and everything of the user's that it imports, however long the chain."""
    waiting = [(name, origin)]
    while waiting:
        name, origin = waiting.pop()
        top = name.partition(".")[0]
        if name in parts or top in _RECORDED or top in sys.stdlib_module_names:
            continue
        path = _path_of(name)
        if path is None:
            if origin is not None or name == "__main__":
                waiting += _typed_with(name, origin, parts)
        elif (distribution := _distribution(top, path)) is not None:
            distributions.add(distribution)
        else:
            parts[name] = content = _content(name, path)
            imported = {*_imports(name, path, content), *_bound(sys.modules.get(name))}
            waiting += [(other, None) for other in imported]


def _typed_with(name: str, origin: Any, parts: dict[str, bytes]) -> list[tuple[str, Any]]:
    """Add what was typed, with the plain values that it reads, and return what else it uses.

    A notebook is one module, whose functions are found one by one.
    """
    place = f"{name}.{getattr(origin, '__qualname__', '')}"
    if place in parts:
        return []
    parts[place] = _typed(name, origin)
    methods = vars(origin).values() if inspect.isclass(origin) else ()
    used: dict[str, Any] = {}
    for function in (inspect.unwrap(origin), *methods):
        codes = [code] if (code := getattr(function, "__code__", None)) else []
        while codes:
            code = codes.pop()
            codes += [inner for inner in code.co_consts if hasattr(inner, "co_names")]
            space = getattr(function, "__globals__", {})
            used |= {n: space[n] for n in code.co_names if n in space}
        used |= _kept_values(function)
    plain = {n: v for n, v in sorted(used.items()) if _is_plain(v)}
    parts[place] += repr(plain).encode()
    for global_name in sorted({*used} - {*plain}):
        if told := values_text(used[global_name]):
            parts[place] += f"{global_name}={told}\n".encode()
    modules = [(v.__name__, None) for v in used.values() if isinstance(v, ModuleType)]
    written = [(owner, v) for v in used.values() if isinstance(owner := _module_of(v), str)]
    return [*modules, *written]


def _kept_values(function: Any) -> dict[str, Any]:
    """Return what a function keeps beside its text: its defaults, and what it closes over."""
    if not isinstance(function, FunctionType):
        return {}
    kept: dict[str, Any] = dict(function.__kwdefaults__ or {})
    kept |= {str(index): value for index, value in enumerate(function.__defaults__ or ())}
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        with suppress(ValueError):  # the cell of a name that was not assigned
            kept[name] = cell.cell_contents
    return {f"{function.__qualname__} {name}": value for name, value in kept.items()}


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple):
        return all(map(_is_plain, value))
    return isinstance(value, (bool, int, float, str, type(None)))


def _typed(name: str, origin: Any) -> bytes:
    """Return what was typed into a notebook or an interpreter."""
    try:
        code = getattr(inspect.unwrap(origin), "__code__", None) if callable(origin) else None
        # Every `exec` and every `python -c` has this name, and Python may know one of their texts.
        if code is not None and code.co_filename == "<string>":
            raise OSError("the text of this name may be another's")
        return inspect.getsource(origin).encode()
    except (OSError, TypeError, ValueError):  # the last one where wrappers form a circle
        msg = (
            f"the source of {getattr(origin, '__qualname__', name)} cannot be found, so that its "
            "runs could not be told from those of an edited one; write it into a file"
        )
        raise ValueError(msg) from None


def _path_of(name: str) -> Path | None:
    """Return the file of a module, found without importing it."""
    loaded = getattr(sys.modules.get(name), "__file__", None)
    if loaded is not None:
        return Path(loaded)
    top, *rest = name.split(".")
    try:
        spec = importlib.util.find_spec(top)
    except ValueError:  # __main__ has none
        return None
    if spec is None:
        return None
    if not rest:
        return Path(spec.origin) if spec.has_location and spec.origin else None
    endings = ("/__init__.py", ".py", *EXTENSION_SUFFIXES)
    for folder in spec.submodule_search_locations or ():
        for ending in endings:
            path = Path(folder, *rest[:-1], rest[-1] + ending)
            if path.is_file():
                return path
    return None


def _content(name: str, path: Path) -> bytes:
    spec = getattr(sys.modules.get(name), "__spec__", None)
    if name in _READ and _READ[name][0] is spec:
        return _READ[name][1]
    content = path.read_bytes()
    if spec is not None:  # reloading a module gives it another one
        _READ[name] = (spec, content)
    return content


def _imports(name: str, path: Path, content: bytes) -> Iterator[str]:
    """Give every module that a file names in an import statement, at any depth."""
    if path.suffix != ".py":
        return
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(content)):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield from _with_parents(alias.name)
        elif isinstance(node, ast.ImportFrom):
            base = "." * node.level + (node.module or "")
            if node.level:
                if not package:
                    continue
                base = importlib.util.resolve_name(base, package)
            yield from _with_parents(base)
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _with_parents(name: str) -> Iterator[str]:
    parts = name.split(".")
    yield from (".".join(parts[: end + 1]) for end in range(len(parts)))


def _bound(module: ModuleType | None) -> Iterator[str]:
    """Give the modules of what a loaded module holds, however it was imported."""
    for value in list(vars(module).values()) if module is not None else ():
        owner = value.__name__ if isinstance(value, ModuleType) else _module_of(value)
        if isinstance(owner, str):
            yield owner


def _module_of(value: Any) -> Any:
    """Return the module in which a class or a function is written."""
    return value.__module__ if inspect.isclass(value) or inspect.isroutine(value) else None


def _distribution(top: str, path: Path) -> str | None:
    """Return `name==version` of an installed module, None for the user's own."""
    if not any(path.is_relative_to(folder) for folder in _installed_folders()):
        return None
    names = sorted(_distributions().get(top, ()))
    return " ".join(f"{name}=={metadata.version(name)}" for name in names) or None


@functools.cache
def _installed_folders() -> tuple[Path, ...]:
    folders = {sysconfig.get_path(name) for name in ("purelib", "platlib", "stdlib", "platstdlib")}
    return tuple(Path(folder) for folder in {*folders, site.getusersitepackages()} if folder)


@functools.cache
def _distributions() -> dict[str, set[str]]:
    return {top: set(names) for top, names in metadata.packages_distributions().items()}
