"""Zips as common tools write them, with what they hold: recorded from the tools, or built field by field as they do."""

import base64
import io
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime

from services.gateway.core import zip64
from tests.zips.builder import BZIP2, DEFLATED, DOS, MAX16, MAX32, STORED, UTF8, Member, build, extra, folder, streamed

CSV = b"1,2\n" * 30
#: What the recorded ones hold: folders are None.
TREE: dict[str, bytes | None] = {"run.sh": b"echo hi\n", "empty": None, "sub": None, "sub/größe.csv": CSV}

# zip(1) 3.0 on Linux: `zip -r`, `zip -r - . | cat` and `zip -fz -r`, with its time and owner fields.
_INFOZIP = """
UEsDBAoAAAAAAABgYVgzRq4KCAAAAAgAAAAGABwAcnVuLnNoVVQJAANAw+FlQMPhZXV4CwABBAAAAAAEAAAAAGVjaG8gaGkKUEsDBAoAAAAAAABgYVgA
AAAAAAAAAAAAAAAGABwAZW1wdHkvVVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAFBLAwQKAAAAAAAAYGFYAAAAAAAAAAAAAAAABAAcAHN1Yi9VVAkA
A0DD4WUEkgJrdXgLAAEEAAAAAAQAAAAAUEsDBBQAAAAIAABgYVjQEiH8CQAAAHgAAAAPABwAc3ViL2dyw7bDn2UuY3N2VVQJAANAw+FlQMPhZXV4CwAB
BAAAAAAEAAAAADPUMeIyHAAMAFBLAQIeAwoAAAAAAABgYVgzRq4KCAAAAAgAAAAGABgAAAAAAAEAAADtgQAAAABydW4uc2hVVAUAA0DD4WV1eAsAAQQA
AAAABAAAAABQSwECHgMKAAAAAAAAYGFYAAAAAAAAAAAAAAAABgAYAAAAAAAAABAA7UFIAAAAZW1wdHkvVVQFAANAw+FldXgLAAEEAAAAAAQAAAAAUEsB
Ah4DCgAAAAAAAGBhWAAAAAAAAAAAAAAAAAQAGAAAAAAAAAAQAO1BiAAAAHN1Yi9VVAUAA0DD4WV1eAsAAQQAAAAABAAAAABQSwECHgMUAAAACAAAYGFY
0BIh/AkAAAB4AAAADwAYAAAAAAABAAAApIHGAAAAc3ViL2dyw7bDn2UuY3N2VVQFAANAw+FldXgLAAEEAAAAAAQAAAAAUEsFBgAAAAAEAAQANwEAABgB
AAAAAA==
"""
_INFOZIP_PIPE = """
UEsDBBQACAAIAABgYVgAAAAAAAAAAAgAAAAGABwAcnVuLnNoVVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAEtNzshXyMjkAgBQSwcIM0auCgoAAAAI
AAAAUEsDBAoAAAAAAABgYVgAAAAAAAAAAAAAAAAGABwAZW1wdHkvVVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAFBLAwQKAAAAAAAAYGFYAAAAAAAA
AAAAAAAABAAcAHN1Yi9VVAkAA0DD4WUEkgJrdXgLAAEEAAAAAAQAAAAAUEsDBBQACAAIAABgYVgAAAAAAAAAAHgAAAAPABwAc3ViL2dyw7bDn2UuY3N2
VVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAADPUMeIyHAAMAFBLBwjQEiH8CQAAAHgAAABQSwECHgMUAAgACAAAYGFYM0auCgoAAAAIAAAABgAYAAAA
AAABAAAA7YEAAAAAcnVuLnNoVVQFAANAw+FldXgLAAEEAAAAAAQAAAAAUEsBAh4DCgAAAAAAAGBhWAAAAAAAAAAAAAAAAAYAGAAAAAAAAAAQAO1BWgAA
AGVtcHR5L1VUBQADQMPhZXV4CwABBAAAAAAEAAAAAFBLAQIeAwoAAAAAAABgYVgAAAAAAAAAAAAAAAAEABgAAAAAAAAAEADtQZoAAABzdWIvVVQFAANA
w+FldXgLAAEEAAAAAAQAAAAAUEsBAh4DFAAIAAgAAGBhWNASIfwJAAAAeAAAAA8AGAAAAAAAAQAAAKSB2AAAAHN1Yi9ncsO2w59lLmNzdlVUBQADQMPh
ZXV4CwABBAAAAAAEAAAAAFBLBQYAAAAABAAEADcBAAA6AQAAAAA=
"""
_INFOZIP_64 = """
UEsDBC0AAAAAAABgYVgzRq4K//////////8GADAAcnVuLnNoVVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAAEAEAAIAAAAAAAAAAgAAAAAAAAAZWNo
byBoaQpQSwMELQAAAAAAAGBhWAAAAAD//////////wYAMABlbXB0eS9VVAkAA0DD4WUEkgJrdXgLAAEEAAAAAAQAAAAAAQAQAAAAAAAAAAAAAAAAAAAA
AABQSwMELQAAAAAAAGBhWAAAAAD//////////wQAMABzdWIvVVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAAEAEAAAAAAAAAAAAAAAAAAAAAAAUEsD
BC0AAAAIAABgYVjQEiH8//////////8PADAAc3ViL2dyw7bDn2UuY3N2VVQJAANAw+FlBJICa3V4CwABBAAAAAAEAAAAAAEAEAB4AAAAAAAAAAkAAAAA
AAAAM9Qx4jIcAAwAUEsBAh4DLQAAAAAAAGBhWDNGrgoIAAAA/////wYAJAAAAAAAAQAAAO2BAAAAAHJ1bi5zaFVUBQADQMPhZXV4CwABBAAAAAAEAAAA
AAEACAAIAAAAAAAAAFBLAQIeAwoAAAAAAABgYVgAAAAAAAAAAP////8GACQAAAAAAAAAEADtQVwAAABlbXB0eS9VVAUAA0DD4WV1eAsAAQQAAAAABAAA
AAABAAgAAAAAAAAAAABQSwECHgMKAAAAAAAAYGFYAAAAAAAAAAD/////BAAkAAAAAAAAABAA7UGwAAAAc3ViL1VUBQADQMPhZXV4CwABBAAAAAAEAAAA
AAEACAAAAAAAAAAAAFBLAQIeAy0AAAAIAABgYVjQEiH8CQAAAP////8PACQAAAAAAAEAAACkgQIBAABzdWIvZ3LDtsOfZS5jc3ZVVAUAA0DD4WV1eAsA
AQQAAAAABAAAAAABAAgAeAAAAAAAAABQSwYGLAAAAAAAAAAeAy0AAAAAAAAAAAAEAAAAAAAAAAQAAAAAAAAAZwEAAAAAAABoAQAAAAAAAFBLBgcAAAAA
zwIAAAAAAAABAAAAUEsFBgAAAAAEAAQAZwEAAP////8AAA==
"""
# git archive --format=zip: the commit is the comment; no empty folders.
_GIT = """
UEsDBAoAAAAAAAI3dl0zRq4KCAAAAAgAAAAGAAkAcnVuLnNoVVQFAAEEkgJrZWNobyBoaQpQSwMECgAAAAAAAjd2XQAAAAAAAAAAAAAAAAQACQBzdWIv
VVQFAAEEkgJrUEsDBAoAAAgIAAI3dl3QEiH8CQAAAHgAAAAPAAkAc3ViL2dyw7bDn2UuY3N2VVQFAAEEkgJrM9Qx4jIcAAwAUEsBAhcDCgAAAAAAAjd2
XTNGrgoIAAAACAAAAAYACQAAAAAAAQAAAO2BAAAAAHJ1bi5zaFVUBQABBJICa1BLAQIAAAoAAAAAAAI3dl0AAAAAAAAAAAAAAAAEAAkAAAAAAAAAEAAA
ADUAAABzdWIvVVQFAAEEkgJrUEsBAgAACgAACAgAAjd2XdASIfwJAAAAeAAAAA8ACQAAAAAAAQAAAAAAYAAAAHN1Yi9ncsO2w59lLmNzdlVUBQABBJIC
a1BLBQYAAAAAAwADAL4AAACfAAAAKAAwYmZhYTBmNWUxNzdiYzZiMmMyMThlNTUwY2RjZTZmNjAzYTM4OTgw
"""
# jar cf: a manifest, descriptors, no modes.
_JAR = """
UEsDBBQACAgIACU3dl0AAAAAAAAAAAAAAAAJAAQATUVUQS1JTkYv/soAAAMAUEsHCAAAAAACAAAAAAAAAFBLAwQUAAgICAAlN3ZdAAAAAAAAAAAAAAAA
FAAAAE1FVEEtSU5GL01BTklGRVNULk1G803My0xLLS7RDUstKs7Mz7NSMNQz4OVyLkpNLElN0XWqBAqY6xnoGZoqaLikJmUm5mnycvFyAQBQSwcIHbOz
mTgAAAA3AAAAUEsDBAoAAAgAAABgYVgAAAAAAAAAAAAAAAAGAAAAZW1wdHkvUEsDBBQACAgIAABgYVgAAAAAAAAAAAAAAAAGAAAAcnVuLnNoS03OyFfI
yOQCAFBLBwgzRq4KCgAAAAgAAABQSwMECgAACAAAAGBhWAAAAAAAAAAAAAAAAAQAAABzdWIvUEsDBBQACAgIAABgYVgAAAAAAAAAAAAAAAAPAAAAc3Vi
L2dyw7bDn2UuY3N2M9Qx4jIcAAwAUEsHCNASIfwJAAAAeAAAAFBLAQIUABQACAgIACU3dl0AAAAAAgAAAAAAAAAJAAQAAAAAAAAAAAAAAAAAAABNRVRB
LUlORi/+ygAAUEsBAhQAFAAICAgAJTd2XR2zs5k4AAAANwAAABQAAAAAAAAAAAAAAAAAPQAAAE1FVEEtSU5GL01BTklGRVNULk1GUEsBAgoACgAACAAA
AGBhWAAAAAAAAAAAAAAAAAYAAAAAAAAAAAAAAAAAtwAAAGVtcHR5L1BLAQIUABQACAgIAABgYVgzRq4KCgAAAAgAAAAGAAAAAAAAAAAAAAAAANsAAABy
dW4uc2hQSwECCgAKAAAIAAAAYGFYAAAAAAAAAAAAAAAABAAAAAAAAAAAAAAAAAAZAQAAc3ViL1BLAQIUABQACAgIAABgYVjQEiH8CQAAAHgAAAAPAAAA
AAAAAAAAAAAAADsBAABzdWIvZ3LDtsOfZS5jc3ZQSwUGAAAAAAYABgBUAQAAgQEAAAAA
"""


