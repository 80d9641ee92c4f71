"""The MCP gateway, as the official SDK starts it, with official MCP clients. Servers without packages are in `mcp/server.py`."""

import ast
import json
import os
import pathlib
import subprocess
import time
import tomllib

import e2b.sandbox.mcp
import httpx
import pytest
from e2b import Sandbox, SandboxException, Template

HERE = pathlib.Path(__file__).parent / "mcp"
TEMPLATE = "mcp-tests"
# Stands in for GitHub, in the sandbox: git is told to clone from there.
REPOSITORY = """set -e
git config --system url.file:///opt/repositories/.insteadOf https://github.com/
git init --quiet /opt/repositories/owner/tests && cd /opt/repositories/owner/tests
cp /opt/mcp-tests/server.py . && git add . && git -c user.name=t -c user.email=t@localhost commit --quiet -m t"""


@pytest.fixture(scope="module")
def mcp_server(one_mcp_server):
    before = {name: os.environ.get(name) for name in one_mcp_server.environment()}
    os.environ.update(one_mcp_server.environment())
    template = (
        Template(file_context_path=str(HERE)).from_template("mcp-gateway").add_mcp_server(["filesystem", "time"])
        .copy("server.py", "/opt/mcp-tests/server.py", user="root").copy("servers.toml", "/etc/mcp-gateway/servers.toml", user="root")
        .run_cmd(REPOSITORY, user="root")
    )
    Template.build(template, TEMPLATE)
    yield one_mcp_server
    for name, value in before.items():
        os.environ.pop(name) if value is None else os.environ.update({name: value})


class Mcp:
    """Speaks with a sandbox's gateway, without a client library, so that each message is seen."""

    def __init__(self, server, sandbox, token):
        self.url = server.url + "/mcp"
        self.headers = {
            "Authorization": f"Bearer {token}", "E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "50005",
            "Accept": "application/json, text/event-stream",
        }
        self.session = None
        self.http = httpx.Client(timeout=60)

    def post(self, message):
        session = {"Mcp-Session-Id": self.session} if self.session else {}
        response = self.http.post(self.url, json={"jsonrpc": "2.0", **message}, headers=self.headers | session)
        self.session = response.headers.get("Mcp-Session-Id", self.session)
        return response

    def messages(self, message):
        response = self.post(message)
        assert response.status_code == 200, response.text
        if response.headers["Content-Type"].startswith("application/json"):
            return [response.json()]
        lines = [line.removeprefix("data:").strip() for line in response.text.splitlines() if line.startswith("data:")]
        return [json.loads(line) for line in lines if line]

    def request(self, method, **params):
        last = self.messages({"id": 1, "method": method, "params": params})[-1]
        return last["error"] if "error" in last else last["result"]

    def initialize(self, version="2025-06-18"):
        info = {"name": "tests", "version": "1"}
        result = self.request("initialize", protocolVersion=version, capabilities={}, clientInfo=info)
        assert self.post({"method": "notifications/initialized"}).status_code == 202
        return result

    def tools(self):
        return [tool["name"] for tool in self.request("tools/list")["tools"]]

    def call(self, name, **arguments):
        result = self.request("tools/call", name=name, arguments=arguments)
        return result["content"][0]["text"] if "content" in result else result["message"]


def started(server, config, template=TEMPLATE, **options):
    sandbox = Sandbox.create(template, mcp=config, **options)
    mcp = Mcp(server, sandbox, sandbox.get_mcp_token())
    mcp.initialize()
    return sandbox, mcp


@pytest.fixture(scope="module")
def two(mcp_server):
    sandbox, mcp = started(mcp_server, {"one": {}, "two": {"key": "a secret"}})
    yield sandbox, mcp
    sandbox.kill()


def test_an_empty_configuration_starts_a_gateway_without_tools(mcp_server):
    sandbox, mcp = started(mcp_server, {}, template=None)
    with sandbox:
        assert mcp.tools() == []
        assert sandbox.get_mcp_url() == f"https://{sandbox.get_host(50005)}/mcp"


def test_tools_prompts_and_resources_of_two_servers(two):
    _, mcp = two
    names = mcp.tools()
    assert names[:2] == ["echo", "slow"] and "two_echo" in names and {"only_one", "only_two"} <= set(names)
    assert mcp.call("echo", text="hello") == "one: hello"
    assert mcp.call("two_echo", text="hello") == "two: hello"
    assert mcp.call("two_secret") == "a secret"
    assert "no server has the tool" in mcp.call("nothing")
    assert [prompt["name"] for prompt in mcp.request("prompts/list")["prompts"]] == ["greet", "two_greet"]
    assert mcp.request("prompts/get", name="two_greet")["messages"][0]["content"]["text"] == "Greet as two"
    for uri in ("memo://two/one", "memo://two/other"):
        assert mcp.request("resources/read", uri=uri)["contents"][0]["text"] == f"two read {uri}"


