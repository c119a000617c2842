"""Free ports on the loopback, kept in a file so that a restart finds its data under the same address."""

import fcntl
import json
import os
import random
import socket
import tempfile
from functools import cache
from pathlib import Path

LOOPBACK = "127.0.0.1"
#: The reason with which the stack's own receiver answers a GET: another program on its port would not.
TAKES_WEBHOOKS = "wherry takes webhooks here"
#: Below those of gangs on the machine's own network (20000 and up) and of outgoing connections (32768 and up on Linux).
_PORTS = (10_000, 20_000)
#: A file in which the byte of a port is locked by the process of this user that was given it.
_CLAIMS = Path(tempfile.gettempdir(), f"wherry-ports-{os.getuid()}")
_ours = set[int]()


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
    """Return a port that is free now, and that is given neither to an outgoing connection nor by this to anybody else.

    Raises:
        OSError: none was found.
    """
    for _ in range(1000):
        port = random.randrange(*_PORTS)  # noqa: S311 - for who claims nothing
        if port not in _ours and is_free(port) and claim(port):
            return port
    raise OSError(f"no port from {_PORTS[0]} to {_PORTS[1] - 1} of {LOOPBACK} is free")


def claim(port: int) -> bool:
    """Keep *port* from being given to other processes as long as this one lives; return False if another does so."""
    try:
        fcntl.lockf(_claims(), fcntl.LOCK_EX | fcntl.LOCK_NB, 1, port)
    except BlockingIOError:
        return False
    except OSError:
        pass  # without claims, ports of so many are seldom the same
    _ours.add(port)
    return True


@cache
def _claims() -> int:
    return os.open(_CLAIMS, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)


def kept_port(file: Path, name: str) -> int:
    """Return the port that *file* has for *name* if it is still free, else a new one, which is written there."""
    ports: dict[str, int] = json.loads(file.read_text()) if file.exists() else {}
    if name not in ports or not is_free(ports[name]):
        others = set(ports.values())  # which nobody may listen on yet
        while (port := free_port()) in others:
            continue
        ports[name] = port
        write_whole(file, json.dumps(ports, indent=2) + "\n")
    claim(ports[name])
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
