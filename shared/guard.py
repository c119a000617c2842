"""Where our own calls may go: public addresses, by https, unless the operator names the place."""

from collections.abc import Collection
from ipaddress import IPv4Address, IPv6Address, ip_address, ip_network

from yarl import URL

HTTPS_PORTS = frozenset({443, 8443})

_V4 = tuple(
    ip_network(block)
    for block in (
        "0.0.0.0/8",  # this network
        "10.0.0.0/8",  # private
        "100.64.0.0/10",  # carrier-grade NAT
        "127.0.0.0/8",  # loopback
        "169.254.0.0/16",  # link-local, cloud metadata
        "172.16.0.0/12",  # private
        "192.0.0.0/24",  # protocol assignments
        "192.0.2.0/24",  # documentation
        "192.31.196.0/24",  # AS112
        "192.52.193.0/24",  # AMT
        "192.88.99.0/24",  # 6to4 relays
        "192.168.0.0/16",  # private
        "192.175.48.0/24",  # AS112
        "198.18.0.0/15",  # benchmarking
        "198.51.100.0/24",  # documentation
        "203.0.113.0/24",  # documentation
        "224.0.0.0/4",  # multicast
        "240.0.0.0/4",  # reserved, broadcast
        "168.63.129.16/32",  # a cloud's wire server
    )
)
#: Only global unicast is public at all, which leaves out mapped, compatible and NAT64 addresses; these parts of it are
#: not, or hold an IPv4 address that would have to be judged.
_V6_GLOBAL = ip_network("2000::/3")
_V6 = tuple(
    ip_network(block)
    for block in (
        "2001::/23",  # protocol assignments, Teredo
        "2001:db8::/32",  # documentation
        "2002::/16",  # 6to4
        "2620:4f:8000::/48",  # AS112
        "3fff::/20",  # documentation
    )
)


def is_public(address: str) -> bool:
    """Return whether *address* (as text) is one that anybody on the internet could reach."""
    try:
        ip = ip_address(address)
    except ValueError:
        return False
    match ip:
        case IPv4Address():
            return not any(ip in block for block in _V4)
        case IPv6Address():
            return ip.scope_id is None and ip in _V6_GLOBAL and not any(ip in block for block in _V6)


def places(listed: str) -> frozenset[str]:
    """Return the places (``host:port``) of a setting that names them with commas between."""
    return frozenset(place.strip() for place in listed.split(",") if place.strip())


def is_named(host: str, port: int, allowed: Collection[str]) -> bool:
    """Return whether the operator has named *host* and *port*; http and private addresses are then fine."""
    return f"{_bare(host)}:{port}" in {f"{_bare(name)}:{number}" for name, _, number in map(_cut, allowed)}


def url_refusal(url: str, allowed: Collection[str]) -> str | None:
    """Return why *url* may not be called, or None. It is read as the HTTP client reads it.

    A name's addresses are judged when they are dialled, see `shared.outbound`.
    """
    try:
        parsed = URL(url)
        host, port = parsed.host or "", parsed.port or 0
    except ValueError:
        return "the address is no URL"
    if parsed.user is not None or parsed.password is not None:
        return "the address holds a user or a password"
    if parsed.scheme in ("http", "https") and is_named(host, port, allowed):
        return None
    return refusal(parsed.scheme, host, port)


def refusal(scheme: str, host: str, port: int) -> str | None:
    """Return why a place that nobody has named may not be called, or None.

    A host given as an address is judged here; a name's addresses are judged when they are dialled.
    """
    if not host:
        return "the address names no host"
    if scheme != "https":
        return "only https is allowed"
    if port not in HTTPS_PORTS:
        return f"port {port} is not allowed, only {', '.join(map(str, sorted(HTTPS_PORTS)))}"
    if _is_address(host) and not is_public(_bare(host)):
        return f"{host} is not a public address"
    return None


def _is_address(host: str) -> bool:
    try:
        ip_address(_bare(host))
    except ValueError:
        return False
    return True


def _cut(place: str) -> tuple[str, str, str]:
    return place.strip().rpartition(":")


def _bare(host: str) -> str:
    return host.strip("[]").rstrip(".").lower()
