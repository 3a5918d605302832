"""A run in which sessions skipped, failed or are missing is not a green one."""

import io
import os
import subprocess
import sys

import count_sessions
import pytest

NOXFILE = """
import nox

@nox.session(python=False)
@nox.parametrize("package", ["good", "odd"])
def tests(session, package):
    if package == "odd" and "{odd}" == "fail":
        session.error("broken")
    if package == "odd" and "{odd}" == "skip":
        session.skip("not here")

@nox.session(python=False, default=False)
def by_name(session):
    session.error("never asked for")
"""


def nox(folder, *options):
    command = [sys.executable, "-m", "nox", "-f", str(folder / "noxfile.py"), *options]
    # Two noxfiles of one length, written within a second, would be one to Python's cache.
    environment = {**os.environ, "PYTHONDONTWRITEBYTECODE": "1"}
    done = subprocess.run(command, check=False, capture_output=True, text=True, env=environment)
    return done.stdout


@pytest.fixture
def verdict(tmp_path, monkeypatch, capsys):
    """What the script returns and prints after a real run of nox with an odd second session."""

    def run(odd, *may_skip, ran=()):
        (tmp_path / "noxfile.py").write_text(NOXFILE.replace("{odd}", odd))
        report = tmp_path / "report.json"
        nox(tmp_path, "--report", str(report), *ran)
        monkeypatch.setattr(sys, "stdin", io.StringIO(nox(tmp_path, "--list", "--json")))
        status = count_sessions.main([str(report), *may_skip], sys.stdin.read())
        return status, capsys.readouterr().out

    return run


def test_green(verdict):
    assert verdict("pass") == (
        0,
        "2 nox sessions are expected to run, 0 of them did not pass\n",
    )


@pytest.mark.parametrize(
    ("odd", "result"), [("fail", "aborted"), ("skip", "skipped")], ids=["fail", "skip"]
)
def test_a_session_that_did_not_pass(verdict, odd, result):
    status, out = verdict(odd)
    assert status == 1
    assert f"tests(package='odd'): {result}" in out


def test_a_session_that_is_missing(verdict):
    status, out = verdict("pass", ran=("-s", "tests(package='good')"))
    assert status == 1
    assert "tests(package='odd'): not run" in out


def test_only_named_sessions_may_skip_and_none_may_fail(verdict):
    assert verdict("skip", "tests")[0] == 0
    assert verdict("skip", "other")[0] == 1
    assert verdict("fail", "tests")[0] == 1
