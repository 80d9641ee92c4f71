"""Compares responses of the server under test with `docs/openapi.yaml`.

`install` hooks into the HTTP client of the official SDK (httpx); `Server.call` reports its own
requests with `check`. Deviations are collected, because code under test may swallow exceptions;
`conftest.py` fails the test during which they came.
"""

import json
import pathlib
import re

import httpx
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

DOCUMENT = yaml.safe_load((pathlib.Path(__file__).parents[2] / "docs/openapi.yaml").read_text())
BASE = "urn:cofferdam:openapi"

deviations = []
"""Deviations since they were last looked at."""


def strict(schema):
    """Closes every object whose fields are listed: what the server sends must be in the document."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    closed = {name: strict(part) for name, part in schema.items()}
    if isinstance(closed.get("$ref"), str) and closed["$ref"].startswith("#"):
        closed["$ref"] = BASE + closed["$ref"]
    if closed.get("type") == "object" and "properties" in closed:
        closed.setdefault("additionalProperties", False)
    return closed


STRICT = strict(DOCUMENT)
REGISTRY = Registry().with_resource(BASE, Resource(contents=STRICT, specification=DRAFT202012))


def patterns():
    """Path patterns, those with fewer parameters first."""
    for path in sorted(STRICT["paths"], key=lambda path: path.count("{")):
        yield path, re.compile("".join("[^/]+" if part[:1] == "{" else re.escape(part)
                                       for part in re.split(r"(\{[^}]*\})", path)))


PATTERNS = list(patterns())


def resolve(part):
    while "$ref" in part:
        part = REGISTRY.resolver().lookup(part["$ref"]).contents
    return part


def operation(method, path):
    """The description of the operation that a request is for, or None."""
    for pattern, expression in PATTERNS:
        if expression.fullmatch(path) and method.lower() in STRICT["paths"][pattern]:
            return STRICT["paths"][pattern][method.lower()]
    return None


def problem(method, path, status, content_type, body):
    """What is wrong with a response, or None."""
    described = operation(method, path)
    if described is None:
        return None
    response = described["responses"].get(str(status)) or (status >= 400 and described["responses"].get("default"))
    if not response:
        return f"status {status} is not described"
    schema = resolve(response).get("content", {}).get("application/json", {}).get("schema")
    if schema is None:
        return None
    if not content_type.startswith("application/json"):
        return f"content type {content_type!r} instead of JSON"
    try:
        value = json.loads(body)
    except ValueError:
        return "the body is not JSON"
    errors = Draft202012Validator(schema, registry=REGISTRY).iter_errors(value)
    return "; ".join(f"{error.json_path}: {error.message}" for error in errors) or None


def check(method, url, headers, status, response_headers, body):
    """Compares one response; requests to sandboxes are left out."""
    if any(name.lower().startswith("e2b-sandbox-") for name in headers):
        return
    path = httpx.URL(url).raw_path.decode().split("?")[0]
    wrong = problem(method, path, status, response_headers.get("content-type", ""), body)
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
