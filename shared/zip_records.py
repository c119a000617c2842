"""What stands in the bytes of a zip: its end, its directory, its headers. Read strictly: two readers see the same zip.

Numbers are those of PKWARE's APPNOTE 6.3. Nothing here unpacks anything.
"""

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import StrEnum
from typing import BinaryIO

from shared.errors import WherryError
from shared.states import EndReason

_LOCAL = struct.Struct("<4s5H3L2H")
_CENTRAL = struct.Struct("<4s6H3L5H2L")
_END = struct.Struct("<4s4H2LH")
_LOCATOR64 = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
_END_MARK, _LOCATOR_MARK = b"PK\x05\x06", b"PK\x06\x07"
#: The directory and the end record may be followed by a comment of this length.
_COMMENT_MAX = 0xFFFF
_MAX16, _MAX32 = 0xFFFF, 0xFFFFFFFF
_ZIP64, _UNICODE_PATH = 0x0001, 0x7075
_BLOCK_BYTES = 64 * 1024
ENCRYPTED_FLAGS, DESCRIPTOR_FLAG, UTF8_FLAG = 0x1 | 0x40 | 0x2000, 0x8, 0x800
PATCH_FLAG = 0x20
CENTRAL_BYTES = _CENTRAL.size


class Reason(StrEnum):
    """Why a zip is refused."""

    NOT_A_ZIP = "not_a_zip"
    TRUNCATED = "truncated"
    DAMAGED = "damaged"  # records that are not where, or not what, others say
    MULTI_DISK = "multi_disk"
    BAD_ZIP64 = "bad_zip64"
    AMBIGUOUS_END = "ambiguous_end"
    FOREIGN_BYTES = "foreign_bytes"  # before, between or behind what the directory knows
    EMPTY = "empty"
    TOO_MANY = "too_many"
    DIRECTORY_SIZE = "directory_size"
    ABSOLUTE = "absolute"
    UPWARDS = "upwards"
    BACKSLASH = "backslash"
    CONTROL_CHARACTER = "control_character"
    COLON = "colon"
    NAME_ENCODING = "name_encoding"
    NO_NAME = "no_name"
    NAME_LENGTH = "name_length"
    DEPTH = "depth"
    SPECIAL_FILE = "special_file"
    SET_ID = "set_id"
    ENCRYPTED = "encrypted"
    METHOD = "method"
    DUPLICATE = "duplicate"
    FILE_AND_FOLDER = "file_and_folder"
    FOLDER_WITH_CONTENT = "folder_with_content"
    OVERLAP = "overlap"
    HEADERS_DIFFER = "headers_differ"
    FILE_SIZE = "file_size"
    TOTAL_SIZE = "total_size"
    RATIO = "ratio"
    WRONG_SIZE = "wrong_size"
    CHECKSUM = "checksum"
    BROKEN_DATA = "broken_data"


class BadZip(WherryError):
    """A zip that is not taken: ``bad_source``.

    Attributes:
        reason: why, for programs.
        wrong: why, for people: names the entry, if it is one's fault, and says what to do. `message` has "source: "
            before it.
    """

    def __init__(self, reason: Reason, wrong: str) -> None:
        super().__init__(EndReason.BAD_SOURCE, f"source: {wrong}")
        self.reason = reason
        self.wrong = wrong


@dataclass(frozen=True, slots=True)
class End:
    """Where the directory is: it begins at byte `start`, has `size` bytes and `count` records."""

    start: int
    size: int
    count: int


@dataclass(frozen=True, slots=True)
class Record:
    """What the directory says of one entry. Sizes and places in bytes; `name` as its bytes are.

    Attributes:
        unicode_name: the name of the Unicode path field (0x7075), if there is one that is about `name`.
        attributes: external: a Unix mode in the upper half, DOS attributes in the lower.
    """

    name: bytes
    unicode_name: bytes | None
    flags: int
    method: int
    time: int
    date: int
    crc: int
    packed: int
    size: int
    header_at: int
    attributes: int

    @property
    def shown(self) -> str:
        """Return the name for a message."""
        return shown(self.name)


def shown(name: bytes | str) -> str:
    """Return *name* for a message: quoted, and not longer than a line."""
    text = name.decode("utf-8", "replace") if isinstance(name, bytes) else name
    return repr(text) if len(text) <= 80 else f"{text[:80]!r}…"


