"""Zips that must be refused, each with the reason, and with a piece of the entry's name if it is one's fault."""

import struct
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cache

from shared.zipguard import Reason
from tests.zips.builder import (
    BZIP2,
    DEFLATED,
    DESCRIPTOR,
    FILE,
    FOLDER,
    MAX16,
    MAX32,
    STORED,
    UTF8,
    Member,
    build,
    extra,
    folder,
    pack,
    streamed,
)  # fmt: skip

FINE = Member(b"fine.txt")


@dataclass(frozen=True)
class Hostile:
    """A zip that must be refused.

    Attributes:
        named: stands in the message.
        at_upload: whether the directory alone shows it (of a zip too large for the gateway to keep).
        limits: of the guard, where the usual ones would make the zip large.
    """

    make: Callable[[], bytes]
    reason: Reason
    named: str = ""
    at_upload: bool = True
    limits: Mapping[str, int] = field(default_factory=dict)


def bad(name: bytes, reason: Reason, named: str | None = None, **more: object) -> Hostile:
    return Hostile(lambda: build(FINE, Member(name, **more)), reason, name.decode() if named is None else named)


def one(reason: Reason, *, at_upload: bool = True, name: bytes = b"bad.bin", **more: object) -> Hostile:
    return Hostile(lambda: build(FINE, Member(name, **more)), reason, "bad.bin", at_upload)


def raw(make: Callable[[], bytes], reason: Reason, named: str = "", **limits: int) -> Hostile:
    return Hostile(make, reason, named, limits=limits)


def unicode_name(of: bytes, name: bytes) -> bytes:
    return extra(0x7075, struct.pack("<BL", 1, zlib.crc32(of)) + name)


@cache
def zeros(mib: int) -> bytes:
    """That many MiB of zeros, deflated."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    return b"".join(packer.compress(bytes(2**20)) for _ in range(mib)) + packer.flush()


def shared_kernel(count: int, mib: int = 64, step: int = 0) -> bytes:
    """*count* entries over one packed kernel: 75 KB that claim gigabytes (Fifield's bomb)."""
    kernel, size = zeros(mib), mib * 2**20
    member = Member(b"f0000", b"", packed=kernel, local={"size": size, "crc": 7}, central={"size": size, "crc": 7})
    heads = b"".join(
        Member(b"f%04d" % n, b"", packed=kernel, central={"size": size, "crc": 7}).central_part(n * step)
        for n in range(count)
    )
    body = member.local_part()
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, len(heads), len(body), 0)
    return body + heads + end


def quoted() -> bytes:
    """Each entry's data holds the next one's header: overlapping, though no header is shared."""
    inner = Member(b"inner.txt", b"x" * 50, STORED)
    outer = Member(b"outer.txt", inner.local_part(), STORED)
    at = 30 + len(outer.name)
    directory = outer.central_part(0) + inner.central_part(at)
    end = struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), len(outer.local_part()), 0)
    return outer.local_part() + directory + end


def many(count: int, name: Callable[[int], bytes]) -> bytes:
    return build(*(Member(name(n), b"", STORED) for n in range(count)))


def in_a_comment() -> bytes:
    """A second, whole zip in the comment of the first: which one is read depends on the reader."""
    inner = build(Member(b"other.txt"))
    outer = build(FINE)
    inner = build(Member(b"other.txt"), shift=len(outer))
    return outer[:-2] + struct.pack("<H", len(inner)) + inner


def swapped_headers() -> bytes:
    """The directory gives two entries each other's place."""
    first, second = Member(b"one", b"1" * 20, STORED), Member(b"two", b"2" * 20, STORED)
    size = len(first.local_part())
    body = first.local_part() + second.local_part()
    directory = first.central_part(size) + second.central_part(0)
    return body + directory + struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, 2, 2, len(directory), len(body), 0)


def damaged(at: bytes, offset: int, new: bytes) -> bytes:
    body = bytearray(build(FINE, Member(b"bad.bin")))
    place = body.rindex(at) + offset
    body[place : place + len(new)] = new
    return bytes(body)


CLAIM = {"size": 257 * 2**20}
BIG = 5 * 2**32
FULL64 = extra(1, struct.pack("<QQQ", BIG, 19, 0))
R = Reason

