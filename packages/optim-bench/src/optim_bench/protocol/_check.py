"""The types in a `plan.json`, which people edit by hand now and then."""

import dataclasses
from collections.abc import Mapping
from typing import Any, NoReturn

from optim_bench.protocol._cell import Cell
from optim_bench.protocol._tiers import Budget

_TYPES: Mapping[str, type] = {
    "tier": str,
    "budget": dict,
    "cells": list,
    "family": list,
    "titles": dict,
    "families": dict,
    "workloads": dict,
}
_NAMES = {"int": int, "float": float, "str": str, "bool": bool}


def check_types(data: Mapping[str, Any]) -> None:
    """Refuse values of wrong types, which would go unnoticed until something computes with them.

    Raises:
        ValueError: one is found; the message names the field.
        KeyError: a field is missing.
    """
    for name, kind in _TYPES.items():
        _expect(name, data[name], kind)
    _check_fields("budget", Budget, data["budget"])
    for index, cell in enumerate(data["cells"]):
        where = f"cells.{index}"
        _expect(where, cell, dict)
        _check_fields(where, Cell, cell)
        for name in ("source", "task"):
            if cell.get(name) is not None:
                _expect(f"{where}.{name}", cell[name], str)
        _expect(f"{where}.hyperparameters", cell["hyperparameters"], dict)
        for name, value in cell["hyperparameters"].items():
            if not isinstance(value, (int, float, str, bool, type(None))):
                _wrong(f"{where}.hyperparameters.{name}", value, "a number, a text or null")
        _expect(
            f"{where}.hyperparameters.learning_rate",
            cell["hyperparameters"].get("learning_rate"),
            float,
        )
    _expect("added", data.get("added", []), list)
    for part in ("family", "added"):
        for index, name in enumerate(data.get(part, [])):
            _expect(f"{part}.{index}", name, str)
    for field in ("titles", "families"):
        for key, text in data[field].items():
            _expect(f"{field}.{key}", text, str)
    for name, facts in data["workloads"].items():
        _expect(f"workloads.{name}", facts, dict)
    for part in ("family", "added"):
        if strangers := set(data.get(part, [])) - {_cell_name(cell) for cell in data["cells"]}:
            raise ValueError(f"{part} names {', '.join(sorted(strangers))}, which is no cell")
    if absent := {cell["workload"] for cell in data["cells"]} - set(data["workloads"]):
        raise ValueError(f"workloads lack {', '.join(sorted(absent))}")


def _cell_name(cell: Mapping[str, Any]) -> str:
    return f"{cell['workload']}/{cell['framework']}/{cell['label']}"


def _check_fields(where: str, cls: type, data: Mapping[str, Any]) -> None:
    for field in dataclasses.fields(cls):
        # What a field's annotation says, where it is a plain type; __init__ names unknown fields.
        kind = _NAMES.get(getattr(field.type, "__name__", str(field.type)))
        if kind is not None and field.name in data:
            _expect(f"{where}.{field.name}", data[field.name], kind)


def _expect(where: str, value: object, kind: type) -> None:
    names = {dict: "an object", list: "a list", str: "a text", bool: "true or false"}
    if kind in (int, float):
        allowed = (int,) if kind is int else (int, float)
        if isinstance(value, bool) or not isinstance(value, allowed):
            _wrong(where, value, "a whole number" if kind is int else "a number")
    elif not isinstance(value, kind):
        _wrong(where, value, names[kind])


def _wrong(where: str, value: object, expected: str) -> NoReturn:
    raise ValueError(f"{where} is {value!r}; it has to be {expected}")
