"""Identity tokens (`iam.tokens`): services verify with an independent library which sandbox sends a request."""

import json

import jwt
import pytest
from e2b import Sandbox, SandboxException, Secret

from fake_network import BOXES, RESOLVER
from secure_web import DOMAIN
from server import Server

API = f"api.{DOMAIN}"
RULES = {API: [{"transform": {"headers": {"Authorization": "Bearer ${e2b.identity.tokens.cloud}"}}}]}
TOKENS = {"cloud": Secret.iam_token(audience="sts.example.test", token_type="JWT-SVID")}


@pytest.fixture(scope="module")
def boxes(world):
    server = Server("--dns", f"{RESOLVER}:53", "--domain", BOXES, "--egress-ca", str(world.authority))
    yield server
    server.stop()


def options(server):
    return {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}


def token_of(sandbox):
    """What the service receives."""
    seen = json.loads(sandbox.commands.run(f"curl --silent --max-time 20 https://{API}/").stdout)
    [header] = [value for name, value in seen["headers"] if name.lower() == "authorization"]
    return header.removeprefix("Bearer ")


def verified(server, token, audience="sts.example.test"):
    """Verifies a token as a service does: by what the issuer publishes."""
    status, headers, discovery = server.call("GET", "/.well-known/openid-configuration", headers={"X-API-Key": ""})
    assert status == 200 and "max-age=300" in headers["cache-control"]
    assert discovery["issuer"] == f"https://api.{BOXES}" and discovery["jwks_uri"].startswith(f"https://api.{BOXES}/")
    path = discovery["jwks_uri"].removeprefix(discovery["issuer"])
    status, headers, keys = server.call("GET", path, headers={"X-API-Key": ""})
    assert status == 200 and headers["access-control-allow-origin"] == "*"
    key = jwt.PyJWKSet.from_dict(keys)[jwt.get_unverified_header(token)["kid"]]
    wanted = {"require": ["iss", "sub", "aud", "exp", "iat", "nbf", "jti"]}
    algorithms = discovery["id_token_signing_alg_values_supported"]
    return jwt.decode(token, key.key, algorithms=algorithms, audience=audience, issuer=discovery["issuer"], options=wanted)


def test_a_service_verifies_who_sends_a_request(boxes):
    sandbox = Sandbox.create(iam={"tokens": TOKENS}, network={"rules": RULES}, **options(boxes))
    try:
        token = token_of(sandbox)
        claims = verified(boxes, token)
        assert claims["sandbox_id"] == sandbox.sandbox_id and claims["exp"] - claims["iat"] == 300
        names = ["team", claims["team_id"], "template", claims["template_id"], "sandbox", sandbox.sandbox_id]
        assert claims["sub"] == f"spiffe://api.{BOXES}/" + "/".join(names)
        with pytest.raises(jwt.InvalidAudienceError):
            verified(boxes, token, "other.example.test")
        head, body, signature = token.split(".")
        with pytest.raises(jwt.InvalidSignatureError):
            verified(boxes, ".".join([head, body, ("B" if signature[0] == "A" else "A") + signature[1:]]))
        # Nothing of it is inside.
        assert "eyJ" not in sandbox.commands.run("env; cat /proc/*/environ 2>/dev/null | tr '\\0' '\\n'").stdout
        assert "iam" not in boxes.call("GET", f"/sandboxes/{sandbox.sandbox_id}")[2]
        assert token_of(sandbox) == token, "a token is used again for a while"
        sandbox.pause()
        sandbox = Sandbox.connect(sandbox.sandbox_id, **options(boxes))
        resumed = verified(boxes, token_of(sandbox))
        assert resumed["execution_id"] != claims["execution_id"] and resumed["sub"] == claims["sub"]
        assert (boxes.data / "identity-keys.json").stat().st_mode & 0o777 == 0o600
        status, _, forked = boxes.call("POST", f"/sandboxes/{sandbox.sandbox_id}/fork", {"count": 1})
        assert status == 201, forked
        fork = Sandbox.connect(forked[0]["sandbox"]["sandboxID"], **options(boxes))
        try:
            assert verified(boxes, token_of(fork))["sandbox_id"] == fork.sandbox_id
        finally:
            fork.kill()
    finally:
        sandbox.kill()


def test_a_token_that_is_not_registered_is_not_sent(boxes):
    sandbox = Sandbox.create(network={"rules": RULES}, **options(boxes))
    try:
        answer = json.loads(sandbox.commands.run(f"curl --silent https://{API}/").stdout)
        assert answer["error"] == 'egress transform: identity token "cloud" not found'
    finally:
        sandbox.kill()


@pytest.mark.parametrize("tokens, message", [
    ({"a": {"audience": "x", "tokenType": "JWT"}}, 'iam.tokens.a.tokenType: only "JWT-SVID" is supported'),
    ({"a": {"audience": "", "tokenType": "JWT-SVID"}}, "iam.tokens.a.audience: audience is required"),
    ({"": {"audience": "x", "tokenType": "JWT-SVID"}}, "iam.tokens: token name must not be empty"),
    ({str(n): {"audience": "x", "tokenType": "JWT-SVID"} for n in range(6)}, "iam.tokens: too many tokens: 6 (max 5)"),
])
def test_invalid_tokens_are_refused(boxes, tokens, message):
    status, _, answer = boxes.call("POST", "/v2/sandboxes", {"templateID": "base", "iam": {"tokens": tokens}})
    assert (status, answer["message"]) == (400, message)


def test_a_server_without_a_public_name_has_no_tokens(server):
    with pytest.raises(SandboxException, match="neither --domain nor --public-url"):
        Sandbox.create(iam={"tokens": TOKENS})
    assert server.call("GET", "/.well-known/jwks.json")[0] == 404
