"""A server that tests run inside a sandbox to see a request as bytes, and to choose the response as bytes. It needs Python's standard library only.

Argument: port. A request's path is `/<base64 of the response>`; `%SEEN%` in the response stands for what was received, in hexadecimal, and
`%SIZE%` for the size of that. It prints `listening` once it listens.
"""

import base64
import socket
import sys
import threading


def receive(link):
    """A head and its body, as they came."""
    seen = b""
    while b"\r\n\r\n" not in seen:
        seen += link.recv(65536)
    head, _, body = seen.partition(b"\r\n\r\n")
    fields = {}
    for line in head.split(b"\r\n")[1:]:
        name, _, value = line.partition(b":")
        fields[name.strip().lower()] = value.strip()
    if fields.get(b"transfer-encoding") == b"chunked":
        # The last chunk, perhaps trailers, and an empty line.
        while b"\r\n0\r\n" not in b"\r\n" + body or not body.endswith(b"\r\n\r\n"):
            body += link.recv(65536)
    while len(body) < int(fields.get(b"content-length", 0)):
        body += link.recv(65536)
    return head + b"\r\n\r\n" + body


def serve(link):
    with link:
        seen = receive(link)
        path = seen.split(b" ")[1].lstrip(b"/").split(b"?")[0]
        response = base64.urlsafe_b64decode(path)
        link.sendall(response.replace(b"%SEEN%", seen.hex().encode()).replace(b"%SIZE%", b"%d" % (2 * len(seen))))
        if b" 101 " in response.split(b"\r\n")[0]:
            while data := link.recv(65536):
                link.sendall(data.upper())
            link.sendall(b"the end of what you sent")


server = socket.create_server(("127.0.0.1", int(sys.argv[1])), backlog=64)
print("listening", flush=True)
while True:
    threading.Thread(target=serve, args=(server.accept()[0],), daemon=True).start()
