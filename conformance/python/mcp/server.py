"""An MCP server for tests of the gateway, over standard input and output, without any package. The first argument is what it does at its start."""

import json
import os
import sys
import threading
import time

kind = sys.argv[1]
if kind == "exit":
    sys.exit("no key: set TEST_KEY")
if kind == "hang":
    time.sleep(3600)

lock = threading.Lock()
cancelled = []
grown = False


def send(message):
    with lock:
        print(json.dumps({"jsonrpc": "2.0", **message}), flush=True)


def tools():
    names = ["echo", "slow", "crash", "stuck", "cancelled", "grow", "secret", f"only_{kind}"] + ["grown"] * grown
    return [{"name": name, "description": kind, "inputSchema": {"type": "object"}} for name in names]


def call(identity, name, arguments, token):
    global grown
    if name == "crash":
        print("this server crashes", file=sys.stderr, flush=True)
        os._exit(3)
    if name == "stuck":
        return
    if name == "slow":
        for step in range(3):
            send({"method": "notifications/progress", "params": {"progressToken": token, "progress": step + 1, "total": 3}})
            time.sleep(0.2)
    if name == "grow":
        grown = True
        send({"method": "notifications/tools/list_changed"})
    text = {
        "echo": f"{kind}: {arguments.get('text')}", "cancelled": json.dumps(cancelled), "secret": os.environ.get("TEST_KEY", ""),
    }.get(name, f"{name} of {kind}, process {os.getpid()}")
    send({"id": identity, "result": {"content": [{"type": "text", "text": text}]}})


for line in sys.stdin:
    message = json.loads(line)
    method, params = message.get("method"), message.get("params") or {}
    if method == "notifications/cancelled":
        cancelled.append(params["requestId"])
    if "id" not in message or method is None:
        continue
    if method == "initialize":
        capabilities = {"tools": {"listChanged": True}, "prompts": {}, "resources": {}}
        info = {"name": kind, "version": "1"}
        result = {"protocolVersion": params["protocolVersion"], "capabilities": capabilities, "serverInfo": info}
    elif method == "tools/list":
        result = {"tools": tools()}
    elif method == "prompts/list":
        result = {"prompts": [{"name": "greet"}]}
    elif method == "prompts/get":
        result = {"messages": [{"role": "user", "content": {"type": "text", "text": f"Greet as {kind}"}}]}
    elif method == "resources/list":
        result = {"resources": [{"uri": f"memo://{kind}/one", "name": "one"}]}
    elif method == "resources/templates/list":
        result = {"resourceTemplates": [{"uriTemplate": f"memo://{kind}/{{name}}", "name": "any"}]}
    elif method == "resources/read":
        result = {"contents": [{"uri": params["uri"], "text": f"{kind} read {params['uri']}"}]}
    elif method == "tools/call":
        token = (params.get("_meta") or {}).get("progressToken")
        words = (message["id"], params["name"], params.get("arguments") or {}, token)
        threading.Thread(target=call, args=words, daemon=True).start()
        continue
    elif method == "ping":
        result = {}
    else:
        send({"id": message["id"], "error": {"code": -32601, "message": method}})
        continue
    send({"id": message["id"], "result": result})
