"""The fake internet's servers: web servers at public, private and metadata addresses, a name server, and SOCKS5 proxies."""

import contextlib
import http.server
import pathlib
import socket
import socketserver
import ssl
import subprocess
import sys
import threading
import time

import secure_web
from fake_network import (
    BOXES, ECHO, HOST, METADATA, NAME, PRIVATE, PROXY, PROXY_PASSWORD, PROXY_USER, PUBLIC, PUBLIC6, REBINDING, RESOLVER, TLS_PROXY,
)


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


class TlsProxy(socketserver.BaseRequestHandler):
    """Takes TLS off, for a proxy that has none."""

    def handle(self):
        with contextlib.suppress(OSError):
            client = self.server.context.wrap_socket(self.request, server_side=True)
            proxy = socket.create_connection((PUBLIC, PROXY))
            threading.Thread(target=self.copy, args=(proxy, client), daemon=True).start()
            self.copy(client, proxy)

    @staticmethod
    def copy(source, sink):
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                sink.sendall(data)
        with contextlib.suppress(OSError):
            sink.shutdown(socket.SHUT_WR)


def start_proxies(directory):
    """One at a public address that wants a password, the same within TLS, and one at a private address."""
    resolv = directory / "resolv.conf"
    resolv.write_text(f"nameserver {RESOLVER}\n")
    # In this program's own mount namespace: proxies resolve names with the fake internet's name server.
    subprocess.run(["mount", "--bind", str(resolv), "/etc/resolv.conf"], check=True)
    user = ["-u", PROXY_USER, "-P", PROXY_PASSWORD]
    proxies = [
        subprocess.Popen(["microsocks", "-i", address, "-p", str(PROXY), *words], stderr=open(directory / f"proxy-{kind}.log", "wb"))
        for kind, address, words in [("public", PUBLIC, user), ("private", PRIVATE, [])]
    ]
    wrapped = socketserver.ThreadingTCPServer((PUBLIC, TLS_PROXY), TlsProxy)
    wrapped.daemon_threads = True
    wrapped.context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    wrapped.context.load_cert_chain(directory / "site.pem", directory / "site.key")
    threading.Thread(target=wrapped.serve_forever, daemon=True).start()
    for address in [PUBLIC, PRIVATE]:
        for _ in range(100):
            with contextlib.suppress(OSError):
                socket.create_connection((address, PROXY)).close()
                break
            time.sleep(0.05)
    return proxies


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
    proxies = start_proxies(pathlib.Path(sys.argv[1]))
    print("serving", flush=True)
    sys.stdin.read()
    for proxy in proxies:
        proxy.terminate()


if __name__ == "__main__":
    main()
