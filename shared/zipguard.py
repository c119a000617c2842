"""The zip guard: what of a zip may be unpacked, judged before a byte of it is, and counted while it is.

`inspect` reads the directory and compares each entry's own header with it; `Archive.read` gives one entry's bytes and
holds them to what was said. Both gateway and node agent use this; neither reads a zip in another way.
"""

import bz2
import stat
import zlib
from array import array
from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import pairwise
from typing import BinaryIO

from shared import zip_records
from shared.zip_names import Places, is_litter, names_of, parts_of
from shared.zip_records import BadZip, Reason, Record

__all__ = ["Archive", "BadZip", "Limits", "Reason", "ZipEntry", "inspect"]

_STORED, _DEFLATED, _DEFLATE64, _BZIP2 = 0, 8, 9, 12
_METHODS = frozenset({_STORED, _DEFLATED, _BZIP2})  # LZMA may claim gigabytes of memory
_PIECE_BYTES = 256 * 1024
_PACKED_PIECE_BYTES = 64 * 1024
_LOCAL_HEADER_BYTES = 30
_DOS_FOLDER, _DOS_DEVICE, _DOS_REPARSE_POINT = 0x10, 0x40, 0x400
#: An empty folder may be "packed": deflate needs two bytes for nothing, bzip2 fourteen.
_PACKED_NOTHING_BYTES = 14
_EPOCH = 315_532_800  # 1980: what a zip without a time means


@dataclass(frozen=True, slots=True)
class Limits:
    """What a zip may claim. Sizes in bytes.

    Attributes:
        entries: files and folders, with folders that paths only imply.
        ratio: unpacked to packed size of the whole; looked at only where the unpacked size is above `ratio_from`.
        depth: names in a path.
        directory_bytes: of the list of entries that ends every zip.
    """

    entries: int = 100_000
    total_bytes: int = 64 * 1024**3
    file_bytes: int = 64 * 1024**3
    ratio: int = 250
    ratio_from: int = 256 * 1024**2
    depth: int = 64
    name_bytes: int = 255
    path_bytes: int = 2048
    directory_bytes: int = 32 * 1024**2


@dataclass(frozen=True, slots=True)
class ZipEntry:
    """One file or folder of a zip that was found to be harmless.

    Attributes:
        path: relative, with forward slashes, without `.` or `..`.
        size: bytes after unpacking, as claimed; `Archive.read` holds it to that.
        mode: permission bits.
        mtime: seconds since the epoch; a zip does not say in which time zone, so UTC is taken.
        record: what the directory says of it.
    """

    path: str
    is_dir: bool
    size: int
    mode: int
    mtime: int
    record: Record


def inspect(file: BinaryIO, limits: Limits = Limits(), *, headers: bool = True) -> "Archive":
    """Return the zip in *file*, judged. Memory: about 200 bytes an entry, however long its names are.

    Args:
        file: is read by `Archive` too; it must stay open and must not change.
        limits: what it may claim.
        headers: whether to compare each entry's own header with the directory. Without, only the directory is read,
            and `Archive.read` compares what it reads.

    Raises:
        BadZip: ``bad_source``, naming the entry and what is wrong with it.
    """
    archive = Archive(file, limits)
    archive.check(headers=headers)
    return archive


