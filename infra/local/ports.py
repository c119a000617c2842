"""Free ports on the loopback, kept in a file so that a restart finds its data under the same address."""

import json
import os
import random
import socket
from pathlib import Path

LOOPBACK = "127.0.0.1"
#: The reason with which the stack's own receiver answers a GET: another program on its port would not.
TAKES_WEBHOOKS = "wherry takes webhooks here"
#: Below those of gangs on the machine's own network (20000 and up) and of outgoing connections (32768 and up on Linux).
_PORTS = (10_000, 20_000)


def is_free(port: int) -> bool:
    """Whether nothing listens on *port* of the loopback."""
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
        return True


def free_port() -> int:
    """Return a port that is free now, and that no outgoing connection is given before it is used.

    Raises:
        OSError: none was found.
    """
    for _ in range(1000):
        if is_free(port := random.randrange(*_PORTS)):  # noqa: S311 - lest two that look at the same time find the same
            return port
    raise OSError(f"no port from {_PORTS[0]} to {_PORTS[1] - 1} of {LOOPBACK} is free")


def kept_port(file: Path, name: str) -> int:
    """Return the port that *file* has for *name* if it is still free, else a new one, which is written there."""
    ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    if name not in ports or not is_free(ports[name]):
        others = set(ports.values())  # which nobody may listen on yet
        while (port := free_port()) in others:
            continue
        ports[name] = port
        write_whole(file, json.dumps(ports, indent=2) + "\n")
    return ports[name]


def write_whole(file: Path, text: str, mode: int = 0o644) -> None:
    """Write *file* so that a reader sees the old text or the new, and nobody but *mode* allows sees either."""
    file.parent.mkdir(parents=True, exist_ok=True)
    draft = file.with_name(f".{file.name}.{os.getpid()}")
    draft.unlink(missing_ok=True)
    handle = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    with os.fdopen(handle, "w") as out:
        out.write(text)
        out.flush()
        os.fsync(out.fileno())
    draft.replace(file)
