"""One Ray cluster for the cases that do not ask for one of their own: starting it takes seconds."""

import os

import pytest


@pytest.fixture(scope="session")
def cluster():
    from optim_bench.executors._ray import RayExecutor

    starter = RayExecutor("json:loads", jobs=2)
    yield
    starter.close()


@pytest.fixture
def kind(make_kind):
    return make_kind("ray")


@pytest.fixture(scope="session", autouse=True)
def quiet():
    """Ray writes its session below the temporary folder, and its sockets need a short path."""
    os.environ.pop("RAY_ADDRESS", None)