@dataclass(frozen=True)
class Good:
    """A zip that must work. `holds`: contents by path, None for a folder; `executable`: paths with that bit."""

    make: Callable[[], bytes]
    holds: Mapping[str, bytes | None]
    executable: frozenset[str] = frozenset()


def recorded(text: str, holds: Mapping[str, bytes | None] = TREE, *executable: str) -> Good:
    return Good(lambda: base64.b64decode(text), holds, frozenset(executable))


def made(holds: Mapping[str, bytes | None], *members: Member, **end: object) -> Good:
    return Good(lambda: build(*members, **end), holds)


def python(write: Callable[[zipfile.ZipFile], None], *, is_streamed: bool = False) -> Callable[[], bytes]:
    """Return what makes a zip by the standard library, to a file or to a pipe."""

    def make() -> bytes:
        out = io.BytesIO()
        sink = _Pipe(out) if is_streamed else out
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_DEFLATED) as archive:
            write(archive)
        return out.getvalue()

    return make


class _Pipe(io.RawIOBase):
    def __init__(self, out: io.BytesIO) -> None:
        super().__init__()
        self._out = out

    def writable(self) -> bool:
        return True

    def write(self, data: bytes) -> int:
        return self._out.write(data)


def _two(archive: zipfile.ZipFile) -> None:
    archive.writestr("lib/größe.py", b"x = 1\n" * 50)
    archive.mkdir("empty")
    with archive.open("big.bin", "w", force_zip64=True) as file:
        file.write(bytes(1000))


