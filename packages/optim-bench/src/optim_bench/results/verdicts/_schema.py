"""The contract of `results.json`, as a JSON Schema (2020-12) in this package."""

import functools
import json
from collections.abc import Mapping
from importlib import resources
from typing import Any, cast

from jsonschema import Draft202012Validator

SCHEMA_VERSION = 1


@functools.cache
def schema() -> Mapping[str, Any]:
    """Return the schema of this version's `results.json`."""
    file = (
        resources.files("optim_bench.results.verdicts") / f"results-v{SCHEMA_VERSION}.schema.json"
    )
    return json.loads(file.read_text(encoding="utf-8"))


def validate_results(data: Any) -> list[str]:
    """Return what is wrong with a parsed `results.json`, one line per problem.

    Example:
        >>> validate_results({"schema_version": 1})[0]
        "at the top: 'protocol' is a required property"
        >>> validate_results({"schema_version": 7})
        ['schema_version is 7; this version of optim-bench reads 1']
    """
    version = cast("dict[str, Any]", data).get("schema_version") if isinstance(data, dict) else None
    if version != SCHEMA_VERSION:
        return [f"schema_version is {version}; this version of optim-bench reads {SCHEMA_VERSION}"]
    errors = Draft202012Validator(schema()).iter_errors(data)
    return [
        f"at {'.'.join(map(str, error.absolute_path)) or 'the top'}: {error.message}"
        for error in sorted(errors, key=lambda e: [str(part) for part in e.absolute_path])
    ]
