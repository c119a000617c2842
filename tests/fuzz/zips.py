"""Zips that nobody thought of: built of odd parts, or made of known ones by changing what matters in them."""

import functools
import random
import struct
import zlib
from typing import Any

from tests.zips.builder import BZIP2, DEFLATED, FILE, FOLDER, MAX16, MAX32, STORED, UTF8, Member, build, extra, pack
from tests.zips.good import GOOD
from tests.zips.hostile import HOSTILE

SEED_BYTES_MAX = 20_000
#: Names that may be, many of them one name where case or accents do not count.
MILD = [
    "a", "b", "A", "B", "d", "D", "a.txt", "A.TXT", "é", "e\u0301", "É", "ß", "ss", "SS", "\u0131", "i", "I", "İ", "k",
    "\u212a", "\ufb01", "fi", "con", "__MACOSX", "Icon\r", "._a", "x" * 255, "\u202e", "\U0001f600", " ", "~",
    "a ", "a.",
]  # fmt: skip
NASTY = [
    "..", "..", ".", "", "c:", "C:", "x:y", "\\", "..\\", "\0", "\n", "\x1b", "\x85", "x" * 256, "/", "/..", "../",
]  # fmt: skip
RAW_BITES = [b"\xff", b"\x81", b"\xc0\xaf", b"\xed\xa0\x80", b"\xe9"]
NUMBERS = [
    0, 1, 2, 3, 7, 8, 9, 12, 14, 20, 45, 99, 0x7F, 0x80, 0xFF, 0x100, 0x7FFF, 0x8000, 0xFFFE, MAX16, 0x10000,
    0x7FFFFFFF, 0x80000000, MAX32 - 1, MAX32,
]  # fmt: skip
MARKS = [b"PK\x03\x04", b"PK\x01\x02", b"PK\x05\x06", b"PK\x06\x06", b"PK\x06\x07", b"PK\x07\x08"]
MODES = [FILE, FOLDER, 0, 0o100755, 0o120777, 0o104755, 0o102755, 0o010644, 0o020644, 0o060644, 0o140755, 0o100000]
#: What no method makes smaller.
_DENSE = random.Random(0).randbytes(3000)
DATA = [
    b"",
    b"x",
    b"hello hello hello",
    bytes(3000),
    bytes(5001),
    _DENSE,
    _DENSE,
    b"PK\x05\x06" + bytes(18),
    Member().local_part(),
]
#: Where two-byte and four-byte numbers stand in a local header, a directory's record, and the end record.
FIELDS = {
    b"PK\x03\x04": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 2), (14, 4), (18, 4), (22, 4), (26, 2), (28, 2)],
    b"PK\x01\x02": [(4, 2), (6, 2), (8, 2), (10, 2), (14, 2), (16, 4), (20, 4), (24, 4), (28, 2), (30, 2), (32, 2),
                    (34, 2), (36, 2), (38, 4), (40, 2), (42, 4)],
    b"PK\x05\x06": [(4, 2), (6, 2), (8, 2), (10, 2), (12, 4), (16, 4), (20, 2)],
    b"PK\x06\x06": [(4, 4), (8, 4), (16, 4), (20, 4), (24, 4), (32, 4), (40, 4), (48, 4), (52, 4)],
    b"PK\x06\x07": [(4, 4), (8, 4), (12, 4), (16, 4)],
    b"PK\x07\x08": [(4, 4), (8, 4), (12, 4)],
}  # fmt: skip


@functools.cache
def seeds() -> tuple[bytes, ...]:
    """Return the known zips that are small enough to be changed thousands of times a second."""
    slow = ("too many", "too many folders that paths imply", "as many as may be, and the last one leads out",
            "a huge directory", "a quarter of a gigabyte that claims ten bytes", "a thousand to one")  # fmt: skip
    hostile = [one.make() for name, one in HOSTILE.items() if name not in slow]
    return tuple(body for body in (*hostile, *(one.make() for one in GOOD.values())) if len(body) < SEED_BYTES_MAX)


