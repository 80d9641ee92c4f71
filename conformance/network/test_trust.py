"""Which programs trust the authority of header rules without being told: the tables in docs/egress-rules.md."""

import os

import pytest
from e2b import Sandbox

from fake_network import RESOLVER
from secure_web import DOMAIN
from server import Server
from test_egress_rules import keys_of, rule, run

API = f"api.{DOMAIN}"
URL = f"https://{API}/"
RULES = {API: rule(X_Api_Key="k1")}

# What is run, by the program that it needs. Each fails without TLS; to git and npm the server's responses are empty repositories.
TRUST = {
    "curl": f"curl --silent {URL}",
    "wget": f"wget -q -O - {URL}",
    "python3 (ssl, urllib)": f"""python3 -c 'import urllib.request; print(urllib.request.urlopen("{URL}").read().decode())'""",
    "openssl": f"echo | openssl s_client -verify_return_error -connect {API}:443 -servername {API} 2>/dev/null",
    "node (fetch)": f"""node -e 'fetch("{URL}").then((r) => r.text()).then(console.log)'""",
    "node (https)": f"""node -e 'require("https").get("{URL}", (r) => r.resume())'""",
    "git": f"git ls-remote {URL}",
    "pip": f"pip download --no-cache-dir --index-url {URL} nothing 2>&1 | grep -q 'No matching distribution'",
    "npm": f"npm view nothing --registry={URL} --fetch-retries=0",
    # Complains about what it is sent, after TLS.
    "apt": f"echo 'deb [trusted=yes] {URL} ./' > /tmp/own.list; mkdir -p /tmp/lists/partial; apt-get update -o Dir::Etc::SourceList=/tmp/own.list"
           " -o Dir::Etc::SourceParts=- -o Dir::State::Lists=/tmp/lists | grep -q '^Get:1 '",
    "pip (requests)": f"""python3 -c 'from pip._vendor import requests; print(requests.get("{URL}").text)'""",
}


JAVA = f"""
import java.net.URI;
import java.net.http.*;
public class Get {{
    public static void main(String[] words) throws Exception {{
        var request = HttpRequest.newBuilder(URI.create("{URL}")).build();
        System.out.println(HttpClient.newHttpClient().send(request, HttpResponse.BodyHandlers.ofString()).body());
    }}
}}
"""
AIOHTTP = f"""
import asyncio, aiohttp
async def main():
    async with aiohttp.ClientSession() as session, session.get("{URL}") as response:
        print(await response.text())
asyncio.run(main())
"""
# The same in the template `code-interpreter-v1`. Each prints the response, in which the server shows the rule's header.
INTERPRETER_TRUST = {
    "requests": f"""python3 -c 'import requests; print(requests.get("{URL}").text)'""",
    "aiohttp": "python3 /tmp/with_aiohttp.py",
    "urllib3": f"""python3 -c 'import urllib3; print(urllib3.request("GET", "{URL}").data.decode())'""",
    "R (libcurl)": f"""Rscript -e 'cat(readLines("{URL}", warn = FALSE))'""",
    "java (HttpClient)": "java /tmp/Get.java",
    "node (fetch)": TRUST["node (fetch)"],
}


@pytest.fixture(scope="module")
def ruled(server):
    sandbox = Sandbox.create(network={"rules": RULES})
    yield sandbox
    sandbox.kill()


@pytest.mark.parametrize("program", TRUST)
def test_programs_of_base_trust_the_authority(ruled, program):
    if "exit=" in run(ruled, f"command -v {program.split()[0]} > /dev/null"):
        pytest.skip(f"the base template has no {program}")
    output = run(ruled, f"({TRUST[program]}) 2>&1")
    assert "exit=" not in output, output


@pytest.mark.parametrize("program", ["node (fetch)", "pip (requests)"])
def test_programs_notice_that_the_authority_is_missing(ruled, program):
    """Those that read the variables alone, so that the test above shows something."""
    none = "SSL_CERT_FILE REQUESTS_CA_BUNDLE CURL_CA_BUNDLE GIT_SSL_CAINFO PIP_CERT".split()
    variables = " ".join(f"{name}=/etc/ssl/certs/ISRG_Root_X1.pem" for name in none)
    output = run(ruled, f"(export NODE_EXTRA_CA_CERTS= {variables}; {TRUST[program]}) 2>&1")
    assert "exit=" in output, output


@pytest.fixture(scope="module")
def interpreter(world):
    """A sandbox of the code interpreter, on a server of its own in the fake network."""
    server = Server("--dns", f"{RESOLVER}:53", "--egress-ca", str(world.authority),
                    data=os.environ["COFFERDAM_INTERPRETER_DATA"], kept=True)
    try:
        sandbox = Sandbox.create("code-interpreter-v1", network={"rules": RULES}, api_key=server.key, api_url=server.url,
                                 sandbox_url=server.url)
        sandbox.files.write_files([{"path": "/tmp/Get.java", "data": JAVA}, {"path": "/tmp/with_aiohttp.py", "data": AIOHTTP}])
        yield sandbox
        sandbox.kill()
    finally:
        server.stop()


@pytest.mark.parametrize("program", INTERPRETER_TRUST)
def test_programs_of_the_code_interpreter_trust_the_authority(interpreter, program):
    output = run(interpreter, f"({INTERPRETER_TRUST[program]}) 2>&1")
    assert "k1" in output and "exit=" not in output, output


def test_the_users_own_variables_win(server):
    sandbox = Sandbox.create(envs={"SSL_CERT_FILE": "/own"})
    try:
        assert run(sandbox, "echo $SSL_CERT_FILE").strip() == "/own"
        assert run(sandbox, "echo $REQUESTS_CA_BUNDLE").strip() == "/etc/ssl/certs/ca-certificates.crt"
        assert sandbox.commands.run("echo $NODE_EXTRA_CA_CERTS", envs={"NODE_EXTRA_CA_CERTS": "/mine"}).stdout.strip() == "/mine"
        assert "BEGIN CERTIFICATE" in run(sandbox, "cat $NODE_EXTRA_CA_CERTS")
    finally:
        sandbox.kill()


def test_the_authority_survives_updates_of_the_bundle_and_a_start_from_files(server):
    sandbox = Sandbox.create(network={"rules": {API: rule(X_Api_Key="k1")}})
    try:
        run(sandbox, "sudo update-ca-certificates --fresh || update-ca-certificates --fresh")
        assert keys_of(sandbox) == ["k1"]
        own = "sudo sh -c 'echo > /etc/ssl/certs/ca-certificates.crt'"
        run(sandbox, own)
        server.call("POST", f"/sandboxes/{sandbox.sandbox_id}/pause", {"memory": False})
        sandbox.connect()
        assert keys_of(sandbox) == ["k1"]
    finally:
        sandbox.kill()