def read_at(file: BinaryIO, at: int, size: int) -> bytes:
    """Return *size* bytes from *at*.

    Raises:
        BadZip: the file ends before.
    """
    file.seek(at)
    found = file.read(size)
    if len(found) != size:
        raise BadZip(Reason.TRUNCATED, "the zip ends in the middle: it was cut. Send it again")
    return found


def find_end(file: BinaryIO) -> End:
    """Return where the directory is. Nothing may be behind its end, nor between it and its end.

    Raises:
        BadZip: there is none, more than one could be meant, or what is said of it contradicts itself.
    """
    length = file.seek(0, 2)
    tail_at = max(0, length - _END.size - _COMMENT_MAX)
    tail = read_at(file, tail_at, length - tail_at)
    at = _end_in(tail)
    _, disk, directory_disk, here, count, size, start, _ = _END.unpack_from(tail, at)
    end_at = tail_at + at
    locator_at = end_at - _LOCATOR64.size
    if locator_at >= _END64.size and read_at(file, locator_at, 4) == _LOCATOR_MARK:
        small = (disk, directory_disk, here, count, size, start)
        disk, directory_disk, here, count, size, start = _end64(file, locator_at, small)
        end_at = locator_at - _END64.size
    if disk or directory_disk or here != count:
        raise BadZip(Reason.MULTI_DISK, "it is one part of a zip in several parts. Join them, or pack it as one")
    if start + size > end_at:
        raise BadZip(Reason.TRUNCATED, "its directory is larger than the file: a part is missing. Send it again")
    if start + size < end_at:
        raise _foreign("before its first entry, or behind its directory")
    if count * CENTRAL_BYTES > size or (count == 0 and size):
        raise BadZip(Reason.DAMAGED, "it says that it has another number of entries than it has. Pack it again")
    return End(start, size, count)


def _end_in(tail: bytes) -> int:
    """Return where in *tail*, the last bytes of the file, the end record is."""
    marks = list(_each(tail, _END_MARK))
    whole = [at for at in marks if at + _END.size <= len(tail)]
    exact = [at for at in whole if at + _END.size + _comment_size(tail, at) == len(tail)]
    if len(exact) > 1 or (exact and marks[-1] != exact[0]):
        raise BadZip(Reason.AMBIGUOUS_END, "it has more than one end, one of them in a comment. Pack it again")
    if exact:
        return exact[0]
    if not marks:
        raise BadZip(Reason.NOT_A_ZIP, "that is not a zip, or its end is missing. Send it again, whole")
    if whole and whole[-1] == marks[-1] and marks[-1] + _END.size + _comment_size(tail, marks[-1]) < len(tail):
        raise _foreign("behind its end")
    raise BadZip(Reason.TRUNCATED, "the zip ends in the middle: it was cut. Send it again")


def _each(text: bytes, mark: bytes) -> Iterator[int]:
    at = text.find(mark)
    while at >= 0:
        yield at
        at = text.find(mark, at + 1)


def _comment_size(tail: bytes, at: int) -> int:
    return int.from_bytes(tail[at + _END.size - 2 : at + _END.size], "little")


def _end64(file: BinaryIO, locator_at: int, small: tuple[int, ...]) -> tuple[int, ...]:
    """Return the six numbers of the 64-bit end record, which those of the small one must be, or leave to it."""
    _, record_disk, record_at, disks = _LOCATOR64.unpack(read_at(file, locator_at, _LOCATOR64.size))
    if record_disk or disks > 1:
        raise BadZip(Reason.MULTI_DISK, "it is one part of a zip in several parts. Join them, or pack it as one")
    record = _END64.unpack(read_at(file, locator_at - _END64.size, _END64.size))
    mark, rest, _, _, *large = record
    if mark != b"PK\x06\x06" or record_at != locator_at - _END64.size or rest != _END64.size - 12:
        raise _bad64("its 64-bit end record is not where, or what, it should be")
    for one, whole, unknown in zip(small, large, (_MAX16,) * 4 + (_MAX32,) * 2, strict=True):
        if one not in (unknown, whole):
            raise _bad64("its two end records contradict each other")
    return tuple(large)


