"""Ask how the service in this container is; exit 0 only for a good answer.

The gateway says it itself (``/readyz``: it reaches storage, and MongoDB behind it). The others serve no HTTP: they are
well while they hold a connection to NATS. The broker drops who leaves its pings unanswered, so a service that hangs has
none after half a minute.
"""

import os
import sys
from pathlib import Path
from urllib.parse import urlsplit
from urllib.request import urlopen

TIMEOUT_S = 4
ESTABLISHED = "01"
NATS_PORT = 4222


def main() -> int:
    """Return the exit status."""
    if os.environ["SERVICE"] == "gateway":
        return 0 if _is_ready(f"http://127.0.0.1:{os.environ.get('WHERRY_PORT', '8080')}/readyz") else 1
    ports = {urlsplit(url.strip()).port or NATS_PORT for url in os.environ["WHERRY_NATS_URL"].split(",")}
    if any(has_connection(Path("/proc/net", table).read_text(), ports) for table in ("tcp", "tcp6")):
        return 0
    print("no connection to NATS")
    return 1


def has_connection(table: str, ports: set[int]) -> bool:
    """Whether *table* (the text of ``/proc/net/tcp``) has an established connection to one of *ports*."""
    rows = (line.split() for line in table.splitlines()[1:])
    return any(row[3] == ESTABLISHED and int(row[2].rpartition(":")[2], 16) in ports for row in rows)


def _is_ready(url: str) -> bool:
    try:
        with urlopen(url, timeout=TIMEOUT_S) as answer:  # noqa: S310 - always http to the loopback
            answer.read()
    except OSError as trouble:  # statuses of 400 and more are among them
        print(f"{url}: {trouble}")
        return False
    return True


if __name__ == "__main__":
    sys.exit(main())
