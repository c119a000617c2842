"""Writes zips of any kind, wrong ones included: every field can be given."""

import bz2
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cache

UNIX, DOS = 3 << 8 | 30, 20
STORED, DEFLATED, BZIP2 = 0, 8, 12
FILE, FOLDER = 0o100644, 0o040755
UTF8, DESCRIPTOR = 0x800, 0x8
MAX16, MAX32 = 0xFFFF, 0xFFFFFFFF
#: 1 March 2024, 12:00:00, as DOS counts.
TIME, DATE = 12 << 11, (2024 - 1980) << 9 | 3 << 5 | 1


@dataclass(frozen=True)
class Member:
    """One entry. `local` and `central` replace fields of its two headers; what is not given is right.

    Fields: version, flags, method, time, date, crc, packed, size, name, extra; central alone: made_by, comment, disk,
    attributes, at (where its header is).
    """

    name: bytes = b"a.txt"
    data: bytes = b"hello hello hello"
    method: int = DEFLATED
    flags: int = 0
    mode: int | None = FILE
    dos: int = 0
    made_by: int = UNIX
    packed: bytes | None = None
    extra: bytes = b""
    local: Mapping[str, object] = field(default_factory=dict)
    central: Mapping[str, object] = field(default_factory=dict)
    descriptor: bytes | None = None  # behind the data
    before: bytes = b""  # what stands before its header and belongs to nothing

    @property
    def packed_data(self) -> bytes:
        return pack(self.data, self.method) if self.packed is None else self.packed

    def fields(self) -> dict[str, object]:
        return {
            "version": 20, "flags": self.flags, "method": self.method, "time": TIME, "date": DATE,
            "crc": zlib.crc32(self.data), "packed": len(self.packed_data), "size": len(self.data),
            "name": self.name, "extra": self.extra,
        }  # fmt: skip

    def local_part(self) -> bytes:
        f = {**self.fields(), **self.local}
        head = struct.pack(
            "<4s5H3L2H", b"PK\x03\x04", f["version"], f["flags"], f["method"], f["time"], f["date"], f["crc"],
            f["packed"], f["size"], len(f["name"]), len(f["extra"]),
        )  # fmt: skip
        return head + f["name"] + f["extra"] + self.packed_data + (self.descriptor or b"")

    def central_part(self, at: int) -> bytes:
        attributes = (self.mode or 0) << 16 | self.dos
        f = {**self.fields(), "made_by": self.made_by, "comment": b"", "disk": 0, "attributes": attributes, "at": at}
        f |= self.central
        head = struct.pack(
            "<4s6H3L5H2L", b"PK\x01\x02", f["made_by"], f["version"], f["flags"], f["method"], f["time"], f["date"],
            f["crc"], f["packed"], f["size"], len(f["name"]), len(f["extra"]), len(f["comment"]), f["disk"], 0,
            f["attributes"], f["at"],
        )  # fmt: skip
        return head + f["name"] + f["extra"] + f["comment"]


@cache
def pack(data: bytes, method: int) -> bytes:
    if method == DEFLATED:
        packer = zlib.compressobj(9, zlib.DEFLATED, -15)
        return packer.compress(data) + packer.flush()
    return bz2.compress(data) if method == BZIP2 else data


def folder(name: bytes, **more: object) -> Member:
    return Member(name, b"", STORED, mode=FOLDER, dos=0x10, **more)


def extra(number: int, content: bytes) -> bytes:
    return struct.pack("<2H", number, len(content)) + content


def streamed(name: bytes, data: bytes = b"stream", *, form: str = "<4sLLL", **more: object) -> Member:
    """A file whose sizes stand behind it, because its writer could not go back."""
    packed = pack(data, DEFLATED)
    numbers = (zlib.crc32(data), len(packed), len(data))
    mark = (b"PK\x07\x08",) if form.startswith("<4s") else ()
    return Member(
        name, data, flags=DESCRIPTOR, local={"crc": 0, "packed": 0, "size": 0},
        descriptor=struct.pack(form, *mark, *numbers), **more,
    )  # fmt: skip


def build(
    *members: Member,
    comment: bytes = b"",
    before: bytes = b"",
    between: bytes = b"",
    behind: bytes = b"",
    end: Mapping[str, int] | None = None,
    end64: Mapping[str, int] | None = None,
    shift: int = 0,
) -> bytes:
    """Return a zip.

    Args:
        before: stands in front; offsets count from behind it, but for *shift*.
        between: stands between the directory and its end.
        behind: stands behind all.
        end: fields of the end record: disk, directory_disk, here, count, size, at, comment_size.
        end64: those of a 64-bit end record, which is written if this is given; also rest, record_at, disks.
        shift: is added to all offsets.
    """
    out, heads = bytearray(before), []
    for member in members:
        out += member.before
        heads.append(member.central_part(len(out) - len(before) + shift))
        out += member.local_part()
    at, directory = len(out) - len(before) + shift, b"".join(heads)
    out += directory + between
    right = {"disk": 0, "directory_disk": 0, "here": len(members), "count": len(members), "size": len(directory)}
    if end64 is not None or len(members) > MAX16:
        f = {**right, "at": at, "rest": 44, "record_at": len(out), "disks": 1, **(end64 or {})}
        out += struct.pack(
            "<4sQ2H2L4Q", b"PK\x06\x06", f["rest"], 45, 45, f["disk"], f["directory_disk"], f["here"], f["count"],
            f["size"], f["at"],
        )  # fmt: skip
        out += struct.pack("<4sLQL", b"PK\x06\x07", 0, f["record_at"], f["disks"])
    right["here"] = right["count"] = min(len(members), MAX16)
    f = {**right, "at": at, "comment_size": len(comment), **(end or {})}
    numbers = (f["disk"], f["directory_disk"], f["here"], f["count"], f["size"], f["at"], f["comment_size"])
    return bytes(out) + struct.pack("<4s4H2LH", b"PK\x05\x06", *numbers) + comment + behind