def odd(chance: random.Random, pool: list[bytes]) -> bytes:
    """Return a zip that is probably wrong. *pool* has bodies worth changing further."""
    if chance.random() < 0.02:
        return chance.choice(seeds())
    if chance.random() < 0.6:
        body = built(chance)
        return body if chance.random() < 0.8 else changed(chance, body, pool)
    return changed(chance, chance.choice(pool if pool and chance.random() < 0.5 else seeds()), pool)


def built(chance: random.Random) -> bytes:
    """Return a zip of a few odd entries, most of which agree with themselves: that gets further than noise."""
    members = [_member(chance) for _ in range(chance.choice([1, 1, 2, 2, 3, 4]))]
    if chance.random() < 0.1:
        members.append(chance.choice(members))
    more: dict[str, Any] = {}
    if chance.random() < 0.05:
        more["end"] = {chance.choice(["disk", "here", "count", "size", "at", "comment_size"]): _short(chance)}
    if chance.random() < 0.05:
        more["end64"] = {} if chance.random() < 0.5 else {chance.choice(["here", "count", "size", "at"]): _long(chance)}
    for part in ("comment", "before", "between", "behind"):
        if chance.random() < 0.02:
            more[part] = chance.choice([b"x", b"PK\x05\x06", bytes(30), *DATA])
    return build(*members, **more)


def _member(chance: random.Random) -> Member:
    name = _name(chance)
    data, method = chance.choice(DATA), chance.choice([STORED, DEFLATED, DEFLATED, BZIP2])
    is_dir = name.endswith(b"/")
    mode = FOLDER if is_dir else FILE
    more: dict[str, Any] = {"flags": chance.choice([0, 0, 0, UTF8, UTF8])}
    if is_dir and chance.random() < 0.9:
        data, method = b"", STORED
    if chance.random() < 0.1:
        mode = chance.choice(MODES)
    if chance.random() < 0.05:
        more["flags"] |= 1 << chance.randrange(16)
    if chance.random() < 0.05:
        method = chance.choice([8, 9, 14, 93, 99])
    if chance.random() < 0.08:
        more["packed"] = chance.choice([b"", b"\xff", pack(bytes(50_000), DEFLATED), pack(b"x", BZIP2), data])
    if chance.random() < 0.1:
        more["extra"] = _extra(chance, name)
    for side in ("local", "central"):
        if chance.random() < 0.05:
            more[side] = _override(chance)
    if chance.random() < 0.04:
        both = _override(chance)
        more["local"], more["central"] = both, both
    if chance.random() < 0.1:
        packed = pack(data, method)
        form, mark = chance.choice([("<LLL", b""), ("<LLL", b"PK\x07\x08"), ("<LQQ", b""), ("<LQQ", b"PK\x07\x08")])
        more["flags"] |= 8
        more["descriptor"] = mark + struct.pack(form, zlib.crc32(data), len(packed), len(data))
        more["local"] = {"crc": 0, "packed": 0, "size": 0}
    if chance.random() < 0.03:
        more["before"] = chance.choice([b"x", *DATA])
    return Member(name, data, method, mode=mode, dos=chance.choice([0, 0x20, chance.choice([0, 0x10, 0x400])]), **more)


def _name(chance: random.Random) -> bytes:
    count = 70 if chance.random() < 0.01 else chance.choice([1, 1, 1, 2, 2, 3, 3])
    bites = [chance.choice(NASTY if chance.random() < 0.08 else MILD) for _ in range(count)]
    name = chance.choice(["/", "/", "/", ""]).join(bites).encode()
    if chance.random() < 0.1:
        name = chance.choice([b"/", b"./", b"./"]) + name
    if chance.random() < 0.15:
        name += b"/"
    if chance.random() < 0.05:
        name += chance.choice(RAW_BITES)
    return name[:4000]


