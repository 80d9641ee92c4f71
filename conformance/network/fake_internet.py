"""The fake internet's servers: web servers at public, private and metadata addresses, and a name server."""

import contextlib
import http.server
import pathlib
import socket
import socketserver
import subprocess
import sys
import threading

import secure_web
from fake_network import BOXES, ECHO, HOST, METADATA, NAME, PRIVATE, PUBLIC, PUBLIC6, REBINDING, RESOLVER


def ip(*words):
    subprocess.run(["ip", *words], check=True)


class Page(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        body = f"hello from {self.connection.getsockname()[0]} host {self.headers.get('host')}\n".encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_):
        pass


class Web(http.server.ThreadingHTTPServer):
    address_family = socket.AF_INET6

    def server_bind(self):
        self.socket.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        super().server_bind()


class Echo(socketserver.BaseRequestHandler):
    def handle(self):
        with contextlib.suppress(ConnectionError):
            while data := self.request.recv(100):
                self.request.sendall(data)


def answer(question):
    end = question.index(b"\0", 12) + 5
    labels, at = [], 12
    while question[at]:
        labels.append(question[at + 1 : at + 1 + question[at]].decode())
        at += 1 + question[at]
    name = ".".join(labels).lower()
    kind = int.from_bytes(question[end - 4 : end - 2], "big")
    address = {NAME: PUBLIC, REBINDING: METADATA, f"rebinding.{secure_web.DOMAIN}": METADATA}.get(name)
    if name.endswith(f".{BOXES}"):
        address = HOST
    if address is None and name.endswith(secure_web.DOMAIN) and not name.startswith("nowhere."):
        address = PUBLIC
    if address is None or kind != 1:
        code = 0 if address else 3
        return question[:2] + bytes([0x81, 0x80 | code]) + question[4:6] + bytes(6) + question[12:end]
    record = b"\xc0\x0c\0\x01\0\x01\0\0\0\x05\0\x04" + socket.inet_aton(address)
    return question[:2] + b"\x81\x80" + question[4:6] + b"\0\x01" + bytes(4) + question[12:end] + record


def names(server):
    while True:
        question, client = server.recvfrom(4096)
        server.sendto(answer(question), client)


def main():
    print("namespace", flush=True)
    sys.stdin.readline()
    ip("link", "set", "lo", "up")
    ip("addr", "add", "203.0.113.2/24", "dev", "i0")
    ip("addr", "add", "2001:db8::2/64", "dev", "i0", "nodad")
    for address in [PUBLIC, RESOLVER, PRIVATE, METADATA]:
        ip("addr", "add", f"{address}/32", "dev", "lo")
    ip("addr", "add", f"{PUBLIC6}/128", "dev", "lo", "nodad")
    ip("link", "set", "i0", "up")
    for port in [80, 8080]:
        threading.Thread(target=Web(("::", port), Page).serve_forever, daemon=True).start()
    secure_web.start(pathlib.Path(sys.argv[1]), [443, 8443])
    echo = socketserver.ThreadingTCPServer((PUBLIC, ECHO), Echo)
    threading.Thread(target=echo.serve_forever, daemon=True).start()
    server = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
    server.bind((RESOLVER, 53))
    threading.Thread(target=names, args=(server,), daemon=True).start()
    print("serving", flush=True)
    threading.Event().wait()


if __name__ == "__main__":
    main()
