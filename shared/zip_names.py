"""What the names in a zip may be, and that no two of them are for one place on any file system.

How a name's bytes are read: the Unicode path field (0x7075) if there is one; else UTF-8 where the flag says so, and
without the flag where the bytes are UTF-8 (macOS and many Unix tools write that); else code page 437, the old standard.
Names that only Windows reserves (``con``, ``aux.c``) are taken: every job runs on Linux.
"""

import hashlib
import re
import unicodedata

from shared.zip_records import UTF8_FLAG, BadZip, Reason, Record, shown

_DRIVE = re.compile(r"^[A-Za-z]:")
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")
#: The Finder keeps a folder's picture in a file of this name.
_MAC_ICON = "Icon\r"
_MAC_FOLDER = "__MACOSX"


def names_of(record: Record) -> tuple[str, ...]:
    """Return the name of an entry as text; behind it the one that a reader sees who does not know the Unicode field.

    Raises:
        BadZip: it claims to be UTF-8 and is not.
    """
    plain = _decoded(record, record.name, is_utf8=bool(record.flags & UTF8_FLAG))
    if record.unicode_name is None:
        return (plain,)
    return _decoded(record, record.unicode_name, is_utf8=True), plain


def _decoded(record: Record, raw: bytes, *, is_utf8: bool) -> str:
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        if is_utf8:
            wrong = f"{record.shown} says that its name is UTF-8, and it is not. Pack it again"
            raise BadZip(Reason.NAME_ENCODING, wrong) from None
        return raw.decode("cp437")


def parts_of(name: str, *, depth: int, name_bytes: int, path_bytes: int) -> list[str]:
    """Return the names of the folders on the way to *name*, and its own; nothing for the root itself.

    Raises:
        BadZip: it is not to be made on a disk.
    """
    parts = [part for part in name.split("/") if part not in ("", ".")]
    bare = name.removesuffix("\r") if name.endswith(_MAC_ICON) and is_litter(parts) else name
    if _CONTROL.search(bare):
        what = "a NUL" if "\0" in bare else "a control character"
        raise BadZip(Reason.CONTROL_CHARACTER, f"{shown(name)} has {what} in its name. Rename it")
    if "\\" in name:
        wrong = f"{shown(name)} has a backslash in its name. Use a tool that writes forward slashes, or rename it"
        raise BadZip(Reason.BACKSLASH, wrong)
    if name.startswith("/") or _DRIVE.match(name):
        raise BadZip(Reason.ABSOLUTE, f"{shown(name)} is an absolute path. Pack it from inside its folder")
    if ".." in parts:
        raise BadZip(Reason.UPWARDS, f"{shown(name)} leads out of its folder. Pack it from inside its folder")
    if ":" in name:
        raise BadZip(Reason.COLON, f"{shown(name)} has a colon in its name, which Windows takes for more. Rename it")
    if not parts and not name.endswith("/"):
        raise BadZip(Reason.NO_NAME, f"{shown(name)} is no name for a file. Rename it")
    if len(parts) > depth:
        raise BadZip(Reason.DEPTH, f"{shown(name)} is nested deeper than {depth} folders. Pack it as a zip in the zip")
    if len(name.encode()) > path_bytes or any(len(part.encode()) > name_bytes for part in parts):
        limits = f"at most {name_bytes} bytes, {path_bytes} in all"
        raise BadZip(Reason.NAME_LENGTH, f"{shown(name)} is too long a name: {limits}. Rename it")
    return parts


def is_litter(parts: list[str]) -> bool:
    """Return whether it is what macOS puts into zips beside what was packed: it is not unpacked."""
    return parts[0] == _MAC_FOLDER or parts[-1] == _MAC_ICON


class Places:
    """Where entries go, compared without case and however accents are composed: on some disks these are one place.

    Only digests are kept: names of a hostile zip can be as long as its directory.

    Args:
        limit: how many files and folders there may be, with folders that paths only imply.
    """

    def __init__(self, limit: int) -> None:
        self._limit = limit
        self._files: set[bytes] = set()
        self._folders: dict[bytes, tuple[bytes, bool]] = {}  # how it is spelled, and whether it was listed
        self._last: tuple[list[str], bytes, bytes] = ([], b"", b"")

    def add(self, name: str, parts: list[str], *, is_dir: bool) -> None:
        """Take the place of an entry.

        Raises:
            BadZip: it is taken, or on its way to it something else is, or there are too many.
        """
        folded, spelled = self._parent(name, parts[:-1])
        folded, spelled = _below(folded, _fold(parts[-1])), _below(spelled, parts[-1])
        if is_dir:
            self._add_folder(name, folded, spelled, listed=True)
        elif folded in self._files:
            raise _twice(name)
        elif folded in self._folders:
            raise _both(name)
        else:
            self._files.add(folded)
        self._count()

    def _parent(self, name: str, parts: list[str]) -> tuple[bytes, bytes]:
        if self._last[0] == parts:  # most entries are where the one before is
            return self._last[1:]
        folded = spelled = b""
        for part in parts:
            folded, spelled = _below(folded, _fold(part)), _below(spelled, part)
            self._add_folder(name, folded, spelled, listed=False)
            self._count()
        self._last = (parts, folded, spelled)
        return folded, spelled

    def _add_folder(self, name: str, folded: bytes, spelled: bytes, *, listed: bool) -> None:
        if folded in self._files:
            raise _both(name)
        known, was_listed = self._folders.get(folded, (spelled, False))
        if known != spelled or (listed and was_listed):
            raise _twice(name)
        self._folders[folded] = (spelled, listed or was_listed)

    def _count(self) -> None:
        if len(self._files) + len(self._folders) > self._limit:
            wrong = f"it has more than {self._limit} entries, folders included. Pack some as a zip in the zip"
            raise BadZip(Reason.TOO_MANY, wrong)


def _fold(part: str) -> str:
    if part.isascii():
        return part.lower()
    return unicodedata.normalize("NFC", unicodedata.normalize("NFD", part).casefold())


def _below(parent: bytes, part: str) -> bytes:
    return hashlib.blake2b(parent + part.encode(), digest_size=16).digest()


def _twice(name: str) -> BadZip:
    wrong = f"{shown(name)} is there twice (names are compared without case and accents' form). Rename one"
    return BadZip(Reason.DUPLICATE, wrong)


def _both(name: str) -> BadZip:
    return BadZip(
        Reason.FILE_AND_FOLDER, f"{shown(name)}, or what it lies in, is a file and a folder at once. Rename one"
    )