def records(file: BinaryIO, end: End) -> Iterator[Record]:
    """Give what the directory says of each entry. A few kilobytes are held at a time.

    Raises:
        BadZip: it is damaged, or is not exactly as long as it says.
    """
    directory = _Cursor(file, end.start, end.start + end.size)
    for _ in range(end.count):
        fields = _CENTRAL.unpack(directory.take(_CENTRAL.size))
        mark, _, _, flags, method, time, date, crc, packed, size = fields[:10]
        name_size, extra_size, comment_size, disk, _, attributes, header_at = fields[10:]
        if mark != b"PK\x01\x02":
            raise BadZip(Reason.DAMAGED, "its directory is damaged. Send it again")
        name = directory.take(name_size)
        extra = _fields(directory.take(extra_size), name)
        directory.take(comment_size)
        size, packed, header_at, disk = _sizes64(name, extra.get(_ZIP64), (size, packed, header_at, disk))
        if disk:
            raise BadZip(Reason.MULTI_DISK, f"{shown(name)} is in another part of a zip in several parts. Join them")
        other = _unicode_name(name, extra.get(_UNICODE_PATH))
        yield Record(name, other, flags, method, time, date, crc, packed, size, header_at, attributes)
    if directory.at != end.start + end.size:
        raise _foreign("behind the last record of its directory")


class _Cursor:
    """Reads *file* forwards from *at*, at most to *end*, in blocks."""

    def __init__(self, file: BinaryIO, at: int, end: int) -> None:
        self.at = at
        self._file, self._end = file, end
        self._block, self._block_at = b"", at

    def take(self, size: int) -> bytes:
        if self.at + size > self._end:
            raise BadZip(Reason.DAMAGED, "its directory is shorter than its records. Send it again")
        offset = self.at - self._block_at
        if offset + size > len(self._block):
            self._block = read_at(self._file, self.at, min(max(size, _BLOCK_BYTES), self._end - self.at))
            self._block_at, offset = self.at, 0
        self.at += size
        return self._block[offset : offset + size]


def _fields(extra: bytes, name: bytes) -> dict[int, bytes]:
    """Return the extra fields that matter, by number. Up to three zeros at the end are padding (zipalign)."""
    found: dict[int, bytes] = {}
    at = 0
    while len(extra) - at >= 4:
        number, size = int.from_bytes(extra[at : at + 2], "little"), int.from_bytes(extra[at + 2 : at + 4], "little")
        if at + 4 + size > len(extra):
            raise BadZip(Reason.DAMAGED, f"the extra fields of {shown(name)} are damaged. Pack it again")
        if number in (_ZIP64, _UNICODE_PATH):
            if number in found:
                raise BadZip(Reason.DAMAGED, f"{shown(name)} has an extra field twice. Pack it again")
            found[number] = extra[at + 4 : at + 4 + size]
        at += 4 + size
    if extra[at:].strip(b"\0"):
        raise BadZip(Reason.DAMAGED, f"the extra fields of {shown(name)} are damaged. Pack it again")
    return found


def _sizes64(name: bytes, field: bytes | None, small: tuple[int, int, int, int]) -> tuple[int, int, int, int]:
    """Return size, packed size, place and disk: *small*, but what is too large for it from the 64-bit *field*."""
    unknown = (_MAX32, _MAX32, _MAX32, _MAX16)
    lacking = [at for at in range(4) if small[at] == unknown[at]]
    widths = (8, 8, 8, 4)
    needed = sum(widths[at] for at in lacking)
    if field is None:
        if any(at < 3 for at in lacking):
            raise _bad64(f"{shown(name)} leaves its sizes to a 64-bit field that it has not")
        return small
    if len(field) == needed:
        told = lacking
    elif not lacking and len(field) in (16, 24, 28):  # it repeats what the small fields say already
        told = list(range({16: 2, 24: 3, 28: 4}[len(field)]))
    else:
        raise _bad64(f"the 64-bit field of {shown(name)} has {len(field)} bytes and should have {needed}")
    values, offset = list(small), 0
    for at in told:
        values[at] = int.from_bytes(field[offset : offset + widths[at]], "little")
        offset += widths[at]
    if not lacking and tuple(values) != small:
        raise _bad64(f"{shown(name)} has two sizes or places that contradict each other")
    return values[0], values[1], values[2], values[3]


def _unicode_name(name: bytes, field: bytes | None) -> bytes | None:
    if field is None:
        return None
    if len(field) < 5 or field[0] != 1 or int.from_bytes(field[1:5], "little") != zlib.crc32(name):
        raise BadZip(Reason.HEADERS_DIFFER, f"{shown(name)} carries the Unicode name of another entry. Pack it again")
    return field[5:]


