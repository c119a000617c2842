"""tus 1.0 as headers: what requests for an upload ask for, and what they are answered.

https://tus.io/protocols/resumable-upload
"""

import base64
import binascii
import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import datetime
from email.utils import format_datetime
from typing import Protocol

from services.gateway.core.names import BINARY, file_name, is_media_type
from shared.errors import WherryError
from shared.requests.artifacts import Resumable

VERSION = "1.0.0"
EXTENSIONS = "creation,creation-with-upload,creation-defer-length,termination,checksum,expiration"
ALGORITHMS = {"sha1": 20, "sha256": 32}  # and the bytes of their digests
MEDIA_TYPE = "application/offset+octet-stream"
METADATA_MOST = 4096

_KEY = re.compile(r"^[\x21-\x2b\x2d-\x7e]{1,128}$")
_NAME_KEYS, _TYPE_KEYS = ("filename", "name"), ("filetype", "type")


class Hash(Protocol):
    """A digest that is being made."""

    def update(self, data: bytes, /) -> None:
        """Take in bytes."""
        ...

    def digest(self) -> bytes:
        """Return the digest."""
        ...


@dataclass(frozen=True, slots=True)
class Creation:
    """What a new upload is to be. `length` None is told later."""

    length: int | None
    name: str
    media_type: str
    metadata: str


@dataclass(frozen=True, slots=True)
class Checksum:
    """What the bytes of one request must hash to."""

    algorithm: str
    digest: bytes

    def new(self) -> Hash:
        """Return a digest to be made."""
        return hashlib.sha256() if self.algorithm == "sha256" else hashlib.sha1(usedforsecurity=False)


def require_version(headers: Mapping[str, str]) -> None:
    """Let a request of our version pass.

    Raises:
        WherryError: ``tus_version``.
    """
    if headers.get("tus-resumable") != VERSION:
        raise WherryError("tus_version", f"Send `Tus-Resumable: {VERSION}`: this server speaks no other version.")


def creation(headers: Mapping[str, str], size_max: int) -> Creation:
    """Return the upload that *headers* ask for.

    Raises:
        WherryError: ``bad_request``, ``too_large``.
    """
    length = number(headers, "upload-length")
    deferred = headers.get("upload-defer-length")
    if (length is None) == (deferred is None) or deferred not in (None, "1"):
        raise WherryError("bad_request", "Send either `Upload-Length` or `Upload-Defer-Length: 1`.")
    require_fits(length, size_max)
    text = headers.get("upload-metadata", "")
    given = metadata(text)
    name = next((given[key] for key in _NAME_KEYS if given.get(key)), "")
    media_type = next((given[key] for key in _TYPE_KEYS if given.get(key)), "")
    return Creation(length, file_name(name), media_type if is_media_type(media_type) else BINARY, text)


def require_fits(length: int | None, size_max: int) -> None:
    """Let a length pass that is not too large.

    Raises:
        WherryError: ``too_large``.
    """
    if length is not None and length > size_max:
        raise WherryError("too_large", f"An upload may have {size_max} bytes.")


def metadata(text: str) -> dict[str, str]:
    """Return what an Upload-Metadata header says, as text; bytes that are no text are replaced.

    Raises:
        WherryError: ``bad_request``.
    """
    wrong = WherryError(
        "bad_request", "`Upload-Metadata` has pairs of a key and a base64 value, separated by commas, each key once."
    )
    if len(text) > METADATA_MOST:
        raise WherryError("bad_request", f"`Upload-Metadata` may have {METADATA_MOST} characters.")
    found: dict[str, str] = {}
    for pair in filter(None, (part.strip() for part in text.split(","))):
        key, _, value = pair.partition(" ")
        if not _KEY.match(key) or key in found:
            raise wrong
        try:
            found[key] = base64.b64decode(value.strip(), validate=True).decode(errors="replace")
        except (binascii.Error, ValueError):
            raise wrong from None
    return found


def checksum(headers: Mapping[str, str]) -> Checksum | None:
    """Return what the bytes must hash to, if that was said.

    Raises:
        WherryError: ``bad_request``: it cannot be read, or is of an algorithm that is not known here.
    """
    text = headers.get("upload-checksum")
    if text is None:
        return None
    algorithm, _, encoded = text.partition(" ")
    try:
        digest = base64.b64decode(encoded.strip(), validate=True)
    except (binascii.Error, ValueError):
        digest = b""
    if len(digest) != ALGORITHMS.get(algorithm, -1):
        raise WherryError(
            "bad_request", f"`Upload-Checksum` is one of {', '.join(ALGORITHMS)}, and the digest in base64."
        )
    return Checksum(algorithm, digest)


def number(headers: Mapping[str, str], name: str) -> int | None:
    """Return the whole number, 0 or more, that a header is, or None without it.

    Raises:
        WherryError: ``bad_request``.
    """
    text = headers.get(name)
    if text is None:
        return None
    if not (text.isascii() and text.isdecimal() and len(text) <= 18):
        raise WherryError("bad_request", f"`{name.title()}` is a whole number of bytes.")
    return int(text)


def offset(headers: Mapping[str, str]) -> int:
    """Return where a request's bytes begin.

    Raises:
        WherryError: ``unsupported_media_type``, ``bad_request``.
    """
    require_media_type(headers)
    found = number(headers, "upload-offset")
    if found is None:
        raise WherryError("bad_request", "Send `Upload-Offset`: where these bytes begin.")
    return found


def require_media_type(headers: Mapping[str, str]) -> None:
    """Let bytes of the protocol's media type pass.

    Raises:
        WherryError: ``unsupported_media_type``.
    """
    if headers.get("content-type", "").partition(";")[0].strip().lower() != MEDIA_TYPE:
        raise WherryError("unsupported_media_type", f"Send `Content-Type: {MEDIA_TYPE}`.")


def capabilities(size_max: int) -> dict[str, str]:
    """Return the headers that say what this server can do."""
    return {
        "Tus-Resumable": VERSION,
        "Tus-Version": VERSION,
        "Tus-Extension": EXTENSIONS,
        "Tus-Max-Size": str(size_max),
        "Tus-Checksum-Algorithm": ",".join(ALGORITHMS),
    }


def refusal(path: str, code: str) -> dict[str, str]:
    """Return what the protocol wants beside a refusal of a request to *path*."""
    if not path.startswith("/v1/uploads"):
        return {}
    return {"Tus-Resumable": VERSION} | ({"Tus-Version": VERSION} if code == "tus_version" else {})


def state(upload: Resumable) -> dict[str, str]:
    """Return the headers that say how far an upload has come, and which artifact it has become."""
    headers = {"Tus-Resumable": VERSION, "Upload-Offset": str(upload.offset)}
    if upload.state == "open":
        headers["Upload-Expires"] = _http_date(upload.expires_at)
    if upload.artifact_id and upload.sha256:
        headers |= {"Wherry-Artifact": upload.artifact_id, "Wherry-Sha256": upload.sha256}
    return headers


def description(upload: Resumable) -> dict[str, str]:
    """Return the headers of a HEAD: the state and what was said when it began."""
    length = {"Upload-Defer-Length": "1"} if upload.length is None else {"Upload-Length": str(upload.length)}
    said = {"Upload-Metadata": upload.metadata} if upload.metadata else {}
    return state(upload) | length | said | {"Cache-Control": "no-store"}


def _http_date(moment: datetime) -> str:
    return format_datetime(moment, usegmt=True)
