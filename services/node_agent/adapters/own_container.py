"""Which container this agent itself runs in, if it does."""

import re
from functools import cache
from pathlib import Path

_MINE = re.compile(r" \S*/containers/([0-9a-f]{64})/hostname /etc/hostname ")


@cache
def container_id() -> str | None:
    """Return the id that the engine of this agent's own container knows it by; None where it is in none."""
    return id_in(Path("/proc/self/mountinfo").read_text("utf-8"))


def id_in(mountinfo: str) -> str | None:
    """Return the id in the lines of a mountinfo: engines mount a container's host name from a folder named by it."""
    found = _MINE.search(mountinfo)
    return found[1] if found else None
