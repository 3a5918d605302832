"""One Ray cluster for the cases that do not ask for one of their own: starting it takes seconds."""

import os
import shutil
import tempfile

import pytest
from optim_bench.executors import make_executor


@pytest.fixture(scope="session", autouse=True)
def folder():
    """Give Ray a folder with a path short enough for sockets, outside of a virtual environment.

    nox puts the temporary folder of a session inside, and there Ray starts no worker.
    """
    os.environ.pop("RAY_ADDRESS", None)
    os.environ["RAY_TMPDIR"] = tempfile.mkdtemp(prefix="ray-", dir="/tmp")
    yield
    shutil.rmtree(os.environ.pop("RAY_TMPDIR"), ignore_errors=True)


@pytest.fixture(scope="session")
def cluster(folder):
    starter = make_executor("ray", "json:loads", jobs=2)
    yield
    starter.close()


@pytest.fixture
def kind(make_kind):
    return make_kind("ray")