class Archive:
    """A zip that was judged: iterate it for its entries, in the order of its directory, as often as you like.

    Folders that paths only imply are not listed, nor is what macOS adds (``__MACOSX/`` and ``Icon`` files).
    """

    def __init__(self, file: BinaryIO, limits: Limits) -> None:
        self._file = file
        self._limits = limits
        self._end = zip_records.find_end(file)
        self._starts: array[int] = array("Q")  # where entries begin, in order; then where the directory does

    def __iter__(self) -> Iterator[ZipEntry]:
        """Give the entries.

        Raises:
            BadZip: the file has changed.
        """
        for record in zip_records.records(self._file, self._end):
            name, parts = self._name(record)
            if parts and not is_litter(parts):
                yield _entry(record, name, parts)

    def __len__(self) -> int:
        """Return how many records the directory has."""
        return self._end.count

    def check(self, *, headers: bool) -> None:
        """Judge it; see `inspect`."""
        limits, end = self._limits, self._end
        if end.count > limits.entries:
            wrong = f"it has more than {limits.entries} entries. Pack some as a zip in the zip"
            raise BadZip(Reason.TOO_MANY, wrong)
        if end.size > limits.directory_bytes:
            wrong = f"its directory has {end.size} bytes, more than {limits.directory_bytes}. Use shorter names"
            raise BadZip(Reason.DIRECTORY_SIZE, wrong)
        self._check_entries()
        if headers:
            for record in zip_records.records(self._file, end):
                self._data_at(record)

    def read(self, entry: ZipEntry) -> Iterator[bytes]:
        """Give the content of a file in pieces of at most 256 KiB.

        Raises:
            BadZip: it is not what was said: another size or checksum, or damaged.
        """
        at, record = self._data_at(entry.record), entry.record
        given = crc = 0
        for piece in _unpacked(self._file, at, record):
            if not piece:
                continue
            given += len(piece)
            if given > record.size:
                raise BadZip(Reason.WRONG_SIZE, f"{record.shown} holds more than it claims. Pack it again")
            crc = zlib.crc32(piece, crc)
            yield piece
        if given != record.size:
            raise BadZip(Reason.WRONG_SIZE, f"{record.shown} holds less than it claims. Pack it again")
        if crc != record.crc:
            raise BadZip(Reason.CHECKSUM, f"{record.shown} has another checksum than it should. Send or pack it again")

    def _check_entries(self) -> None:
        places, files, total, packed = Places(self._limits.entries), 0, 0, 0
        starts, ends = array("Q"), array("Q")
        for record in zip_records.records(self._file, self._end):
            name, parts = self._name(record)
            is_dir = name.endswith("/")
            _check_kind(record, is_dir=is_dir)
            self._check_sizes(record)
            end = record.header_at + _LOCAL_HEADER_BYTES + len(record.name) + record.packed
            if end > self._end.start:
                raise BadZip(Reason.OVERLAP, f"{record.shown} overlaps the directory of the zip. Pack it again")
            if parts:
                places.add(name, parts, is_dir=is_dir)
            starts.append(record.header_at)
            ends.append(end)
            if not is_dir and not is_litter(parts):  # what is not unpacked takes no room
                files, total, packed = files + 1, total + record.size, packed + record.packed
        if not files:
            raise BadZip(Reason.EMPTY, "the zip is empty: it holds no file. Pack at least one")
        self._check_extents(starts, ends)
        self._check_total(total, packed)

    def _name(self, record: Record) -> tuple[str, list[str]]:
        names = names_of(record)
        if len({name.endswith("/") for name in names}) > 1:
            raise BadZip(Reason.HEADERS_DIFFER, f"{record.shown} is a folder by one name, a file by another. Rename it")
        limits = self._limits
        parts, *_ = (
            parts_of(name, depth=limits.depth, name_bytes=limits.name_bytes, path_bytes=limits.path_bytes)
            for name in names
        )
        return names[0], parts

    def _check_sizes(self, record: Record) -> None:
        if record.size > self._limits.file_bytes:
            wrong = f"{record.shown} has {record.size} bytes, more than {self._limits.file_bytes}. Leave it out"
            raise BadZip(Reason.FILE_SIZE, wrong)
        if record.method == _STORED and record.packed != record.size:
            raise BadZip(Reason.WRONG_SIZE, f"{record.shown} is not packed, yet claims two sizes. Pack it again")

    def _check_total(self, total: int, packed: int) -> None:
        limits = self._limits
        if total > limits.total_bytes:
            wrong = f"it unpacks to {total} bytes, more than {limits.total_bytes}. Pack less"
            raise BadZip(Reason.TOTAL_SIZE, wrong)
        if total > limits.ratio_from and total > packed * limits.ratio:
            times = total // max(packed, 1)
            wrong = f"it unpacks to {times} times its size, more than {limits.ratio}. Make such files in the job itself"
            raise BadZip(Reason.RATIO, wrong)

    def _check_extents(self, starts: "array[int]", ends: "array[int]") -> None:
        """Refuse entries that share bytes (a small file could claim any size), and bytes before the first."""
        order = sorted(range(len(starts)), key=starts.__getitem__)
        if starts[order[0]] != 0:
            raise BadZip(
                Reason.FOREIGN_BYTES, "it has bytes before its first entry that belong to none. Pack it as a plain zip"
            )
        for one, next_ in pairwise(order):
            if starts[next_] < ends[one]:
                names = [record.shown for record in zip_records.records(self._file, self._end)]
                raise BadZip(Reason.OVERLAP, f"{names[next_]} overlaps {names[one]}. Pack it again")
        self._starts = array("Q", (starts[at] for at in order))
        self._starts.append(self._end.start)

    def _data_at(self, record: Record) -> int:
        behind = self._starts[bisect_right(self._starts, record.header_at)]
        return zip_records.data_at(self._file, record, behind)