def data_at(file: BinaryIO, record: Record, next_at: int) -> int:
    """Return where the packed bytes of an entry begin, having compared its own header with the directory.

    Args:
        file: the zip.
        record: what the directory says of the entry.
        next_at: where the next entry, or the directory, begins: nothing but a data descriptor may be before it.

    Raises:
        BadZip: they differ, or the entry is not exactly as long as the directory says.
    """
    head = read_at(file, record.header_at, _LOCAL.size)
    mark, _, flags, method, _, _, crc, packed, size, name_size, extra_size = _LOCAL.unpack(head)
    if mark != b"PK\x03\x04":
        raise BadZip(Reason.DAMAGED, f"{record.shown} is not where the directory says. Pack it again")
    begin = record.header_at + _LOCAL.size
    if begin + name_size + extra_size + record.packed > next_at:
        raise BadZip(Reason.OVERLAP, f"{record.shown} overlaps what comes behind it. Pack it again")
    more = read_at(file, begin, name_size + extra_size)
    extra = _fields(more[name_size:], record.name)
    if more[:name_size] != record.name or _unicode_name(record.name, extra.get(_UNICODE_PATH)) not in (
        None,
        record.unicode_name,
    ):
        raise _differ(record, f"has another name, {shown(more[:name_size])},")
    if method != record.method:
        raise _differ(record, f"is packed by another method, {method},")
    compared = ENCRYPTED_FLAGS | UTF8_FLAG | PATCH_FLAG
    if flags & compared != record.flags & compared:
        raise _differ(record, "has other flags")
    _compare_sizes(record, extra.get(_ZIP64), (crc, packed, size), is_later=bool(flags & DESCRIPTOR_FLAG))
    data = begin + name_size + extra_size
    _check_descriptor(file, record, data + record.packed, next_at, is_there=bool(flags & DESCRIPTOR_FLAG))
    return data


def _compare_sizes(record: Record, field: bytes | None, said: tuple[int, int, int], *, is_later: bool) -> None:
    """Refuse a local header with other numbers; where they stand behind the data (*is_later*), zeros are usual."""
    crc, packed, size = said
    if field is not None and len(field) in (16, 24, 28):
        large_size, large_packed = int.from_bytes(field[:8], "little"), int.from_bytes(field[8:16], "little")
        size = _either(record, size, large_size, is_later=is_later)
        packed = _either(record, packed, large_packed, is_later=is_later)
    elif field is not None or _MAX32 in (packed, size):
        raise _bad64(f"the 64-bit field of {record.shown} is missing in its own header, or has a wrong length")
    for own, listed in ((crc, record.crc), (packed, record.packed), (size, record.size)):
        if own != listed and not (is_later and own == 0):
            raise _differ(record, "has other sizes or another checksum")


def _either(record: Record, small: int, large: int, *, is_later: bool) -> int:
    if small not in (_MAX32, large) and not (is_later and 0 in (small, large)):
        raise _differ(record, "has other sizes or another checksum")
    return large if small == _MAX32 else max(small, large)


def _check_descriptor(file: BinaryIO, record: Record, at: int, next_at: int, *, is_there: bool) -> None:
    """Refuse anything between an entry's bytes and *next_at* but the descriptor that repeats its numbers."""
    gap = next_at - at
    if not is_there:
        if gap:
            raise _foreign(f"behind {record.shown}")
        return
    forms = [mark + numbers for mark in (b"", b"PK\x07\x08") for numbers in _descriptors(record)]
    if gap not in {len(form) for form in forms}:
        raise _foreign(f"behind {record.shown}") if gap > 24 else _differ(record, "has no data descriptor")
    if read_at(file, at, gap) not in forms:
        raise _differ(record, "has a data descriptor with other sizes or another checksum")


def _descriptors(record: Record) -> Iterator[bytes]:
    yield struct.pack("<LQQ", record.crc, record.packed, record.size)
    if record.packed <= _MAX32 and record.size <= _MAX32:
        yield struct.pack("<LLL", record.crc, record.packed, record.size)


def _differ(record: Record, how: str) -> BadZip:
    return BadZip(Reason.HEADERS_DIFFER, f"{record.shown} {how} in its own header than in the directory. Pack it again")


def _foreign(where: str) -> BadZip:
    return BadZip(Reason.FOREIGN_BYTES, f"it has bytes {where} that belong to no entry. Pack it again, as a plain zip")


def _bad64(what: str) -> BadZip:
    return BadZip(Reason.BAD_ZIP64, f"{what}. Pack it again")