def _extra(chance: random.Random, name: bytes) -> bytes:
    other = chance.choice(MILD + NASTY).encode()
    crc = zlib.crc32(name) if chance.random() < 0.7 else 5
    unicode_path = extra(0x7075, struct.pack("<BL", chance.choice([1, 1, 1, 2]), crc) + chance.choice([name, other]))
    large = extra(1, b"".join(struct.pack("<Q", _long(chance)) for _ in range(chance.randrange(4))))
    return chance.choice([unicode_path, large, extra(0x5455, b"\1\2\3\4\5"), bytes(3), b"xy", unicode_path + large])


def _override(chance: random.Random) -> dict[str, object]:
    field = chance.choice(["crc", "packed", "size", "method", "flags", "extra", "name", "at", "disk", "attributes"])
    match field:
        case "extra":
            return {field: _extra(chance, b"a")}
        case "name":
            return {field: _name(chance)}
        case "method" | "flags" | "disk":
            return {field: chance.choice(NUMBERS) & MAX16}
        case _:
            return {field: chance.choice(NUMBERS)}


def _short(chance: random.Random) -> int:
    return chance.choice(NUMBERS) & MAX16


def _long(chance: random.Random) -> int:
    return chance.choice([*NUMBERS, 2**32, 2**40, 2**63, 2**64 - 1])


def changed(chance: random.Random, body: bytes, pool: list[bytes]) -> bytes:
    """Return *body* with a few changes, most of them to fields of its structures."""
    new = bytearray(body)
    for _ in range(chance.choice([1, 1, 1, 2, 3, 6])):
        if not new:
            break
        chance.choice(CHANGES)(chance, new, pool)
        if len(new) > SEED_BYTES_MAX:
            break
    return bytes(new)


def _field(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    mark = chance.choice([mark for mark in MARKS if mark in body] or [b""])
    if not mark:
        return
    places = _places(body, mark)
    offset, width = chance.choice(FIELDS[mark])
    at = chance.choice(places) + offset
    old = int.from_bytes(body[at : at + width], "little")
    value = chance.choice([chance.choice(NUMBERS), old + 1, old - 1, old ^ 1 << chance.randrange(8 * width), len(body)])
    if at + width <= len(body):
        body[at : at + width] = (value % (1 << 8 * width)).to_bytes(width, "little")


def _places(body: bytearray, mark: bytes) -> list[int]:
    places, at = [], body.find(mark)
    while at >= 0:
        places.append(at)
        at = body.find(mark, at + 1)
    return places


def _byte(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    body[chance.randrange(len(body))] = chance.randrange(256)


def _cut(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    at = chance.randrange(len(body))
    del body[at : at + chance.choice([1, 2, 4, 22, 46, 10_000])]


def _insert(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    at = chance.randrange(len(body) + 1)
    body[at:at] = chance.choice([b"\0", b"x" * 30, *MARKS, *DATA])


def _repeat(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    at, size = chance.randrange(len(body)), chance.choice([4, 22, 46, 60, 100])
    body[at:at] = body[at : at + size]


def _splice(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    other = chance.choice(pool or seeds())
    at = chance.randrange(len(body))
    body[at:] = other[chance.randrange(len(other) + 1) :]


def _rename(chance: random.Random, body: bytearray, pool: list[bytes]) -> None:
    """Give a name other letters in both of its headers: that passes every comparison."""
    places = _places(body, b"PK\x01\x02")
    if not places:
        return
    at = chance.choice(places)
    size = int.from_bytes(body[at + 28 : at + 30], "little")
    old = bytes(body[at + 46 : at + 46 + size])
    if not old:
        return
    new = bytearray(old)
    bite = chance.choice([b"../", b"/", b"\\", b":", b"\0", b"A", b"a", b".", b"..", b"\xff", b"/.."])[: len(old)]
    start = chance.choice([0, chance.randrange(len(old) - len(bite) + 1), len(old) - len(bite)])
    new[start : start + len(bite)] = bite
    body[:] = body.replace(old, new)


CHANGES = [_field, _field, _field, _field, _byte, _byte, _cut, _insert, _repeat, _splice, _rename, _rename]
