"""Fixtures: one fake network, and one server in it, for the whole run."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "python"))

import results  # noqa: E402
from server import Server  # noqa: E402
from fake_network import RESOLVER, World  # noqa: E402


def pytest_configure(config):
    results.configure(config)


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("clients", list(results.rows(item))))


@pytest.fixture(scope="session")
def world():
    world = World()
    yield world
    world.close()


@pytest.fixture(scope="session")
def server(world):
    server = Server("--dns", f"{RESOLVER}:53", "--egress-ca", str(world.authority))
    os.environ.update(server.environment())
    yield server
    server.stop()


@pytest.fixture
def sandbox(server):
    from e2b import Sandbox

    sandbox = Sandbox.create()
    yield sandbox
    sandbox.kill()
