"""A web server that tests run inside a sandbox and call from outside. It needs Python's standard library only.

Arguments: address and port. It prints `listening` once it listens.
"""

import base64
import hashlib
import http.server
import json
import socket
import sys
import threading
import time

STEP = threading.Semaphore(0)
LOST = threading.Event()
BLOCK = bytes(range(256)) * 4096


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *_):
        pass

    def answer(self, body, status=200):
        body = body if isinstance(body, bytes) else json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def body(self):
        if self.headers.get("Transfer-Encoding") != "chunked":
            yield self.rfile.read(int(self.headers.get("Content-Length", 0)))
            return
        while size := int(self.rfile.readline().split(b";")[0], 16):
            yield self.rfile.read(size)
            self.rfile.readline()
        self.rfile.readline()

    def do_GET(self):
        path = self.path.split("?")[0]
        if path == "/echo":
            headers = {name.lower(): value for name, value in self.headers.items()}
            self.answer({"path": self.path, "headers": headers, "method": self.command})
        elif path == "/big":
            self.send_response(200)
            self.send_header("Content-Length", str(100 * len(BLOCK)))
            self.end_headers()
            for _ in range(100):
                self.wfile.write(BLOCK)
        elif path == "/step":
            STEP.release()
            self.answer({})
        elif path == "/events":
            self.events()
        elif path == "/cut":
            # Announces more bytes than it sends.
            self.send_response(200)
            self.send_header("Content-Length", "1000")
            self.end_headers()
            self.wfile.write(b"half")
            self.close_connection = True
        elif path == "/endless":
            self.endless()
        elif path == "/lost":
            self.answer({"lost": LOST.wait(10)})
        elif path == "/socket":
            self.websocket()
        else:
            self.answer({"message": "nothing here"}, 404)

    def do_POST(self):
        digest, size = hashlib.sha256(), 0
        for piece in self.body():
            digest.update(piece)
            size += len(piece)
        chunked = self.headers.get("Transfer-Encoding") == "chunked"
        self.answer({"size": size, "digest": digest.hexdigest(), "chunked": chunked}, 201)

    def events(self):
        """Sends each event only after a `/step`, so that a client notices if an event is held back until the next one."""
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        for number in range(3):
            STEP.acquire()
            event = f"data: {number}\n\n".encode()
            self.wfile.write(b"%x\r\n%s\r\n" % (len(event), event))
        self.wfile.write(b"0\r\n\r\n")

    def endless(self):
        self.send_response(200)
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        try:
            while True:
                self.wfile.write(b"4\r\ntick\r\n")
                time.sleep(0.02)
        except OSError:
            LOST.set()

    def websocket(self):
        magic = self.headers["Sec-WebSocket-Key"] + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"
        self.send_response(101)
        self.send_header("Upgrade", "websocket")
        self.send_header("Connection", "Upgrade")
        self.send_header("Sec-WebSocket-Accept", base64.b64encode(hashlib.sha1(magic.encode()).digest()).decode())
        self.end_headers()
        self.close_connection = True
        while True:
            opcode, payload = read_frame(self.rfile)
            if opcode == 8:
                self.wfile.write(frame(8, payload))
                return
            self.wfile.write(frame(opcode, payload[::-1]))


def frame(opcode, payload, mask=b""):
    size = len(payload)
    head = bytes([0x80 | opcode])
    bit = 0x80 if mask else 0
    if size < 126:
        head += bytes([bit | size])
    elif size < 1 << 16:
        head += bytes([bit | 126]) + size.to_bytes(2, "big")
    else:
        head += bytes([bit | 127]) + size.to_bytes(8, "big")
    return head + mask + (masked(payload, mask) if mask else payload)


def masked(payload, mask):
    pad = (mask * (len(payload) // 4 + 1))[: len(payload)]
    return (int.from_bytes(payload, "big") ^ int.from_bytes(pad, "big")).to_bytes(len(payload), "big")


def read_frame(stream):
    first, second = stream.read(2)
    size = second & 0x7F
    if size > 125:
        size = int.from_bytes(stream.read(2 if size == 126 else 8), "big")
    mask = stream.read(4) if second & 0x80 else b""
    payload = stream.read(size)
    return first & 0x0F, masked(payload, mask) if mask else payload


class Server(http.server.ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128


if __name__ == "__main__":
    address, port = sys.argv[1], int(sys.argv[2])
    Server.address_family = socket.AF_INET6 if ":" in address else socket.AF_INET
    server = Server((address, port), Handler)
    print("listening", flush=True)
    server.serve_forever()
