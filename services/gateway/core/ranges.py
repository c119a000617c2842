"""RFC 9110 ranges and conditions, RFC 6266 file names: what of a file goes out, and under which name."""

import mimetypes
import re
from dataclasses import dataclass

from shared.errors import WherryError

# 18 digits are more than any file has; of thousands Python makes no number.
_ONE_RANGE = re.compile(r"^bytes=(\d{0,18})-(\d{0,18})$")
#: Characters that stand for themselves in an RFC 8187 value.
_PLAIN = frozenset(b"ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789!#$&+-.^_`|~")


@dataclass(frozen=True, slots=True)
class Span:
    """Bytes *start* to *end* (not included) of *size*."""

    start: int
    end: int
    size: int

    @property
    def length(self) -> int:
        """Return how many bytes it has."""
        return self.end - self.start

    @property
    def is_whole(self) -> bool:
        """Return whether nothing is left out."""
        return self.length == self.size

    @property
    def content_range(self) -> str:
        """Return the Content-Range header."""
        return f"bytes {self.start}-{self.end - 1}/{self.size}"


def span(range_header: str | None, size: int) -> Span | None:
    """Return the part that is asked for, or None for all of it.

    Several ranges, other units and nonsense are answered with the whole, as RFC 9110 allows.

    Raises:
        WherryError: ``range_not_satisfiable``: the range begins behind the end.
    """
    match = _ONE_RANGE.match((range_header or "").replace(" ", ""))
    if match is None or match.groups() == ("", ""):
        return None
    first, last = match.groups()
    if first and last and int(first) > int(last):
        return None
    start = int(first) if first else max(0, size - int(last))
    end = min(size, int(last) + 1) if first and last else size
    if start >= end:
        raise WherryError("range_not_satisfiable", f"There are {size} bytes.")
    return Span(start, end, size)


def matches(condition: str | None, etag: str) -> bool:
    """Return whether an If-None-Match header names *etag* (with its quotes)."""
    if not condition:
        return False
    tags = [tag.strip().removeprefix("W/") for tag in condition.split(",")]
    return "*" in tags or etag in tags


def media_type(path: str) -> str:
    """Return the media type that the end of a file's name stands for."""
    # The name alone: of a path like ``data:…,`` the standard library takes what stands in it for the type.
    end = path.rsplit("/", 1)[-1].rsplit(":", 1)[-1]
    return mimetypes.guess_type(end)[0] or "application/octet-stream"


def attachment(name: str) -> str:
    """Return a Content-Disposition that saves under the last part of *name*, whatever its characters."""
    base = name.rsplit("/", 1)[-1] or "download"
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\%;' else "_" for char in base)
    if plain == base:
        return f'attachment; filename="{plain}"'
    encoded = "".join(chr(byte) if byte in _PLAIN else f"%{byte:02X}" for byte in base.encode(errors="replace"))
    return f"attachment; filename=\"{plain}\"; filename*=UTF-8''{encoded}"
