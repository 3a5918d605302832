"""A run in which sessions skipped or failed is not a green one."""

import json

import count_sessions
import pytest


def report(folder, *results):
    path = folder / "report.json"
    sessions = [{"signature": f"s{n}", "result": result} for n, result in enumerate(results)]
    path.write_text(json.dumps({"result": 0, "sessions": sessions}))
    return str(path)


@pytest.mark.parametrize(
    ("results", "expected", "status"),
    [
        (["success", "success"], "2", 0),
        (["success", "skipped"], "2", 1),
        (["success", "failed"], "2", 1),
        ([], "1", 1),
        (["skipped"], "0", 0),
    ],
)
def test_only_successes_count(tmp_path, results, expected, status):
    assert count_sessions.main([report(tmp_path, *results), expected]) == status
