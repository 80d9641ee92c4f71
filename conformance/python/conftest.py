"""Fixtures: one server for the whole run, which the official SDKs find by environment variables, as for their users.

With `COFFERDAM_OVER_TLS` it has a domain and TLS; see `domain.py`.
"""

import os

import pytest

import contract
import domain
import results
from server import ENGINE, Server


def pytest_configure(config):
    results.configure(config)
    contract.install()


# Files that take longest: begun first where two run at a time.
LONG = ["test_faults.py", "test_chaos.py", "test_templates.py"]


# Servers on a data directory that is kept between runs: it has one server at a time.
KEPT = {"one_interpreter_server": "interpreter", "one_mcp_server": "mcp"}


def group(item):
    """Tests of one group run one after the other: those of a file share its servers, and one data directory has one server."""
    return next((name for fixture, name in KEPT.items() if fixture in item.fixturenames), item.path.name)


def order(item):
    name = group(item)
    return 0 if name == "interpreter" else 1 + LONG.index(name) if name in LONG else 1 + len(LONG)


# Before xdist's own hook, which looks for the groups.
@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    items.sort(key=order)
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))
        if group(item) in KEPT.values():
            item.add_marker(pytest.mark.alone)
        for engine in ("container", "microvm"):
            if engine != ENGINE and item.get_closest_marker(engine):
                item.add_marker(pytest.mark.skip(reason=f"of the {engine} engine"))
        item.user_properties.append(("clients", list(results.rows(item))))


@pytest.fixture(autouse=True)
def responses_are_as_documented():
    """Fails a test during which the server sent a response that docs/openapi.yaml does not describe."""
    yield
    deviations, contract.deviations[:] = list(contract.deviations), []
    assert not deviations, "\n".join(deviations)


@pytest.fixture(scope="session")
def server():
    server = domain.server() if os.environ.get("COFFERDAM_OVER_TLS") else Server()
    os.environ.update(server.environment())
    yield server
    server.stop()


def kept_server(variable, recipe):
    server = Server(data=os.environ[variable], trusting=True, kept=True)
    try:
        server.build(recipe)
        yield server
    finally:
        server.stop()


@pytest.fixture(scope="session")
def one_interpreter_server():
    """A server whose data directory is kept between runs, because the template takes minutes to build."""
    yield from kept_server("COFFERDAM_INTERPRETER_DATA", "code-interpreter-v1")


@pytest.fixture(scope="module")
def interpreter_server(one_interpreter_server):
    """A server with the template `code-interpreter-v1`, in the environment variables for the tests of this module."""
    before = {name: os.environ.get(name) for name in one_interpreter_server.environment()}
    os.environ.update(one_interpreter_server.environment())
    yield one_interpreter_server
    for name, value in before.items():
        if value is None:
            del os.environ[name]
        else:
            os.environ[name] = value


@pytest.fixture(scope="session")
def one_mcp_server():
    """A server with the template `mcp-gateway`, kept between runs as well."""
    yield from kept_server("COFFERDAM_MCP_DATA", "mcp-gateway")


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


@pytest.fixture(scope="session")
def cold_server():
    """A second server, which keeps no frozen processes: every resume is a restore."""
    server = Server("--keep-frozen-max", "0", "--slots", "4")
    yield server
    server.stop()


@pytest.fixture
def cold(cold_server):
    """Options that direct a call of the SDK to `cold_server`."""
    return options_of(cold_server)


def options_of(server):
    return {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}
