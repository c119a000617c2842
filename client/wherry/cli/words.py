"""Numbers and times as people say them, and text that cannot take over their terminal. Pure."""

import re
from datetime import UTC, datetime

from client.wherry.models import TERMINAL

_CONTROL = re.compile(r"\x1b\[[0-9;]*m|[\x00-\x08\x0b-\x1f\x7f-\x9f]|\x1b")

STATE_STYLES = {
    "queued": "yellow",
    "placed": "cyan",
    "starting": "cyan",
    "running": "blue",
    "finishing": "blue",
    "succeeded": "green",
    "failed": "red",
    "timed_out": "red",
    "cancelled": "magenta",
}


def size(count: float) -> str:
    """Return bytes in the largest binary unit that leaves a number of at least 1."""
    for unit in ("B", "KiB", "MiB", "GiB", "TiB"):
        if abs(count) < 1024 or unit == "TiB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    raise AssertionError


def duration(seconds: float) -> str:
    """Return a span of time in its two largest units."""
    whole = max(0, round(seconds))
    if whole < 60:
        return f"{whole} s"
    if whole < 3600:
        return f"{whole // 60} min {whole % 60:02d} s"
    if whole < 86400:
        return f"{whole // 3600} h {whole % 3600 // 60:02d} min"
    return f"{whole // 86400} d {whole % 86400 // 3600:02d} h"


def ago(moment: datetime | None, now: datetime) -> str:
    """Return how long ago *moment* was; nothing for None."""
    if moment is None:
        return ""
    seconds = (now - (moment if moment.tzinfo else moment.replace(tzinfo=UTC))).total_seconds()
    return "now" if seconds < 1 else f"{duration(seconds)} ago"


def between(start: datetime | None, end: datetime | None) -> str:
    """Return the time from *start* to *end*; nothing where either is unknown."""
    return duration((end - start).total_seconds()) if start and end else ""


def plural(count: int, word: str) -> str:
    """Return a count with its word."""
    return f"{count} {word}" if count == 1 else f"{count} {word}s"


def harmless(text: str) -> str:
    """Return *text* without what moves a cursor or renames a window; colours stay."""
    return _CONTROL.sub(lambda match: match[0] if match[0].endswith("m") and len(match[0]) > 1 else "", text)


def plain(text: str) -> str:
    """Return *text* without any control character, for tables."""
    return _CONTROL.sub("", text)


def cancelled_note(job_id: str, state: str) -> str:
    """Return what a cancel did to a job that was in *state*."""
    if state in TERMINAL:
        return f"job {job_id} had ended already: {state}"
    return f"job {job_id} is told to stop; see `wherry show {job_id}`"