TWO = {"lib/größe.py": b"x = 1\n" * 50, "empty": None, "big.bin": bytes(1000)}


def outputs_of_a_job() -> bytes:
    """Return what the gateway gives as all outputs of a job: one job's results are the next one's source."""

    def parts() -> Iterator[bytes]:
        offset, directory = 0, b""
        for path, content in TREE.items():
            data = content or b""
            member = zip64.Member(path, len(data), 0o755 if content is None else 0o644, 1709294400.0, content is None)
            crc = zlib.crc32(data)
            piece = zip64.local_header(member) + data + zip64.descriptor(member, crc)
            directory += zip64.central_record(member, crc, offset)
            offset += len(piece)
            yield piece
        yield directory
        yield zip64.end(len(TREE), offset, len(directory))

    return b"".join(parts())


def _times(content: bytes) -> bytes:
    """Return the time fields as Info-ZIP, 7-Zip and macOS write them."""
    when = int(datetime(2024, 3, 1, 12, tzinfo=UTC).timestamp())
    ntfs = struct.pack("<LHHQQQ", 0, 1, 24, 0, 0, 0)
    return {b"UT": extra(0x5455, struct.pack("<Bl", 1, when)), b"NTFS": extra(0x000A, ntfs),
            b"UX": extra(0x5855, struct.pack("<2L2H", when, when, 501, 20))}[content]  # fmt: skip


