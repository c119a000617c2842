"""A zip archive written front to back without knowing the checksums: stored members, each with a data descriptor.

Sizes are known beforehand, so the archive's own length is too. Every member is written with zip64 fields; any
reader of the last twenty years understands them.
"""

import struct
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import UTC, datetime

_LOCAL, _DESCRIPTOR, _CENTRAL = 0x04034B50, 0x08074B50, 0x02014B50
_END64, _LOCATOR64, _END = 0x06064B50, 0x07064B50, 0x06054B50
_VERSION = 45  # zip64
_MADE_BY_UNIX = 3 << 8 | _VERSION
_FLAGS = 0x0808  # data descriptor follows; names are UTF-8
_MAX32, _MAX16 = 0xFFFFFFFF, 0xFFFF
_EARLIEST, _LATEST = 315532800, 4354819198  # what a DOS date can say: 1980 to 2107
_REGULAR, _FOLDER, _DOS_FOLDER = 0o100000, 0o040000, 0x10


@dataclass(frozen=True, slots=True)
class Member:
    """One file or folder. `path` without the final slash; `mtime` in seconds since the epoch."""

    path: str
    size: int
    mode: int
    mtime: float
    is_folder: bool

    @property
    def name(self) -> bytes:
        """Return the name as it stands in the archive."""
        return (self.path + "/" if self.is_folder else self.path).encode()


def local_header(member: Member) -> bytes:
    """Return what stands before the member's bytes."""
    name = member.name
    extra = struct.pack("<HHQQ", 1, 16, member.size, member.size) + _unix_time(member)
    time, date = _dos_time(member)
    head = struct.pack(
        "<IHHHHHIIIHH", _LOCAL, _VERSION, _FLAGS, 0, time, date, 0, _MAX32, _MAX32, len(name), len(extra)
    )
    return head + name + extra


def descriptor(member: Member, crc: int) -> bytes:
    """Return what stands after the member's bytes."""
    return struct.pack("<IIQQ", _DESCRIPTOR, crc, member.size, member.size)


def central_record(member: Member, crc: int, offset: int) -> bytes:
    """Return the member's record in the directory; *offset* is where its local header begins."""
    name = member.name
    extra = struct.pack("<HHQQQ", 1, 24, member.size, member.size, offset) + _unix_time(member)
    kind, dos = (_FOLDER, _DOS_FOLDER) if member.is_folder else (_REGULAR, 0)
    attributes = (kind | member.mode & 0o7777) << 16 | dos
    time, date = _dos_time(member)
    head = struct.pack(
        "<IHHHHHHIIIHHHHHII", _CENTRAL, _MADE_BY_UNIX, _VERSION, _FLAGS, 0, time, date, crc, _MAX32, _MAX32,
        len(name), len(extra), 0, 0, 0, attributes, _MAX32,
    )  # fmt: skip
    return head + name + extra


def end(count: int, directory_start: int, directory_length: int) -> bytes:
    """Return what ends the archive."""
    end64 = struct.pack(
        "<IQHHIIQQQQ", _END64, 44, _MADE_BY_UNIX, _VERSION, 0, 0, count, count, directory_length, directory_start
    )
    locator = struct.pack("<IIQI", _LOCATOR64, 0, directory_start + directory_length, 1)
    few = min(count, _MAX16)
    last = struct.pack(
        "<IHHHHIIH", _END, 0, 0, few, few, min(directory_length, _MAX32), min(directory_start, _MAX32), 0
    )
    return end64 + locator + last


def archive_length(members: Iterable[Member]) -> int:
    """Return how many bytes the archive of *members* has."""
    length = len(end(0, 0, 0))
    for member in members:
        length += len(local_header(member)) + member.size + len(descriptor(member, 0))
        length += len(central_record(member, 0, 0))
    return length


def _dos_time(member: Member) -> tuple[int, int]:
    when = datetime.fromtimestamp(min(max(member.mtime, _EARLIEST), _LATEST), UTC)
    time = when.hour << 11 | when.minute << 5 | when.second // 2
    return time, (when.year - 1980) << 9 | when.month << 5 | when.day


def _unix_time(member: Member) -> bytes:
    """Return the extended time stamp, which has full seconds and a time zone."""
    seconds = int(min(max(member.mtime, -(2**31)), 2**31 - 1))
    return struct.pack("<HHBi", 0x5455, 5, 1, seconds)
