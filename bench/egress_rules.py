"""What a header rule adds to the time of a request, at 200 requests a second, in the fake network of conformance/network.

    unshare --net target/conformance/venv/bin/python bench/egress_rules.py

with the variables that `cargo xtask conformance` gives its tests; COFFERDAM_BIN names the server that is measured. The same program asks
a host with a rule, one without in the same sandbox, and one from a sandbox without rules, in turns. Prints rows for docs/performance.md.
"""

import json
import pathlib
import statistics
import sys

root = pathlib.Path(__file__).resolve().parent.parent
sys.path[:0] = [str(root / "conformance/python"), str(root / "conformance/network")]

from e2b import Sandbox  # noqa: E402
from fake_network import RESOLVER, World  # noqa: E402
from secure_web import DOMAIN  # noqa: E402
from server import Server  # noqa: E402

ROUNDS, SECONDS, RATE, CONNECTIONS = 5, 4, 200, 4
# Each of the connections has a thread that sends its requests at fixed moments, whatever earlier ones took.
CLIENT = f"""
import http.client, json, ssl, sys, threading, time
context = ssl._create_unverified_context()
times = []
def ask(number):
    client = http.client.HTTPSConnection(sys.argv[1], context=context)
    client.request("GET", "/"); client.getresponse().read()
    begun = time.perf_counter()
    for turn in range({SECONDS * RATE // CONNECTIONS}):
        at = begun + (turn * {CONNECTIONS} + number) / {RATE}
        time.sleep(max(0, at - time.perf_counter()))
        sent = time.perf_counter()
        client.request("GET", "/"); client.getresponse().read()
        times.append((time.perf_counter() - sent) * 1000)
threads = [threading.Thread(target=ask, args=(number,)) for number in range({CONNECTIONS})]
for thread in threads: thread.start()
for thread in threads: thread.join()
print(json.dumps(times))
"""


def main():
    world = World()
    server = Server("--dns", f"{RESOLVER}:53", "--egress-ca", str(world.authority))
    options = {"api_key": server.key, "api_url": server.url, "sandbox_url": server.url}
    rules = {f"api.{DOMAIN}": [{"transform": {"headers": {"X-Api-Key": "k"}}}]}
    try:
        ruled, plain = Sandbox.create(network={"rules": rules}, **options), Sandbox.create(**options)
        cases = {"with a rule": (ruled, "api"), "without, in the same sandbox": (ruled, "other"),
                 "of a sandbox without rules": (plain, "other")}
        times = {case: [] for case in cases}
        for sandbox in (ruled, plain):
            sandbox.files.write("/tmp/client.py", CLIENT)
        for _ in range(ROUNDS):
            for case, (sandbox, host) in cases.items():
                times[case] += json.loads(sandbox.commands.run(f"python3 /tmp/client.py {host}.{DOMAIN}").stdout)
        for case, took in times.items():
            took.sort()
            print(f"| request {case} | {statistics.median(took):.2f} ms | {took[len(took) * 99 // 100]:.2f} | {len(took)} |")
        for sandbox in (ruled, plain):
            sandbox.kill()
    finally:
        server.stop()
        world.close()


main()