def test_progress_passes_through(two):
    _, mcp = two
    params = {"name": "slow", "arguments": {}, "_meta": {"progressToken": "mine"}}
    messages = mcp.messages({"id": 7, "method": "tools/call", "params": params})
    progress = [message["params"] for message in messages if message.get("method") == "notifications/progress"]
    assert [step["progress"] for step in progress] == [1, 2, 3]
    assert {step["progressToken"] for step in progress} == {"mine"}


def test_cancellation_reaches_the_server(two):
    _, mcp = two
    stuck = {"jsonrpc": "2.0", "id": 99, "method": "tools/call", "params": {"name": "stuck", "arguments": {}}}
    with mcp.http.stream("POST", mcp.url, json=stuck, headers=mcp.headers | {"Mcp-Session-Id": mcp.session}):
        time.sleep(0.5)
        with httpx.Client() as other:
            cancel = {"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": 99}}
            assert other.post(mcp.url, json=cancel, headers=mcp.headers | {"Mcp-Session-Id": mcp.session}).status_code == 202
    until(lambda: len(json.loads(mcp.call("cancelled"))) == 1)


def test_a_crashed_server_is_started_again_without_harm_to_the_others(two):
    _, mcp = two
    other = mcp.call("only_two")
    assert "it ended before it answered" in mcp.call("crash")
    assert mcp.call("echo", text="again") == "one: again"
    assert mcp.call("only_two") == other
    # One that crashes again and again is left alone for a while.
    assert until(lambda: "left alone for a while" in mcp.call("crash"))
    assert mcp.call("only_two") == other


def test_changed_lists_are_read_again(mcp_server):
    sandbox, mcp = started(mcp_server, {"one": {}})
    with sandbox:
        assert "grown" not in mcp.tools()
        mcp.call("grow")
        until(lambda: "grown" in mcp.tools())


@pytest.mark.parametrize("config, reason", [
    ({"nonsense": {}}, "server nonsense: no such name in the catalogue"),
    ({"exa": {}}, "server exa: option apiKey is missing"),
    ({"exa": {"apiKey": "k", "other": 1}}, "unknown option other"),
    ({"terraform": {}}, "only a container image. Name a command of your own"),
    ({"exits": {}}, "server exits: it ended with exit code 1: no key: set TEST_KEY"),
    ({"one": {}, "github/a/b": {}}, "server github/a/b: option runCmd is missing"),
])
def test_a_server_that_does_not_start_fails_the_create_with_its_reason(mcp_server, config, reason):
    before = {sandbox["sandboxID"] for sandbox in mcp_server.sandboxes()}
    with pytest.raises(SandboxException) as failure:
        Sandbox.create(TEMPLATE, mcp=config)
    assert reason in str(failure.value)
    assert {sandbox["sandboxID"] for sandbox in mcp_server.sandboxes()} == before


@pytest.mark.parametrize("run, install", [("runCmd", "installCmd"), ("run_cmd", "install_cmd")])
def test_a_repository_in_both_spellings(mcp_server, run, install):
    options = {run: "python3 installed.py one", install: "cp server.py installed.py", "envs": {"TEST_KEY": "of the repository"}}
    sandbox, mcp = started(mcp_server, {"github/owner/tests": options})
    with sandbox:
        assert mcp.call("secret") == "of the repository"


def test_who_may_call(two):
    _, mcp = two
    call = {"jsonrpc": "2.0", "id": 1, "method": "ping"}
    wrong = httpx.post(mcp.url, json=call, headers=mcp.headers | {"Authorization": "Bearer wrong"})
    assert (wrong.status_code, wrong.text) == (401, "Unauthorized")
    assert wrong.headers["WWW-Authenticate"] == 'Bearer realm="MCP Gateway"'
    assert httpx.post(mcp.url, json=call, headers=mcp.headers | {"Origin": "https://example.com"}).status_code == 403
    open_headers = {name: value for name, value in mcp.headers.items() if name != "Authorization"}
    assert httpx.get(mcp.url.replace("/mcp", "/health"), headers=open_headers).status_code == 200
    assert httpx.get(mcp.url, headers=open_headers).status_code == 401


