"""Compares responses of the server under test with `docs/openapi.yaml` and `docs/envd-openapi.yaml`.

`install` hooks into the HTTP client of the official SDK (httpx); `Server.call` reports its own
requests with `check`. Deviations are collected, because code under test may swallow exceptions;
`conftest.py` fails the test during which they came. Run as a program, it compares what the
JavaScript clients received (`js/recording.mjs`).
"""

import json
import pathlib
import re
import sys
from collections import Counter

import httpx
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENTS = pathlib.Path(__file__).parents[2] / "docs"
ENVD_PORT = "49983"

deviations = []
"""Deviations since they were last looked at."""

compared = Counter()
"""How many responses of described operations were compared, by document."""


class Contract:
    """What an OpenAPI document says of the responses of its operations."""

    def __init__(self, name):
        self.base = f"urn:cofferdam:{name}"
        self.document = self.closed(yaml.safe_load((DOCUMENTS / name).read_text()))
        resource = Resource(contents=self.document, specification=DRAFT202012)
        self.registry = Registry().with_resource(self.base, resource)
        # Those with fewer parameters first: `/sandboxes/metrics` is no sandbox.
        paths = sorted(self.document["paths"], key=lambda path: path.count("{"))
        self.patterns = [(expression(path), self.document["paths"][path]) for path in paths]

    def closed(self, schema):
        """Closes every object whose fields are listed: what is sent must be in the document."""
        if isinstance(schema, list):
            return [self.closed(part) for part in schema]
        if not isinstance(schema, dict):
            return schema
        closed = {name: self.closed(part) for name, part in schema.items()}
        if isinstance(closed.get("$ref"), str) and closed["$ref"].startswith("#"):
            closed["$ref"] = self.base + closed["$ref"]
        if closed.get("type") == "object" and "properties" in closed:
            closed.setdefault("additionalProperties", False)
        return closed

    def resolve(self, part):
        while "$ref" in part:
            part = self.registry.resolver().lookup(part["$ref"]).contents
        return part

    def operation(self, method, path):
        """The description of the operation that a request is for, or None."""
        for pattern, item in self.patterns:
            if pattern.fullmatch(path) and method.lower() in item:
                return item[method.lower()]
        return None

    def problem(self, method, path, status, content_type, body):
        """What is wrong with a response, or None."""
        described = self.operation(method, path)
        if described is None:
            return None
        responses = described["responses"]
        response = responses.get(str(status)) or (status >= 400 and responses.get("default"))
        if not response:
            return f"status {status} is not described"
        schema = self.resolve(response).get("content", {}).get("application/json", {}).get("schema")
        if schema is None:
            return None
        if not content_type.startswith("application/json"):
            return f"content type {content_type!r} instead of JSON"
        try:
            value = json.loads(body)
        except ValueError:
            return "the body is not JSON"
        errors = Draft202012Validator(schema, registry=self.registry).iter_errors(value)
        return "; ".join(f"{error.json_path}: {error.message}" for error in errors) or None


def expression(path):
    """A regular expression for the paths that a pattern with parameters in braces means."""
    parts = re.split(r"(\{[^}]*\})", path)
    return re.compile("".join("[^/]+" if part[:1] == "{" else re.escape(part) for part in parts))


API = Contract("openapi.yaml")
ENVD = Contract("envd-openapi.yaml")


def check(method, url, headers, status, response_headers, body):
    """Compares one response, of the API or of a sandbox's envd."""
    headers = {name.lower(): value for name, value in headers.items()}
    to_sandbox = any(name.startswith("e2b-sandbox-") for name in headers)
    if re.match(r"\d+-", headers.get("host", "")):
        return
    if to_sandbox and headers.get("e2b-sandbox-port") != ENVD_PORT:
        return
    path = httpx.URL(url).raw_path.decode().split("?")[0]
    contract = ENVD if to_sandbox else API
    if contract.operation(method, path):
        compared["envd" if to_sandbox else "api"] += 1
    wrong = contract.problem(method, path, status, response_headers.get("content-type", ""), body)
    if wrong:
        deviations.append(f"{method} {path} -> {status}: {wrong}")


def install():
    """Has every response that httpx receives compared."""
    send, send_async = httpx.Client.send, httpx.AsyncClient.send

    def checked(self, request, **options):
        response = send(self, request, **options)
        compare(request, response, options)
        return response

    async def checked_async(self, request, **options):
        response = await send_async(self, request, **options)
        compare(request, response, options)
        return response

    def compare(request, response, options):
        if not options.get("stream") and request.url.host in ("127.0.0.1", "localhost"):
            body = response.content
            check(request.method, str(request.url), request.headers, response.status_code, response.headers, body)

    httpx.Client.send, httpx.AsyncClient.send = checked, checked_async


def main(recorded):
    """Compares the responses in a file, of which each line is one. Ends with 1 if any deviates."""
    lines = pathlib.Path(recorded).read_text().splitlines()
    for line in lines:
        seen = json.loads(line)
        content_type = {"content-type": seen["contentType"]}
        check(seen["method"], seen["url"], seen["headers"], seen["status"], content_type, seen["body"])
    print(f"{len(lines)} responses, {compared.total()} of them described: {dict(compared)}")
    for deviation in sorted(set(deviations)):
        print(deviation, file=sys.stderr)
    if not compared["api"] or not compared["envd"]:
        sys.exit("nothing was compared: recording does not reach the clients any more")
    sys.exit(1 if deviations else 0)


if __name__ == "__main__":
    main(sys.argv[1])
