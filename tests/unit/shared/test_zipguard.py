import io
import stat
import struct
import unicodedata
import zipfile
import zlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import WherryError
from shared.zipguard import Limits, inspect


def zip_of(*entries: tuple[str | zipfile.ZipInfo, bytes], method: int = zipfile.ZIP_DEFLATED) -> io.BytesIO:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in entries:
            archive.writestr(name, data)
    return buffer


def info(name: str, mode: int = 0o644, kind: int = stat.S_IFREG) -> zipfile.ZipInfo:
    entry = zipfile.ZipInfo(name)
    entry.create_system = 3
    entry.external_attr = (kind | mode) << 16
    return entry


def refusal(buffer: io.BytesIO, **limits: int) -> str:
    with pytest.raises(WherryError) as caught:
        inspect(buffer, Limits(**limits))
    assert caught.value.code == "bad_source"
    return caught.value.message


def renamed(old: str, new: str) -> io.BytesIO:
    """A zip whose writer would have refused or cleaned the name."""
    assert len(old) == len(new)
    return io.BytesIO(zip_of((old, b"x")).getvalue().replace(old.encode(), new.encode()))


def overlapping(count: int) -> io.BytesIO:
    """Entries of different names that all share one packed megabyte."""
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    packed = packer.compress(b"\0" * 2**20) + packer.flush()
    crc, out = zlib.crc32(b"\0" * 2**20), io.BytesIO()
    out.write(
        struct.pack("<4s5H3L2H", b"PK\x03\x04", 20, 0, 8, 0, 0, crc, len(packed), 2**20, 5, 0) + b"f0000" + packed
    )
    start = out.tell()
    for number in range(count):
        name = b"f%04d" % number
        out.write(
            struct.pack("<4s6H3L5H2L", b"PK\x01\x02", 20, 20, 0, 8, 0, 0, crc, len(packed), 2**20, 5, 0, 0, 0, 0, 0, 0)
            + name
        )
    out.write(struct.pack("<4s4H2LH", b"PK\x05\x06", 0, 0, count, count, out.tell() - start, start, 0))
    return out


def test_a_good_zip_keeps_hierarchy_modes_and_empty_folders() -> None:
    entries = inspect(
        zip_of(
            (info("run.sh", 0o755), b"echo"),
            (info("data/", 0o700, stat.S_IFDIR), b""),
            ("data/größe.csv", b"1,2"),
            ("./lib//x.py", b""),
        )
    )
    assert [(e.path, e.is_dir, e.size, oct(e.mode)) for e in entries] == [
        ("run.sh", False, 4, "0o755"),
        ("data", True, 0, "0o700"),
        ("data/größe.csv", False, 3, "0o600"),
        ("lib/x.py", False, 0, "0o600"),
    ]


def test_a_zip_without_modes_gets_the_usual_ones() -> None:
    plain, folder = zipfile.ZipInfo("a/b"), zipfile.ZipInfo("a/")
    plain.external_attr = folder.external_attr = 0
    buffer = zip_of((folder, b""), (plain, b"x"))
    zeroed = buffer.getvalue()  # writestr fills in 0o600; take it out of the directory again
    for mode in (0o600 << 16, 0o40775 << 16 | 0x10):
        zeroed = zeroed.replace(struct.pack("<L", mode), struct.pack("<L", 0))
    assert [oct(e.mode) for e in inspect(io.BytesIO(zeroed))] == ["0o755", "0o644"]


def test_times_are_kept_and_impossible_ones_replaced() -> None:
    good, bad = info("good"), info("bad")
    good.date_time = (2024, 2, 29, 12, 0, 2)
    bad.date_time = (1980, 0, 0, 0, 0, 0)
    assert [e.mtime for e in inspect(zip_of((good, b""), (bad, b"")))] == [1709208002, 315532800]


@pytest.mark.parametrize("body", [b"", b"hello", b"PK\x03\x04", b"PK\x05\x06" + b"\xff" * 18, b"\0" * 100_000])
def test_what_is_no_zip_is_refused(body: bytes) -> None:
    assert "zip" in refusal(io.BytesIO(body))


