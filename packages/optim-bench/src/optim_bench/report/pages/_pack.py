"""Data of a page without its repetitions.

A list of like objects, which is most of what a page embeds, becomes a table: every name stands
once, and so does every text that a column repeats. `report.js` undoes it.

JSON's numbers do not survive JavaScript as they were written: 2.0 becomes 2, and 1e-05 becomes
0.00001. Where the bytes matter, such numbers travel as marked texts.
"""

import json
from collections.abc import Mapping, Sequence
from typing import Any, cast

# What marks a table, and within one a column of texts.
COLUMNS, TEXTS, AT = "$columns", "$texts", "$at"
# What marks a text as a number, and the largest integer that JavaScript holds exactly.
NUMBER, LARGEST = "$number:", 2**53


def pack(value: Any) -> Any:
    """Return JSON data in the form that `report.js` unpacks.

    Example:
        >>> pack([{"label": "stam", "step": 1}, {"label": "stam", "step": 2}])
        {'$columns': {'label': {'$texts': ['stam'], '$at': [0, 0]}, 'step': [1, 2]}}
        >>> pack({"rates": [0.1, 0.3]})
        {'rates': [0.1, 0.3]}
    """
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {name: pack(item) for name, item in members.items()}
    if not isinstance(value, (list, tuple)):
        return value
    items = cast("Sequence[Any]", value)
    if len(items) > 1 and all(isinstance(item, Mapping) and item for item in items):
        names = list(items[0])
        if all(list(item) == names for item in items):
            return {COLUMNS: {name: _column([item[name] for item in items]) for name in names}}
    return [pack(item) for item in items]


def as_written(value: Any) -> Any:
    """Return JSON data in the order of a file, its numbers as texts where JavaScript changes them.

    Example:
        >>> as_written({"b": [1, 0.5, 2.0], "a": 1e-05})
        {'a': '$number:1e-05', 'b': [1, 0.5, '$number:2.0']}
    """
    if isinstance(value, Mapping):
        members = cast("Mapping[str, Any]", value)
        return {name: as_written(members[name]) for name in sorted(members)}
    if isinstance(value, (list, tuple)):
        return [as_written(item) for item in cast("Sequence[Any]", value)]
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return value
    text = json.dumps(value, allow_nan=False)
    if isinstance(value, int):
        same = abs(value) <= LARGEST
    else:
        same = "e" not in text and not text.endswith(".0")
    return value if same else f"{NUMBER}{text}"


def _column(values: list[Any]) -> Any:
    if all(isinstance(value, str) for value in values):
        texts = {text: index for index, text in enumerate(dict.fromkeys(values))}
        if len(texts) < len(values):
            return {TEXTS: list(texts), AT: [texts[value] for value in values]}
    return pack(values)
