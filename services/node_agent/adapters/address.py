"""The address under which the controller, and so probably other nodes, reach this machine."""

import socket

_NATS_PORT = 4222


def address_towards(url: str) -> str:
    """Return this machine's own end of the way to the first server of *url*; empty where there is none."""
    host, port = _first_server(url)
    try:
        for family, kind, _, _, there in socket.getaddrinfo(host, port, type=socket.SOCK_DGRAM):
            with socket.socket(family, kind) as probe:
                probe.connect(there)  # sends nothing: it only asks which way it would go
                return str(probe.getsockname()[0])
    except OSError:
        return ""
    return ""


def _first_server(url: str) -> tuple[str, int]:
    place = url.split(",")[0].rpartition("//")[2].partition("/")[0].rpartition("@")[2].strip()
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or port.startswith("["):
        host, port = place, ""
    return host.strip("[]"), int(port or _NATS_PORT)
