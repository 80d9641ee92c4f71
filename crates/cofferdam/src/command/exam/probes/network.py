"""What the network reaches: the host's services, clouds' metadata, private networks, neighbours."""

import socket


def connects(address, port, timeout=3):
    """Returns a text if something at the address says the planted text."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as stream:
        stream.settimeout(timeout)
        stream.connect((address, port))
        stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
        try:
            content = stream.recv(4096)
        except OSError:
            content = b""
        return f"{address}:{port} answered" if PLANTED["text"].encode() in content else None


ADDRESSES = ["127.0.0.1", "0.0.0.0", "::1", "::ffff:127.0.0.1", "169.254.0.22", "169.254.0.21", "10.0.2.2", "192.168.0.1", "172.17.0.1"]
for address_ in ADDRESSES:

    def attack(address=address_):
        return connects(address, PLANTED["port"])

    attack.__name__ = "host_service_at_" + address_.replace(".", "_").replace(":", "_")
    case("network", f"reaches the planted service of the host at {address_}", "READ")(attack)


@case("network", "reaches the planted service at the host's own addresses", "READ")
def host_addresses():
    return first([lambda address=address: connects(address, PLANTED["port"]) for address in PLANTED["addresses"]])


@case("network", "reaches the planted service under names of the host", "READ")
def host_names():
    names = ["host.docker.internal", "localhost.", PLANTED["hostname"], "localtest.me", "gateway.docker.internal"]

    def attempt(name):
        for *_, address in socket.getaddrinfo(name, PLANTED["port"], type=socket.SOCK_STREAM):
            got = connects(address[0], PLANTED["port"])
            if got:
                return got
        return None

    return first([lambda name=name: attempt(name) for name in names])


METADATA = {"cloud": "169.254.169.254", "aws_ipv6": "fd00:ec2::254", "alibaba": "100.100.100.200", "oracle": "192.0.0.192", "ecs": "169.254.170.2"}
for name_, address_ in METADATA.items():

    def attack(address=address_):
        family = socket.AF_INET6 if ":" in address else socket.AF_INET
        with socket.socket(family, socket.SOCK_STREAM) as stream:
            stream.settimeout(3)
            stream.connect((address, 80))
            stream.sendall(b"GET / HTTP/1.0\r\n\r\n")
            return f"{address} answered" if stream.recv(1) else None

    attack.__name__ = f"metadata_{name_}"
    case("network", f"reaches the metadata service of a cloud at {address_}", "READ")(attack)


@case("network", "reaches the neighbour sandbox's service at addresses that sandboxes might have", "READ")
def neighbour():
    return first([lambda address=address: connects(address, PLANTED["neighbour_port"], 1) for address in ["127.0.0.1", "169.254.0.21", "169.254.0.22", *PLANTED["addresses"]]])


@case("network", "sees interfaces of the host", "LEAK")
def interfaces():
    others = [name for _, name in socket.if_nameindex() if name not in ("lo", "eth0", "tap0")]
    return f"{others}" if others else None


@case("network", "asks envd for what is the control plane's, from inside", "ESCAPE")
def envd_from_inside():
    body = b'{"accessToken":"exam","envVars":{"EXAM":"1"}}'
    head = b"POST /init HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: %d\r\nConnection: close\r\n\r\n" % len(body)
    with socket.create_connection(("127.0.0.1", 49983), timeout=5) as stream:
        stream.sendall(head + body)
        status = stream.recv(64).split(b" ")[1:2]
    return None if status in ([b"401"], [b"403"], [b"404"]) else f"envd responded {status}"


@case("network", "listens on the ports that the server redirects to", "STALL")
def redirect_ports():
    if PLANTED["own_kernel"]:
        raise Skip("the server does not listen in a guest")
    with socket.socket() as stream:
        stream.bind(("127.0.0.1", 15001))
    return "the port was free"