HOSTILE: dict[str, Hostile] = {
    # --- no zip, or not all of one ---
    "nothing": raw(lambda: b"", R.NOT_A_ZIP),
    "text": raw(lambda: b"hello", R.NOT_A_ZIP),
    "zeros": raw(lambda: bytes(100_000), R.NOT_A_ZIP),
    "a header alone": raw(lambda: b"PK\x03\x04", R.NOT_A_ZIP),
    "an end of nonsense": raw(lambda: b"PK\x05\x06" + b"\xff" * 18, R.TRUNCATED),
    "without its end": raw(lambda: build(FINE)[:-22], R.NOT_A_ZIP),
    "cut in its end": raw(lambda: build(FINE)[:-1], R.TRUNCATED),
    "cut in its comment": raw(lambda: build(FINE, comment=b"a comment")[:-3], R.TRUNCATED),
    "without its first bytes": raw(lambda: build(FINE)[9:], R.TRUNCATED),
    "without entries": raw(build, R.EMPTY),
    "of folders alone": raw(lambda: build(folder(b"a/"), folder(b"b/")), R.EMPTY),
    "of macOS's additions alone": raw(lambda: build(Member(b"__MACOSX/._a")), R.EMPTY),
    # --- names ---
    "absolute": bad(b"/etc/passwd", R.ABSOLUTE),
    "two slashes": bad(b"//server/share", R.ABSOLUTE),
    "a drive": bad(b"C:/x", R.ABSOLUTE),
    "a drive without a slash": bad(b"c:x", R.ABSOLUTE),
    "upwards": bad(b"../x", R.UPWARDS),
    "upwards from inside": bad(b"a/../../x", R.UPWARDS),
    "upwards at the end": bad(b"a/b/..", R.UPWARDS),
    "upwards and back": bad(b"a/../b", R.UPWARDS),
    "upwards after dots": bad(b"././../x", R.UPWARDS),
    "a folder upwards": Hostile(lambda: build(FINE, folder(b"../d/")), R.UPWARDS, "../d/"),
    "the parent itself": Hostile(lambda: build(FINE, folder(b"../")), R.UPWARDS, "../"),
    "macOS's folder upwards": bad(b"__MACOSX/../../x", R.UPWARDS),
    "backslashes": bad(b"a\\b", R.BACKSLASH, "a\\\\b"),
    "backslashes upwards": bad(b"..\\..\\x", R.BACKSLASH, "..\\\\..\\\\x"),
    "a share of Windows": bad(b"\\\\host\\share", R.BACKSLASH, "host"),
    "a NUL": bad(b"evil.sh\0.txt", R.CONTROL_CHARACTER, "evil.sh"),
    "a line feed": bad(b"a\nb", R.CONTROL_CHARACTER, "a\\nb"),
    "an escape sequence": bad(b"\x1b[2Jx", R.CONTROL_CHARACTER, "[2Jx"),
    "a delete": bad(b"a\x7fb", R.CONTROL_CHARACTER, "a\\x7fb"),
    "a C1 control": bad("a\x9bb".encode(), R.CONTROL_CHARACTER, "a\\x9bb"),
    "a stream of NTFS": bad(b"a.txt:hidden", R.COLON),
    "a data stream of NTFS": bad(b"d/a::$DATA", R.COLON),
    "no name": bad(b"", R.NO_NAME),
    "a dot": bad(b".", R.NO_NAME),
    "a name too long": bad(b"x" * 256, R.NAME_LENGTH, "xxx"),
    "a name too long in bytes": bad("é".encode() * 130, R.NAME_LENGTH, "ééé"),
    "a path too long": bad(b"/".join([b"y" * 200] * 12), R.NAME_LENGTH, "yyy"),
    "nested too deep": bad(b"/".join([b"d"] * 65), R.DEPTH, "d/d/d"),
    "not UTF-8, though it says so": bad(b"\xff\xfe.txt", R.NAME_ENCODING, ".txt", flags=UTF8),
    "an overlong slash": bad(b"a\xc0\xafb", R.NAME_ENCODING, "a", flags=UTF8),
    "half a surrogate": bad(b"a\xed\xa0\x80", R.NAME_ENCODING, "a", flags=UTF8),
    "a Unicode name upwards": Hostile(
        lambda: build(FINE, Member(b"plain", extra=unicode_name(b"plain", b"../../x"))), R.UPWARDS, "../../x"
    ),
    "upwards, with a harmless Unicode name": Hostile(
        lambda: build(FINE, Member(b"../../x", extra=unicode_name(b"../../x", b"plain"))), R.UPWARDS, "../../x"
    ),
    "another entry's Unicode name": Hostile(
        lambda: build(FINE, Member(b"plain", extra=unicode_name(b"other", b"x"))), R.HEADERS_DIFFER, "plain"
    ),
    "a Unicode name that is a folder": Hostile(
        lambda: build(FINE, Member(b"plain", extra=unicode_name(b"plain", b"x/"))), R.HEADERS_DIFFER, "plain"
    ),
    # --- two for one place ---
    "twice": raw(lambda: build(Member(b"a"), Member(b"a")), R.DUPLICATE, "'a'"),
    "twice but for case": raw(lambda: build(Member(b"Read.me"), Member(b"README"), Member(b"read.ME")), R.DUPLICATE),
    "twice but for accents": raw(
        lambda: build(Member("é".encode(), flags=UTF8), Member("e\u0301".encode(), flags=UTF8)), R.DUPLICATE
    ),
    "twice but for sharp s": raw(
        lambda: build(Member("straße".encode(), flags=UTF8), Member(b"STRASSE")), R.DUPLICATE, "STRASSE"
    ),
    "twice but for a dot": raw(lambda: build(Member(b"x"), Member(b"./x")), R.DUPLICATE, "./x"),
    "twice but for slashes": raw(lambda: build(Member(b"a/x"), Member(b"a//x")), R.DUPLICATE, "a//x"),
    "twice but for a code page": raw(
        lambda: build(Member(b"\x81", flags=0), Member("ü".encode(), flags=UTF8)), R.DUPLICATE
    ),
    "a folder twice": raw(lambda: build(FINE, folder(b"d/"), folder(b"D/")), R.DUPLICATE, "D/"),
    "folders that differ in case": raw(lambda: build(Member(b"Src/a"), Member(b"src/b")), R.DUPLICATE, "src/b"),
    "a file under a file": raw(lambda: build(Member(b"a"), Member(b"a/b")), R.FILE_AND_FOLDER, "a/b"),
    "a file under a file, the other way round": raw(lambda: build(Member(b"a/b"), Member(b"a")), R.FILE_AND_FOLDER),
    "a file under a file in other case": raw(lambda: build(Member(b"A"), Member(b"a/b")), R.FILE_AND_FOLDER, "a/b"),
    "a file deep under a file": raw(lambda: build(Member(b"a/b"), Member(b"a/b/c/d")), R.FILE_AND_FOLDER, "a/b/c/d"),
    "a file and a folder": raw(lambda: build(Member(b"a"), folder(b"a/")), R.FILE_AND_FOLDER, "a/"),
    # --- kinds ---
    "a link": one(R.SPECIAL_FILE, data=b"/etc/passwd", mode=0o120777),
    "a link, and a file through it": raw(
        lambda: build(Member(b"l", b"/tmp", mode=0o120777), Member(b"l/x")), R.SPECIAL_FILE, "'l'"
    ),
    "a pipe": one(R.SPECIAL_FILE, mode=0o010644),
    "a character device": one(R.SPECIAL_FILE, mode=0o020644),
    "a block device": one(R.SPECIAL_FILE, mode=0o060644),
    "a socket": one(R.SPECIAL_FILE, mode=0o140644),
    "a kind that is none": one(R.SPECIAL_FILE, mode=0o170644),
    "a junction of Windows": one(R.SPECIAL_FILE, mode=None, dos=0x400),
    "set-user": one(R.SET_ID, mode=0o104755),
    "set-group": one(R.SET_ID, mode=0o102755),
    "a folder with a file's mode": raw(
        lambda: build(FINE, Member(b"d/", b"", STORED, mode=FILE)), R.FILE_AND_FOLDER, "d/"
    ),
    "a file with a folder's mode": one(R.FILE_AND_FOLDER, mode=FOLDER),
    "a file that DOS has as a folder": one(R.FILE_AND_FOLDER, mode=None, dos=0x10),
    "a folder with content": raw(
        lambda: build(FINE, Member(b"d/", b"hidden", mode=FOLDER)), R.FOLDER_WITH_CONTENT, "d/"
    ),
    "encrypted": one(R.ENCRYPTED, flags=0x1),
    "strongly encrypted": one(R.ENCRYPTED, flags=0x41),
    "masked headers": one(R.ENCRYPTED, flags=0x2000),
    "AES": one(R.METHOD, method=99),
    "a patch": one(R.METHOD, flags=0x20),
    "LZMA": one(R.METHOD, method=14),
    "deflate64": one(R.METHOD, method=9),
    "zstandard": one(R.METHOD, method=93),
    "a method that is none": one(R.METHOD, method=1234),
    # --- sizes ---
    "more than it claims": one(R.WRONG_SIZE, packed=pack(bytes(2**20), DEFLATED), at_upload=False),
    "a quarter of a gigabyte that claims ten bytes": Hostile(
        lambda: build(FINE, Member(b"bad.bin", b"0123456789", packed=zeros(257))),
        R.WRONG_SIZE, "bad.bin", at_upload=False,
    ),
    "bzip2, more than it claims": one(
        R.WRONG_SIZE, method=BZIP2, packed=pack(bytes(2**25), BZIP2), at_upload=False
    ),
    "less than it claims": one(R.WRONG_SIZE, data=bytes(50), packed=pack(bytes(40), DEFLATED), at_upload=False),
    "stored with two sizes": one(R.WRONG_SIZE, method=STORED, packed=b"hel"),
    "another checksum": one(R.CHECKSUM, local={"crc": 1}, central={"crc": 1}, at_upload=False),
    "no deflate": one(R.BROKEN_DATA, packed=b"\xff" * 40, at_upload=False),
    "no bzip2": one(R.BROKEN_DATA, method=BZIP2, packed=b"BZh9" + b"x" * 40, at_upload=False),
    "deflate without its end": one(
        R.BROKEN_DATA, data=bytes(5000), packed=pack(bytes(5000), DEFLATED)[:-3], at_upload=False
    ),
    "bytes behind deflate's end": one(
        R.BROKEN_DATA, packed=pack(Member().data, DEFLATED) + b"hidden", at_upload=False
    ),
    "a second bzip2 stream": one(
        R.BROKEN_DATA, method=BZIP2, packed=pack(Member().data, BZIP2) + pack(b"x", BZIP2), at_upload=False
    ),
    "a terabyte in a file": one(
        R.FILE_SIZE, local={"packed": MAX32, "size": MAX32, "extra": extra(1, struct.pack("<QQ", 2**40, 19))},
        central={"size": MAX32, "extra": extra(1, struct.pack("<Q", 2**40))},
    ),
    "gigabytes in all": raw(
        lambda: build(*(Member(b"%d" % n, b"x" * 600) for n in range(2))), R.TOTAL_SIZE, total_bytes=1000
    ),
    "a thousand to one": raw(
        lambda: build(Member(b"x", local=CLAIM, central=CLAIM, packed=zeros(257))), R.RATIO
    ),
    "one file too large": raw(lambda: build(Member(b"bad.bin", b"x" * 11)), R.FILE_SIZE, "bad.bin", file_bytes=10),
    "too many": raw(lambda: many(100_001, lambda n: b"%06d" % n), R.TOO_MANY),
    "as many as may be, and the last one leads out": raw(
        lambda: many(100_000, lambda n: b"%06d" % n if n < 99_999 else b"../x"), R.UPWARDS, "../x"
    ),
    "too many folders that paths imply": raw(
        lambda: many(3000, lambda n: b"/".join([b"%05d" % n] * 60)), R.TOO_MANY
    ),
    "a huge directory": raw(
        lambda: build(*(Member(b"%05d" % n, central={"comment": bytes(65_535)}) for n in range(600))),
        R.DIRECTORY_SIZE,
    ),
    "all in one place": raw(lambda: shared_kernel(200), R.OVERLAP, "f000"),
    "each a byte further": raw(lambda: shared_kernel(200, step=1), R.OVERLAP, "f000"),
    "one inside the other": raw(quoted, R.OVERLAP, "inner.txt"),
    "over the directory": one(R.OVERLAP, central={"packed": 10_000}),
    "beyond the end": one(R.OVERLAP, central={"at": 2**31}),
    # --- what contradicts itself ---
    "each other's places": Hostile(swapped_headers, R.HEADERS_DIFFER, "'one'", at_upload=False),
    "two names": one(R.HEADERS_DIFFER, local={"name": b"../../x"}, at_upload=False),
    "two names of one length": one(R.HEADERS_DIFFER, local={"name": b"gut.bin"}, at_upload=False),
    "two methods": one(R.HEADERS_DIFFER, method=STORED, local={"method": DEFLATED}, at_upload=False),
    "two sizes": one(R.HEADERS_DIFFER, local={"size": 5}, at_upload=False),
    "two packed sizes": one(R.HEADERS_DIFFER, local={"packed": 5}, at_upload=False),
    "two checksums": one(R.HEADERS_DIFFER, local={"crc": 5}, at_upload=False),
    "encrypted in one header": one(R.HEADERS_DIFFER, local={"flags": 1}, at_upload=False),
    "UTF-8 in one header": one(R.HEADERS_DIFFER, local={"flags": UTF8}, at_upload=False),
    "two Unicode names": one(
        R.HEADERS_DIFFER, extra=unicode_name(b"bad.bin", b"x"), at_upload=False,
        local={"extra": unicode_name(b"bad.bin", b"y")},
    ),
    "a descriptor with other sizes": Hostile(
        lambda: build(FINE, Member(b"bad.bin", flags=DESCRIPTOR, descriptor=b"PK\x07\x08" + bytes(12))),
        R.HEADERS_DIFFER, "bad.bin", at_upload=False,
    ),
    "no descriptor": one(R.HEADERS_DIFFER, flags=DESCRIPTOR, at_upload=False),
    "no header": Hostile(lambda: damaged(b"PK\x03\x04", 0, b"PK\x03\x05"), R.DAMAGED, "bad.bin", at_upload=False),
    "a damaged directory": raw(lambda: damaged(b"PK\x01\x02", 0, b"PK\x01\x03"), R.DAMAGED),
    "extra fields too long": one(R.DAMAGED, extra=struct.pack("<2H", 0x5455, 99) + b"x"),
    "extra fields with a rest": one(R.DAMAGED, extra=b"xyz"),
    "an extra field twice": one(R.DAMAGED, extra=extra(0x7075, b"x") * 2),
    "a local extra field too long": one(
        R.DAMAGED, local={"extra": struct.pack("<2H", 0x5455, 99) + b"x"}, at_upload=False
    ),
    "more entries than it says": raw(lambda: build(FINE, Member(b"b"), end={"here": 1, "count": 1}), R.FOREIGN_BYTES),
    "fewer entries than it says": raw(lambda: build(FINE, end={"here": 2, "count": 2}), R.DAMAGED),
    "far fewer entries than it says": raw(lambda: build(FINE, end={"here": 60_000, "count": 60_000}), R.DAMAGED),
    "no entries, it says": raw(lambda: build(FINE, end={"here": 0, "count": 0}), R.DAMAGED),
    "a directory larger than the file": raw(lambda: build(FINE, end={"size": 2**31}), R.TRUNCATED),
    "a directory smaller than it is": raw(lambda: build(FINE, end={"size": 20}), R.FOREIGN_BYTES),
    "a directory elsewhere": raw(lambda: build(FINE, end={"at": 3}), R.FOREIGN_BYTES),
    # --- what is read by some and not by others ---
    "a script in front": raw(lambda: build(FINE, before=b"#!/bin/sh\n"), R.FOREIGN_BYTES),
    "a script in front, counted": raw(lambda: build(FINE, before=b"#!/bin/sh\n", shift=10), R.FOREIGN_BYTES),
    "bytes behind": raw(lambda: build(FINE, behind=b"more"), R.FOREIGN_BYTES),
    "bytes between directory and end": raw(lambda: build(FINE, between=b"more"), R.FOREIGN_BYTES),
    "bytes between entries": Hostile(
        lambda: build(FINE, Member(b"b", before=b"hidden")), R.FOREIGN_BYTES, "fine.txt", at_upload=False
    ),
    "an entry that the directory does not list": Hostile(
        lambda: build(FINE, Member(b"b", before=Member(b"../x").local_part())),
        R.FOREIGN_BYTES, "fine.txt", at_upload=False,
    ),
    "an unlisted entry in front": raw(lambda: build(Member(b"b", before=Member(b"x").local_part())), R.FOREIGN_BYTES),
    "a zip in the comment": raw(in_a_comment, R.AMBIGUOUS_END),
    "an end in the comment": raw(lambda: build(FINE, comment=b"PK\x05\x06" + bytes(18)), R.AMBIGUOUS_END),
    "the mark of an end in the comment": raw(lambda: build(FINE, comment=b"x PK\x05\x06 x"), R.AMBIGUOUS_END),
    "a comment longer than it says": raw(
        lambda: build(FINE, comment=b"long", end={"comment_size": 2}), R.FOREIGN_BYTES
    ),
    "a comment shorter than it says": raw(lambda: build(FINE, comment=b"x", end={"comment_size": 9}), R.TRUNCATED),
    "the second of two parts": raw(lambda: build(FINE, end={"disk": 1, "directory_disk": 1}), R.MULTI_DISK),
    "entries on another disk": raw(lambda: build(FINE, end={"here": 0}), R.MULTI_DISK),
    "an entry on another disk": one(R.MULTI_DISK, central={"disk": 1}),
    # --- 64 bits ---
    "no 64-bit field": one(R.BAD_ZIP64, central={"size": MAX32}),
    "a 64-bit field too short": one(R.BAD_ZIP64, central={"size": MAX32, "packed": MAX32, "extra": extra(1, bytes(8))}),
    "a 64-bit field too long": one(R.BAD_ZIP64, central={"at": MAX32, "extra": FULL64}),
    "a 64-bit field with another size": one(R.BAD_ZIP64, central={"extra": FULL64}),
    "a 64-bit place at the end of time": one(
        R.OVERLAP, central={"at": MAX32, "extra": extra(1, struct.pack("<Q", 2**64 - 1))}
    ),
    "a local 64-bit field with another size": one(
        R.HEADERS_DIFFER, local={"extra": extra(1, struct.pack("<QQ", BIG, 19))}, at_upload=False
    ),
    "no local 64-bit field": one(R.BAD_ZIP64, local={"size": MAX32, "packed": MAX32}, at_upload=False),
    "two ends that differ in number": raw(lambda: build(FINE, end64={"here": 9, "count": 9}), R.BAD_ZIP64),
    "two ends that differ in place": raw(lambda: build(FINE, end64={"at": 9}), R.BAD_ZIP64),
    "a 64-bit end elsewhere": raw(lambda: build(FINE, end64={"record_at": 3}), R.BAD_ZIP64),
    "a 64-bit end of another length": raw(lambda: build(FINE, end64={"rest": 2**40}), R.BAD_ZIP64),
    "a 64-bit end with a huge directory": raw(
        lambda: build(FINE, end={"size": MAX32}, end64={"size": 2**63}), R.TRUNCATED
    ),
    "a 64-bit end with a huge number": raw(
        lambda: build(FINE, end={"here": MAX16, "count": MAX16}, end64={"here": 2**60, "count": 2**60}), R.DAMAGED
    ),
    "several disks in 64 bits": raw(lambda: build(FINE, end64={"disks": 3}), R.MULTI_DISK),
    "another disk in 64 bits": raw(
        lambda: build(FINE, end={"disk": MAX16}, end64={"disk": 7}), R.MULTI_DISK
    ),
    "a descriptor in front of hidden bytes": Hostile(
        lambda: build(streamed(b"s.txt"), Member(b"b", before=b"x" * 40)), R.FOREIGN_BYTES, "s.txt", at_upload=False
    ),
}  # fmt: skip
