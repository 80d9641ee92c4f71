"""The fake internet's TLS server: HTTP/1.1 and HTTP/2 on one port, for all names below `rules.example.test`, with one certificate.

It responds with what it has received, as JSON, so that tests see which headers a request had when it left the sandbox.
"""

import asyncio
import json
import ssl
import subprocess
import threading

import h2.config
import h2.connection
import h2.events

DOMAIN = "rules.example.test"
# Has a certificate that nobody trusts.
UNTRUSTED = f"untrusted.{DOMAIN}"


def make_certificates(directory):
    """Makes an authority and what it signs with the openssl program. Returns the authority's file."""
    def openssl(*words):
        subprocess.run(["openssl", *words], check=True, capture_output=True, cwd=directory)

    curve = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1", "-nodes", "-days", "2"]
    openssl("req", "-x509", *curve, "-subj", "/CN=Fake internet", "-keyout", "ca.key", "-out", "ca.pem")
    names = f"subjectAltName=DNS:{DOMAIN},DNS:*.{DOMAIN},DNS:*.deep.{DOMAIN}"
    openssl("req", "-x509", *curve, "-subj", "/CN=site", "-addext", names, "-addext", "basicConstraints=critical,CA:FALSE",
            "-CA", "ca.pem", "-CAkey", "ca.key", "-keyout", "site.key", "-out", "site.pem")
    openssl("req", "-x509", *curve, "-subj", "/CN=untrusted", "-addext", f"subjectAltName=DNS:{UNTRUSTED}",
            "-keyout", "untrusted.key", "-out", "untrusted.pem")
    return directory / "ca.pem"


def contexts(directory):
    def context(name):
        made = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        made.load_cert_chain(directory / f"{name}.pem", directory / f"{name}.key")
        made.set_alpn_protocols(["h2", "http/1.1"])
        return made

    site, untrusted = context("site"), context("untrusted")
    h1_only = context("site")
    h1_only.set_alpn_protocols(["http/1.1"])

    def choose(connection, name, _):
        if name == UNTRUSTED:
            connection.context = untrusted
        elif name and name.startswith("h1."):
            connection.context = h1_only

    site.sni_callback = choose
    return site


def report(version, path, headers, body, trailers=()):
    return json.dumps({"version": version, "path": path, "headers": headers, "length": len(body), "trailers": list(trailers)}).encode()


async def serve_h1(reader, writer):
    while head := await reader.readuntil(b"\r\n\r\n"):
        request, *lines = head.decode("latin-1").split("\r\n")[:-2]
        headers = [line.split(": ", 1) if ": " in line else [line.rstrip(":"), ""] for line in lines]
        lower = {name.lower(): value for name, value in headers}
        path = request.split(" ")[1]
        if lower.get("upgrade"):
            writer.write(b"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: echo\r\n\r\n")
            writer.write(json.dumps(headers).encode() + b"\n")
            while data := await reader.read(65536):
                writer.write(data)
                await writer.drain()
            return
        body, trailers = await h1_body(reader, lower)
        if path.startswith("/bytes/"):
            size = int(path.removeprefix("/bytes/"))
            writer.write(f"HTTP/1.1 200 OK\r\nContent-Length: {size}\r\n\r\n".encode())
            for _ in range(size // 65536):
                writer.write(b"x" * 65536)
                await writer.drain()
            continue
        data = report("1.1", path, headers, body, trailers)
        writer.write(b"HTTP/1.1 200 OK\r\nX-Seen: Yes\r\nContent-Length: %d\r\n\r\n" % len(data) + data)
        await writer.drain()
        # As a server with a short keep-alive does.
        if path == "/close":
            return


async def h1_body(reader, headers):
    if "chunked" not in headers.get("transfer-encoding", ""):
        return await reader.readexactly(int(headers.get("content-length", 0))), []
    body, trailers = bytearray(), []
    while size := int((await reader.readline()).split(b";")[0], 16):
        body += await reader.readexactly(size)
        await reader.readline()
    while (line := await reader.readline()) != b"\r\n":
        trailers.append(line.decode().strip())
    return body, trailers


async def serve_h2(reader, writer):
    connection = h2.connection.H2Connection(h2.config.H2Configuration(client_side=False))
    connection.initiate_connection()
    writer.write(connection.data_to_send())
    requests = {}
    while data := await reader.read(65536):
        for event in connection.receive_data(data):
            if isinstance(event, h2.events.RequestReceived):
                headers = [[name.decode(), value.decode()] for name, value in event.headers]
                requests[event.stream_id] = [headers, bytearray(), []]
            elif isinstance(event, h2.events.DataReceived):
                requests[event.stream_id][1] += event.data
                connection.acknowledge_received_data(event.flow_controlled_length, event.stream_id)
            elif isinstance(event, h2.events.TrailersReceived):
                requests[event.stream_id][2] = [name.decode() for name, _ in event.headers]
            elif isinstance(event, h2.events.StreamEnded):
                headers, body, trailers = requests.pop(event.stream_id)
                path = dict(headers)[":path"]
                response = report("2", path, headers, body, trailers)
                connection.send_headers(event.stream_id, [(":status", "200"), ("content-type", "application/grpc")])
                connection.send_data(event.stream_id, response)
                connection.send_headers(event.stream_id, [("grpc-status", "0")], end_stream=True)
        writer.write(connection.data_to_send())
        await writer.drain()


async def serve(reader, writer):
    try:
        is_h2 = writer.get_extra_info("ssl_object").selected_alpn_protocol() == "h2"
        await (serve_h2 if is_h2 else serve_h1)(reader, writer)
    except (asyncio.IncompleteReadError, ConnectionError, ssl.SSLError):
        pass
    finally:
        writer.close()


def start(directory, ports):
    """Serves in a thread of its own."""
    async def run():
        for port in ports:
            await asyncio.start_server(serve, ["0.0.0.0", "::"], port, ssl=contexts(directory), limit=1 << 20)
        ready.set()
        await asyncio.Event().wait()

    ready = threading.Event()
    threading.Thread(target=lambda: asyncio.run(run()), daemon=True).start()
    assert ready.wait(10)
