"""Judging a zip by its central directory, before a byte of it is unpacked.

What an entry claims is checked here; what it really holds is counted by whoever unpacks it.
"""

import calendar
import re
import stat
import struct
import unicodedata
import zipfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO

from shared.errors import WherryError

_METHODS = frozenset(
    {zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2}
)  # LZMA may claim gigabytes of memory
_ENCRYPTED = 0x1 | 0x40 | 0x2000
_DRIVE = re.compile(r"^[A-Za-z]:")
_END = struct.Struct("<4s4H2LH")
_END64_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_CENTRAL = struct.Struct("<4s24x3H12x")
_LOCAL_HEADER_BYTES = 30
#: What a broken or hostile zip makes the standard library raise.
BROKEN_ZIP = (
    zipfile.BadZipFile, zipfile.LargeZipFile, zlib.error, struct.error, EOFError, OSError, ValueError,
    NotImplementedError, RuntimeError, OverflowError,
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Limits:
    """What a zip may claim. Sizes in bytes.

    Attributes:
        ratio: unpacked to packed size of the whole; looked at only where the unpacked size is above `ratio_from`.
    """

    entries: int = 100_000
    total_bytes: int = 64 * 1024**3
    file_bytes: int = 64 * 1024**3
    ratio: int = 250
    ratio_from: int = 256 * 1024**2
    depth: int = 64
    name_bytes: int = 255
    path_bytes: int = 2048


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file or folder of a zip that was found to be harmless.

    Attributes:
        path: relative, with forward slashes, without `.` or `..`.
        member: the name under which `zipfile` finds it.
        size: claimed bytes after unpacking.
        mode: permission bits.
        mtime: seconds since the epoch; a zip does not say in which time zone, so UTC is taken.
    """

    path: str
    member: str
    is_dir: bool
    size: int
    mode: int
    mtime: int


def inspect(file: BinaryIO, limits: Limits = Limits()) -> list[ZipEntry]:
    """Return the entries of the zip in *file*, in the order of its directory; folders that paths imply are not listed.

    Raises:
        WherryError: ``bad_source``, naming the entry and what is wrong with it.
    """
    try:
        _count_entries(file, limits)
        file.seek(0)
        with zipfile.ZipFile(file) as archive:
            return _inspect(archive, limits)
    except BROKEN_ZIP as error:
        raise _bad(f"not a zip that can be read: {error}") from error


def _inspect(archive: zipfile.ZipFile, limits: Limits) -> list[ZipEntry]:
    infos = archive.infolist()
    entries = [entry for info in infos if (entry := _entry(info, limits)) is not None]
    if not any(not entry.is_dir for entry in entries):
        raise _bad("the zip is empty: it holds no file")
    _check_names(entries)
    _check_overlap(infos, archive.start_dir)
    _check_sizes(infos, limits)
    return entries


def _entry(info: zipfile.ZipInfo, limits: Limits) -> ZipEntry | None:
    path = _path(info, limits)
    mode = info.external_attr >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        raise _bad(f"{info.filename!r} is a link or a device; only files and folders are taken")
    if info.flag_bits & _ENCRYPTED:
        raise _bad(f"{info.filename!r} is encrypted")
    if info.compress_type not in _METHODS:
        raise _bad(f"{info.filename!r} is packed by method {info.compress_type}; use deflate")
    is_dir = info.is_dir()
    if is_dir != (kind == stat.S_IFDIR) and kind != 0:
        raise _bad(f"{info.filename!r} claims to be a file and a folder")
    if is_dir and info.file_size:
        raise _bad(f"{info.filename!r} is a folder with content of its own")
    if not is_dir and mode & (stat.S_ISUID | stat.S_ISGID):
        raise _bad(f"{info.filename!r} has the set-user or set-group bit")
    if info.file_size > limits.file_bytes:
        raise _bad(f"{info.filename!r} has {info.file_size} bytes, more than {limits.file_bytes}")
    if not path:
        return None  # the root itself, "./"
    # Zips made outside Unix, or by hand, carry no mode.
    mode = mode & 0o777 or (0o755 if is_dir else 0o644)
    return ZipEntry(path, info.filename, is_dir, info.file_size, mode, _mtime(info))


def _mtime(info: zipfile.ZipInfo) -> int:
    try:
        return calendar.timegm((*info.date_time, 0, 0, 0))
    except ValueError:  # month 0 and the like
        return calendar.timegm((1980, 1, 1, 0, 0, 0))


def _path(info: zipfile.ZipInfo, limits: Limits) -> str:
    name = info.orig_filename  # `filename` is cut at a NUL
    if "\x00" in name:
        raise _bad(f"{name!r} has a NUL in its name")
    if "\\" in name:
        raise _bad(f"{name!r} has a backslash in its name; use forward slashes")
    if name.startswith("/") or _DRIVE.match(name):
        raise _bad(f"{name!r} is an absolute path")
    parts = [part for part in name.split("/") if part not in ("", ".")]
    if ".." in parts:
        raise _bad(f"{name!r} leads out of its folder")
    if not parts and not info.is_dir():
        raise _bad(f"{name!r} is no name for a file")
    if len(parts) > limits.depth:
        raise _bad(f"{name[:80]!r}… is nested deeper than {limits.depth} folders")
    if any(len(_encoded(part)) > limits.name_bytes for part in parts) or len(_encoded(name)) > limits.path_bytes:
        raise _bad(f"{name[:80]!r}… is too long a name: at most {limits.name_bytes} bytes, {limits.path_bytes} in all")
    return "/".join(parts)


def _check_names(entries: list[ZipEntry]) -> None:
    """Refuse two entries for one place, also where a file system folds case or composes accents."""
    files: dict[str, str] = {}
    seen: set[str] = set()
    for entry in entries:
        folded = unicodedata.normalize("NFC", entry.path).casefold()
        if folded in seen:
            raise _bad(f"{entry.path!r} is there twice (names are compared without case)")
        seen.add(folded)
        if not entry.is_dir:
            files[folded] = entry.path
    for folded in seen:
        for parent in _parents(folded):
            if parent in files:
                raise _bad(f"{files[parent]!r} is a file and a folder at once")


def _parents(path: str) -> Iterator[str]:
    cut = path.rfind("/")
    while cut > 0:
        yield path[:cut]
        cut = path.rfind("/", 0, cut)


def _check_overlap(infos: list[zipfile.ZipInfo], directory_start: int) -> None:
    """Refuse entries that share bytes: a small file could claim any size."""
    end, last = 0, ""
    for info in sorted(infos, key=lambda info: info.header_offset):
        if info.header_offset < end:
            raise _bad(f"{info.filename!r} overlaps {last!r}")
        end = info.header_offset + _LOCAL_HEADER_BYTES + len(info.orig_filename) + info.compress_size
        last = info.filename
    if end > directory_start:
        raise _bad(f"{last!r} overlaps the directory of the zip")


def _check_sizes(infos: list[zipfile.ZipInfo], limits: Limits) -> None:
    total = sum(info.file_size for info in infos)
    packed = sum(info.compress_size for info in infos)
    if total > limits.total_bytes:
        raise _bad(f"it unpacks to {total} bytes, more than {limits.total_bytes}")
    if total > limits.ratio_from and total > packed * limits.ratio:
        raise _bad(f"it unpacks to {total // max(packed, 1)} times its size, more than {limits.ratio}")


def _count_entries(file: BinaryIO, limits: Limits) -> None:
    """Walk the central directory and stop above the limit: `zipfile` would hold every entry in memory first."""
    start, size = _directory(file)
    file.seek(start)
    left, count = size, 0
    while left >= _CENTRAL.size:
        signature, name, extra, comment = _CENTRAL.unpack(file.read(_CENTRAL.size))
        if signature != b"PK\x01\x02":
            raise zipfile.BadZipFile("its directory is damaged")
        count += 1
        if count > limits.entries:
            raise _bad(f"it has more than {limits.entries} entries")
        file.seek(name + extra + comment, 1)
        left -= _CENTRAL.size + name + extra + comment
    if count == 0:
        raise _bad("the zip is empty: it holds no file")


def _directory(file: BinaryIO) -> tuple[int, int]:
    """Return where the central directory begins and its size, both in bytes."""
    length = file.seek(0, 2)
    tail_start = max(0, length - (1 << 16) - _END.size)
    file.seek(tail_start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or at + _END.size > len(tail):
        raise zipfile.BadZipFile("it has no end record")
    size = _END.unpack_from(tail, at)[5]
    end = tail_start + at
    locator = end - _END64_LOCATOR.size
    if locator >= _END64.size:
        file.seek(locator)
        if file.read(4) == b"PK\x06\x07":
            end = locator - _END64.size
            file.seek(end)
            record = _END64.unpack(file.read(_END64.size))
            if record[0] != b"PK\x06\x06":
                raise zipfile.BadZipFile("its 64-bit end record is damaged")
            size = record[8]
    if size > end:
        raise zipfile.BadZipFile("its directory is larger than the file")
    return end - size, size


def _encoded(name: str) -> bytes:
    return name.encode("utf-8", "surrogateescape")


def _bad(what: str) -> WherryError:
    return WherryError("bad_source", f"source: {what}")
