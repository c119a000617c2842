"""Reading time. Cores never do: shells read it here and pass it in."""

import time
from datetime import UTC, datetime


def utc_now() -> datetime:
    """Return the wall-clock time in UTC."""
    return datetime.now(UTC)


def monotonic() -> float:
    """Return seconds that never jump, for leases and limits."""
    return time.monotonic()


def boottime() -> float:
    """Return seconds that never jump and also pass while the machine is suspended, for leases."""
    return time.clock_gettime(getattr(time, "CLOCK_BOOTTIME", time.CLOCK_MONOTONIC))