def test_sessions_are_limited(two, mcp_server):
    sandbox, mcp = two
    first = Mcp(mcp_server, sandbox, sandbox.get_mcp_token())
    first.initialize()
    for number in range(66):
        other = Mcp(mcp_server, sandbox, sandbox.get_mcp_token())
        other.http = mcp.http
        assert other.initialize()
        assert number % 20 or mcp.tools()
    # The least recently used one is gone, the one in use is not.
    assert first.post({"id": 1, "method": "tools/list"}).status_code == 404
    assert mcp.tools()


def test_token_of_a_connected_sandbox(two):
    sandbox, _ = two
    assert Sandbox.connect(sandbox.sandbox_id).get_mcp_token() == sandbox.get_mcp_token()


def test_pause_and_fork(mcp_server):
    sandbox, mcp = started(mcp_server, {"one": {}, "two": {}})
    before = mcp.call("only_two")
    sandbox.pause()
    sandbox = Sandbox.connect(sandbox.sandbox_id)
    with sandbox:
        assert mcp.call("only_two") == before
        fork = sandbox.fork()[0]
        with fork:
            child = Mcp(mcp_server, fork, sandbox.get_mcp_token())
            child.initialize()
            assert child.call("only_two") == before


def test_packages_are_there_without_network(mcp_server):
    sandbox, mcp = started(mcp_server, {"filesystem": {"paths": ["/"]}, "time": {}}, allow_internet_access=False)
    with sandbox:
        assert {"list_directory", "get_current_time"} <= set(mcp.tools())
        assert "[DIR] etc" in mcp.call("list_directory", path="/")


def test_official_clients(mcp_server):
    """In a sandbox of its own: those that other tests crash are not started again at once."""
    sandbox, mcp = started(mcp_server, {"one": {}, "two": {"key": "a secret"}})
    with sandbox:
        use_official_clients(mcp)


def use_official_clients(mcp):
    clients = pathlib.Path(os.environ["COFFERDAM_MCP_CLIENTS"])
    headers = {name: value for name, value in mcp.headers.items() if name != "Accept"}
    words = [mcp.url, json.dumps(headers), "slow", "{}"]
    script = clients / "js/client.mjs"
    script.write_bytes((HERE / "client.mjs").read_bytes())
    for command in (
        [clients / "old/bin/python", HERE / "client.py"], [clients / "new/bin/python", HERE / "client.py"], ["node", script],
    ):
        done = subprocess.run([*command, *words], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stderr[-3000:]
        seen = json.loads(done.stdout)
        assert seen["progress"] == [1, 2, 3] and "two_echo" in seen["tools"] and seen["text"].startswith("slow of one")


def test_inspector(two):
    _, mcp = two
    programs = pathlib.Path(os.environ["COFFERDAM_MCP_CLIENTS"]) / "js/node_modules/.bin"
    words = ["--cli", mcp.url, "--transport", "http", "--method", "tools/list"]
    for name, value in mcp.headers.items():
        if name != "Accept":
            words += ["--header", f"{name}: {value}"]
    done = subprocess.run([programs / "node", programs / "mcp-inspector", *words], capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "two_echo" in done.stdout, done.stderr[-3000:]


@pytest.mark.parametrize("version", ["2024-11-05", "2025-03-26", "2025-06-18", "2025-11-25"])
def test_protocol_versions(two, mcp_server, version):
    sandbox, _ = two
    mcp = Mcp(mcp_server, sandbox, sandbox.get_mcp_token())
    assert mcp.initialize(version)["protocolVersion"] == version
    assert "echo" in mcp.tools()


def test_the_catalogue_has_the_names_and_options_of_the_newest_sdk():
    catalogue = tomllib.loads((HERE.parents[2] / "templates/mcp-gateway/catalogue.toml").read_text())
    tree = ast.parse(pathlib.Path(e2b.sandbox.mcp.__file__).read_text())
    classes = {node.name: node for node in tree.body if isinstance(node, ast.ClassDef)}
    fields = {name: {one.target.id: ast.unparse(one.annotation) for one in node.body if isinstance(one, ast.AnnAssign)}
              for name, node in classes.items()}
    assert set(catalogue) == set(fields["McpServer"])
    for name, kind in fields["McpServer"].items():
        options = fields.get(kind.removeprefix("NotRequired[").removesuffix("]"), {})
        required = {option for option, kind in options.items() if not kind.startswith("NotRequired")}
        entry = catalogue[name]
        assert set(entry.get("required", [])) == required, name
        assert set(entry.get("optional", [])) == set(options) - required, name


def until(condition, seconds=20):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.1)
    return True