def _mac(name: str, data: bytes) -> Member:
    """Return an entry of macOS's Archive Utility: accents apart from their letters, UTF-8 without its flag."""
    return streamed(name.encode(), data, form="<4sLLL", extra=_times(b"UX"), made_by=0x0315)


CP850 = "größe.txt".encode("cp850")
UNICODE_PATH = extra(0x7075, struct.pack("<BL", 1, zlib.crc32(CP850)) + "größe.txt".encode())
_JAVA = "META-INF/MANIFEST.MF"
JAR_MANIFEST = b"Manifest-Version: 1.0\r\nCreated-By: 17.0.15 (Debian)\r\n\r\n"

GOOD: dict[str, Good] = {
    "zip": recorded(_INFOZIP, TREE, "run.sh"),
    "zip to a pipe": recorded(_INFOZIP_PIPE, TREE, "run.sh"),
    "zip with 64-bit fields": recorded(_INFOZIP_64, TREE, "run.sh"),
    "git archive": recorded(_GIT, {path: data for path, data in TREE.items() if path != "empty"}, "run.sh"),
    "jar": recorded(_JAR, TREE | {"META-INF": None, _JAVA: JAR_MANIFEST}),
    "Python": Good(python(_two), TWO),
    "Python to a pipe": Good(python(_two, is_streamed=True), TWO),
    "outputs of a job": Good(outputs_of_a_job, TREE),
    "macOS": made(
        {"d": None, "d/run.sh": b"echo", "d/gro\u0308ße": b"1", "d/.DS_Store": b"\0\0\0\1Bud1"},
        folder(b"d/", extra=_times(b"UX"), made_by=0x0315),
        _mac("d/run.sh", b"echo"), _mac("__MACOSX/d/._run.sh", b"\0\5\x16\7"), _mac("d/gro\u0308ße", b"1"),
        folder(b"__MACOSX/d/"), _mac("d/.DS_Store", b"\0\0\0\1Bud1"), _mac("d/Icon\r", b""),
        _mac("__MACOSX/d/._Icon\r", b"\0\5\x16\7"),
    ),
    "Windows Explorer": made(
        {"d/a.txt": b"one", "d/größe.txt": b"two", "d/empty": None},
        Member(b"d/a.txt", b"one", mode=None, dos=0x20, made_by=DOS),
        Member("d/größe.txt".encode(), b"two", flags=UTF8, mode=None, dos=0x21, made_by=DOS),
        Member(b"d/empty/", b"", STORED, mode=None, dos=0x10, made_by=DOS),
    ),
    "Windows before UTF-8": made(
        {"größe.txt": b"two", "Ñandú": b"3"},
        Member("größe.txt".encode("cp437"), b"two", mode=None, dos=0x20, made_by=DOS),
        Member("Ñandú".encode("cp437"), b"3", mode=None, dos=0x20, made_by=DOS),
    ),
    ".NET": made(
        {"d/a.txt": b"one", "empty": None},
        Member(b"d/a.txt", b"one", mode=None, made_by=DOS, local={"version": 20}),
        Member(b"empty/", b"", STORED, mode=None, made_by=DOS),
    ),
    "7-Zip on Windows": made(
        {"d": None, "d/a.txt": b"one" * 99, "d/stored.png": b"png"},
        Member(b"d/", b"", STORED, mode=None, dos=0x10, made_by=63, central={"extra": _times(b"NTFS")}),
        Member(b"d/a.txt", b"one" * 99, mode=None, dos=0x20, made_by=63, central={"extra": _times(b"NTFS")}),
        Member(b"d/stored.png", b"png", STORED, mode=None, dos=0x20, made_by=63, central={"extra": _times(b"NTFS")}),
    ),
    "7-Zip on Linux": made(
        {"d/a.txt": b"one" * 99},
        Member(b"d/a.txt", b"one" * 99, dos=0x8020, made_by=0x033F, central={"extra": _times(b"NTFS")}),
    ),
    "7-Zip with bzip2": made({"a": b"one" * 99}, Member(b"a", b"one" * 99, BZIP2)),
    "Go": made(
        {"a.txt": b"one", "ü": b"two"},
        streamed(b"a.txt", b"one", mode=None, made_by=0), streamed("ü".encode(), b"two", made_by=0),
    ),
    "a descriptor without its mark": made({"a": b"one"}, streamed(b"a", b"one", form="<LLL")),
    "a descriptor of 64 bits": made({"a": b"one"}, streamed(b"a", b"one", form="<4sLQQ")),
    "a descriptor of 64 bits without its mark": made({"a": b"one"}, streamed(b"a", b"one", form="<LQQ")),
    "a code page and a Unicode name": made({"größe.txt": b"x"}, Member(CP850, b"x", extra=UNICODE_PATH)),
    "Java's folders, deflated": made(
        {"d": None, "d/a": b"x"}, Member(b"d/", b"", DEFLATED, mode=None), Member(b"d/a", b"x", mode=None)
    ),
    "zipalign": made({"a": b"x"}, Member(b"a", b"x", STORED, local={"extra": bytes(3)})),
    "64-bit fields where none are needed": made(
        {"a": b"one"},
        Member(
            b"a", b"one", STORED, local={"packed": MAX32, "size": MAX32, "extra": extra(1, struct.pack("<QQ", 3, 3))},
            central={"packed": MAX32, "size": MAX32, "at": MAX32, "extra": extra(1, struct.pack("<QQQ", 3, 3, 0))},
        ),
        end64={}, end={"here": MAX16, "count": MAX16, "size": MAX32, "at": MAX32},
    ),
    "a 64-bit field that only repeats": made(
        {"a": b"one"}, Member(b"a", b"one", STORED, extra=extra(1, struct.pack("<QQ", 3, 3)))
    ),
    "a comment": made({"a.txt": Member().data}, Member(), comment="größe, packed by hand".encode()),
    "a zip in the zip": Good(
        lambda: build(Member(b"inner.zip", build(Member()), STORED)), {"inner.zip": build(Member())}
    ),
    "names that only Windows reserves": made({"aux.c": b"1", "con": b"2", "a.": b"3"}, Member(b"aux.c", b"1"),
                                             Member(b"con", b"2"), Member(b"a.", b"3")),
    "dots and slashes": made({"a/b": b"1"}, folder(b"./"), Member(b"./a//b", b"1")),
    "no time": made({"a": b"1"}, Member(b"a", b"1", local={"time": 0, "date": 0}, central={"time": 0, "date": 0})),
    "a shared folder's bits": made({"d": None, "d/a": b"1"}, Member(b"d/", b"", STORED, mode=0o042775),
                                   Member(b"d/a", b"1")),
}  # fmt: skip
