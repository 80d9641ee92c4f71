"""Recipes in `templates/`, built by our own CLI."""

import json
import urllib.request

from e2b import Sandbox


def test_httpbin_answers_as_soon_as_create_returns(interpreter_server):
    interpreter_server.build("httpbin")
    with Sandbox.create("httpbin") as sandbox:
        headers = {"E2b-Sandbox-Id": sandbox.sandbox_id, "E2b-Sandbox-Port": "8080"}
        request = urllib.request.Request(interpreter_server.url + "/anything?a=b", headers=headers)
        answer = json.load(urllib.request.urlopen(request, timeout=20))
        assert answer["args"] == {"a": "b"}