def test_a_cut_zip_is_refused() -> None:
    whole = zip_of(("a", b"x" * 1000), method=zipfile.ZIP_STORED).getvalue()
    for keep in (len(whole) // 2, len(whole) - 30, len(whole) - 1):
        refusal(io.BytesIO(whole[:keep]))


def test_an_empty_zip_and_one_of_folders_alone_are_refused() -> None:
    assert "empty" in refusal(zip_of())
    assert "empty" in refusal(zip_of(("a/", b"")))


@pytest.mark.parametrize(
    ("name", "why"),
    [
        ("/etc/passwd", "absolute"),
        ("C:/x", "absolute"),
        ("../x", "leads out"),
        ("a/../../x", "leads out"),
        ("a/b/..", "leads out"),
        ("a\\b", "backslash"),
        (".", "no name"),
        ("x" * 256, "too long"),
        ("é" * 130, "too long"),
        ("/".join("d" * 65), "deeper"),
    ],
)
def test_a_dangerous_name_is_refused_and_named(name: str, why: str) -> None:
    message = refusal(zip_of(("fine.txt", b"x"), (name, b"x")))
    assert why in message
    assert repr(name[:80])[:-1] in message


def test_a_nul_in_a_name_is_refused() -> None:
    assert "NUL" in refusal(renamed("evil.txt", "evi\x00.txt"))


@pytest.mark.parametrize(
    ("first", "second"),
    [("a.txt", "a.txt"), ("A.txt", "a.TXT"), ("é", unicodedata.normalize("NFD", "é")), ("x", "./x"), ("ß", "SS")],
)
@pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")
def test_two_entries_for_one_place_are_refused(first: str, second: str) -> None:
    assert "twice" in refusal(zip_of((first, b"1"), (second, b"2")))


def test_a_file_that_is_also_a_folder_is_refused() -> None:
    assert "file and a folder" in refusal(zip_of(("a", b"x"), ("A/b", b"x")))
    assert "file and a folder" in refusal(zip_of((info("a/", kind=stat.S_IFREG), b""), ("b", b"x")))


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFBLK, stat.S_IFSOCK])
def test_links_and_devices_are_refused(kind: int) -> None:
    assert "'bad' is a link or a device" in refusal(zip_of((info("bad", 0o777, kind), b"/etc/passwd")))


@pytest.mark.parametrize("bits", [0o4755, 0o2755])
def test_set_user_and_set_group_bits_are_refused(bits: int) -> None:
    assert "set-user" in refusal(zip_of((info("bad", bits), b"x")))


def test_an_encrypted_entry_is_refused() -> None:
    body = bytearray(zip_of(("a", b"x")).getvalue())
    body[body.index(b"PK\x01\x02") + 8] |= 1
    assert "'a' is encrypted" in refusal(io.BytesIO(bytes(body)))


def test_a_method_that_needs_unbounded_memory_is_refused() -> None:
    assert "method 14" in refusal(zip_of(("a", b"x"), method=zipfile.ZIP_LZMA))


def test_overlapping_entries_are_refused() -> None:
    assert "overlaps" in refusal(overlapping(5))
    assert next(iter(inspect(overlapping(1)))).size == 2**20


def test_an_entry_over_the_directory_is_refused() -> None:
    body = bytearray(zip_of(("a", b"x" * 9), method=zipfile.ZIP_STORED).getvalue())
    struct.pack_into("<2L", body, body.index(b"PK\x01\x02") + 20, 90, 90)
    assert "overlaps the directory" in refusal(io.BytesIO(bytes(body)))


def test_limits_hold_for_entries_sizes_and_ratio() -> None:
    assert "more than 2 entries" in refusal(zip_of(("a", b""), ("b", b""), ("c", b"")), entries=2)
    assert "'b' has 11 bytes" in refusal(zip_of(("a", b""), ("b", b"x" * 11)), file_bytes=10)
    assert "unpacks to 12 bytes" in refusal(zip_of(("a", b"x" * 6), ("b", b"x" * 6)), total_bytes=11)
    zeros = zip_of(("a", bytes(2**20)))
    assert "times its size" in refusal(zeros, ratio=100, ratio_from=2**19)
    assert inspect(zeros, Limits(ratio=100, ratio_from=2**21))


GOOD = zip_of((info("run.sh", 0o755), b"echo" * 50), ("data/a.csv", b"1,2\n" * 99), ("data/b/", b"")).getvalue()


@settings(max_examples=400)
@given(st.lists(st.tuples(st.integers(0, len(GOOD) - 1), st.integers(0, 255)), min_size=1, max_size=6))
def test_no_damage_does_more_than_a_refusal(changes: list[tuple[int, int]]) -> None:
    body = bytearray(GOOD)
    for place, value in changes:
        body[place] = value
    try:
        entries = inspect(io.BytesIO(bytes(body)))
    except WherryError as error:
        assert error.code == "bad_source"
        return
    for entry in entries:
        assert not entry.path.startswith("/")
        assert ".." not in entry.path.split("/")
        assert "\x00" not in entry.path
