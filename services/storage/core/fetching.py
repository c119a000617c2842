"""Fetching from the web, decided: what an answer means, what a file is called, and when to try again."""

import re
from dataclasses import dataclass
from enum import Enum

from shared.errors import WherryError
from shared.states import EndReason

#: Answers after which the same question may be answered otherwise.
_PASSING = frozenset({408, 421, 425, 429, 500, 502, 503, 504})
_ABSENT = frozenset({401, 403, 404, 410, 451})
#: Tries without a byte between them, and seconds before the next (doubled each time).
TRIES, PAUSE_S = 6, 0.5
NAME_BYTES_MAX = 200
_CONTENT_RANGE = re.compile(r"^bytes ([0-9]{1,18})-")
_MEDIA_TYPE = re.compile(r"^[A-Za-z0-9!#$&^_.+-]{1,64}/[A-Za-z0-9!#$&^_.+-]{1,64}")


class FetchBroke(Exception):
    """The call broke or was answered with something that passes: try again."""


@dataclass(frozen=True, slots=True)
class Head:
    """The head of an answer. `validator` names this very version of the file, for going on with it."""

    status: int
    reason: str
    length: int | None
    content_range: str | None
    validator: str | None
    media_type: str


class Part(Enum):
    """Which bytes an answer brings."""

    WHOLE = "whole"
    REST = "rest"


def judge(url: str, head: Head, start: int) -> Part:
    """Return what an answer to the question for all bytes from *start* on brings.

    Raises:
        WherryError: ``input_missing`` or ``stage_in_failed``: asking again will not help.
        FetchBroke: it may.
    """
    if head.status == 200:
        return Part.WHOLE
    if head.status == 206 and start and _starts_at(head.content_range) == start:
        return Part.REST
    said = f"the server answers {head.status} {head.reason}".rstrip()
    if is_passing(head.status) or start:
        raise FetchBroke(said)
    reason = EndReason.INPUT_MISSING if head.status in _ABSENT else EndReason.STAGE_IN_FAILED
    raise WherryError(reason, f"{url} cannot be fetched: {said}.")


def is_passing(status: int) -> bool:
    """Return whether the same question may be answered otherwise a little later."""
    return status in _PASSING


def _starts_at(content_range: str | None) -> int | None:
    match = _CONTENT_RANGE.match(content_range or "")
    return int(match[1]) if match else None


def refused(url: str, why: str) -> WherryError:
    """Return the error for an address that may not be called."""
    return WherryError(EndReason.INPUT_MISSING, f"{url} may not be fetched: {why}.")


def failed(url: str, why: str) -> WherryError:
    """Return the error for what did not work out in the end."""
    return WherryError(EndReason.STAGE_IN_FAILED, f"{url} could not be fetched: {why}.")


def too_large(url: str, bytes_max: int) -> WherryError:
    """Return the error for a body above the limit."""
    return failed(url, f"it is larger than the {bytes_max} bytes that an input from the web may have")


def strong_validator(etag: str | None, modified: str | None) -> str | None:
    """Return what ``If-Range`` may compare with, or None: a weak tag says nothing about bytes."""
    given = modified if etag is None else etag if etag.startswith('"') else None
    return given if given is not None and given.isascii() and given.isprintable() else None


def media_type(text: str | None) -> str:
    """Return a media type as it may be passed on."""
    match = _MEDIA_TYPE.match(text or "")
    return match[0] if match else "application/octet-stream"


def file_name(text: str, otherwise: str) -> str:
    """Return *text*'s last segment as a file's name that any system takes, or *otherwise* if nothing is left of it."""
    last = re.split(r"[/\\]", text)[-1]
    plain = "".join(char for char in last if char.isprintable() and char not in '<>:"|?*').strip(" ").rstrip(". ")
    cut = plain.encode(errors="ignore")[:NAME_BYTES_MAX].decode(errors="ignore")
    return otherwise if cut in ("", ".", "..") else cut


def pause_s(failures: int) -> float:
    """Return how long to wait after so many failures in a row, in seconds."""
    return PAUSE_S * 2 ** (failures - 1)
