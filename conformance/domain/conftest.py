"""Fixtures: one server with a domain and TLS for the whole run; clients have `E2B_DOMAIN` and `E2B_API_KEY`, nothing else."""

import os
import pathlib
import sys

import pytest

sys.path.insert(0, str(pathlib.Path(__file__).parent.parent / "python"))

import results  # noqa: E402
from domain import DomainServer, prepare_host  # noqa: E402


def pytest_configure(config):
    results.configure(config)


def pytest_collection_modifyitems(items):
    for item in items:
        item.user_properties.append(("clients", list(results.rows(item))))


@pytest.fixture(scope="session")
def host():
    prepare_host()


@pytest.fixture(scope="session")
def server(host):
    server = DomainServer()
    os.environ.update(server.environment() | server.trust())
    yield server
    server.stop()


@pytest.fixture
def sandbox(server):
    from e2b import Sandbox

    sandbox = Sandbox.create()
    yield sandbox
    sandbox.kill()
