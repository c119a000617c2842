"""The address under which the controller, and so probably other nodes, reach this machine."""

import errno
import socket

from shared.errors import WherryError
from shared.fleet import Wiring
from shared.states import EndReason

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


def check_ports(wiring: Wiring | None) -> None:
    """Return if the ports that a member is to have on this machine are free: nobody but wherry keeps away from them.

    Raises:
        WherryError: ``runtime_error``: one is taken. The gang's next round has others.
    """
    if wiring is None or wiring.network != "host":
        return
    me = wiring.peers[wiring.rank]
    for port in range(me.port, me.port + me.ports):
        try:
            with socket.create_server((me.host, port), family=socket.AF_INET6 if ":" in me.host else socket.AF_INET):
                pass
        except OSError as error:
            if error.errno == errno.EADDRINUSE:  # an agent in a container has not the address, and cannot know
                message = f"Port {port} of this machine, which the member is to have, is taken by something else."
                raise WherryError(EndReason.RUNTIME_ERROR, message, retryable=True) from error


def _first_server(url: str) -> tuple[str, int]:
    place = url.partition(",")[0].rpartition("//")[2].partition("/")[0].rpartition("@")[2].strip()
    host, _, port = place.rpartition(":")
    if not host or not port.isdigit() or port.startswith("["):
        host, port = place, ""
    return host.strip("[]"), int(port or _NATS_PORT)
