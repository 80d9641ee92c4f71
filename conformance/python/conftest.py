"""One server for the whole run, and the official SDK pointed at it as its users do: by environment variables."""

import os

import pytest

from server import Server


@pytest.fixture(scope="session")
def server():
    server = Server()
    os.environ.update(server.environment())
    yield server
    server.stop()


@pytest.fixture
def sandbox(server):
    from e2b import Sandbox

    sandbox = Sandbox.create()
    yield sandbox
    sandbox.kill()


@pytest.fixture
async def async_sandbox(server):
    from e2b import AsyncSandbox

    sandbox = await AsyncSandbox.create()
    yield sandbox
    await sandbox.kill()