def _check_kind(record: Record, *, is_dir: bool) -> None:
    """Refuse what is neither a plain file nor a folder, or cannot be read."""
    mode = record.attributes >> 16
    kind = stat.S_IFMT(mode)
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR) or record.attributes & (_DOS_DEVICE | _DOS_REPARSE_POINT):
        wrong = (
            f"{record.shown} is a link or a device; only files and folders are taken. Put what it means in its place"
        )
        raise BadZip(Reason.SPECIAL_FILE, wrong)
    if record.flags & zip_records.ENCRYPTED_FLAGS:
        raise BadZip(Reason.ENCRYPTED, f"{record.shown} is encrypted. Pack it without a password")
    if record.method not in _METHODS or record.flags & zip_records.PATCH_FLAG:
        which = f"method {record.method}" + (" (deflate64)" if record.method == _DEFLATE64 else "")
        raise BadZip(Reason.METHOD, f"{record.shown} is packed by {which}; use deflate")
    if (is_dir and kind == stat.S_IFREG) or (not is_dir and (kind == stat.S_IFDIR or _is_dos_folder(record))):
        raise BadZip(Reason.FILE_AND_FOLDER, f"{record.shown} claims to be a file and a folder. Pack it again")
    if is_dir and (record.size or record.crc or record.packed > _PACKED_NOTHING_BYTES):
        raise BadZip(Reason.FOLDER_WITH_CONTENT, f"{record.shown} is a folder with content of its own. Pack it again")
    if not is_dir and mode & (stat.S_ISUID | stat.S_ISGID):
        raise BadZip(Reason.SET_ID, f"{record.shown} has the set-user or set-group bit. Take it away (chmod ug-s)")


def _is_dos_folder(record: Record) -> bool:
    return record.attributes >> 16 == 0 and bool(record.attributes & _DOS_FOLDER)


def _entry(record: Record, name: str, parts: list[str]) -> ZipEntry:
    is_dir = name.endswith("/")
    # Zips made outside Unix, or by hand, carry no mode.
    mode = record.attributes >> 16 & 0o777 or (0o755 if is_dir else 0o644)
    return ZipEntry("/".join(parts), is_dir, record.size, mode, _mtime(record), record)


def _mtime(record: Record) -> int:
    year, month, day = (record.date >> 9) + 1980, record.date >> 5 & 15, record.date & 31
    hour, minute, second = record.time >> 11, record.time >> 5 & 63, (record.time & 31) * 2
    try:
        return int(datetime(year, month, day, hour, minute, second, tzinfo=UTC).timestamp())
    except ValueError:  # month 0 and the like
        return _EPOCH


def _unpacked(file: BinaryIO, at: int, record: Record) -> Iterator[bytes]:
    """Give what comes out of the packed bytes at *at*, all of which must be needed for it."""
    packed = _pieces(file, at, record.packed)
    if record.method == _STORED:
        yield from packed
        return
    unpacked = _inflated(packed) if record.method == _DEFLATED else _unbzipped(packed)
    try:
        yield from unpacked
    except zlib.error as error:
        raise BadZip(Reason.BROKEN_DATA, f"{record.shown} is damaged: {error}. Send or pack it again") from error


def _inflated(packed: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
    for piece in packed:
        _check_used(piece if unpacker.eof else b"")
        left, more = piece, True
        while more and not unpacker.eof:
            given = unpacker.decompress(left, _PIECE_BYTES)
            left = unpacker.unconsumed_tail
            more = bool(left) or len(given) == _PIECE_BYTES
            yield given
        _check_used(unpacker.unused_data)
    if not unpacker.eof:
        raise zlib.error("it ends in the middle")


def _unbzipped(packed: Iterator[bytes]) -> Iterator[bytes]:
    unpacker = bz2.BZ2Decompressor()
    for piece in packed:
        _check_used(piece if unpacker.eof else b"")
        yield _unbzipped_piece(unpacker, piece)
        while not (unpacker.eof or unpacker.needs_input):
            yield _unbzipped_piece(unpacker, b"")
        _check_used(unpacker.unused_data)
    if not unpacker.eof:
        raise zlib.error("it ends in the middle")


def _unbzipped_piece(unpacker: bz2.BZ2Decompressor, packed: bytes) -> bytes:
    try:
        return unpacker.decompress(packed, _PIECE_BYTES)
    except OSError as error:  # so it calls damage; a disk that cannot be read is something else
        raise zlib.error(str(error)) from error


def _check_used(rest: bytes) -> None:
    if rest:
        raise zlib.error("there are bytes behind its end")


def _pieces(file: BinaryIO, at: int, size: int) -> Iterator[bytes]:
    end = at + size
    while at < end:
        piece = zip_records.read_at(file, at, min(_PACKED_PIECE_BYTES, end - at))
        at += len(piece)
        yield piece
