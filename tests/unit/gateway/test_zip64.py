import io
import subprocess
import sys
import zipfile
import zlib

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.gateway.adapters.archive import member_of, written
from services.gateway.core import zip64
from shared.errors import WherryError
from shared.job import BlobRef
from shared.manifest import Entry

MTIME = 1_700_000_000


def archive(files: dict[str, bytes | None]) -> bytes:
    out, directory, count = bytearray(), b"", 0
    for path, content in files.items():
        member = zip64.Member(path, len(content or b""), 0o640, MTIME, content is None)
        offset, crc = len(out), zlib.crc32(content or b"")
        out += zip64.local_header(member) + (content or b"") + zip64.descriptor(member, crc)
        directory += zip64.central_record(member, crc, offset)
        count += 1
    return bytes(out + directory + zip64.end(count, len(out), len(directory)))


def members(files: dict[str, bytes | None]) -> list[zip64.Member]:
    return [zip64.Member(path, len(body or b""), 0o640, MTIME, body is None) for path, body in files.items()]


NAMES = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="/\\\x00"), min_size=1, max_size=20)


@given(st.dictionaries(NAMES, st.one_of(st.none(), st.binary(max_size=200)), max_size=8))
def test_what_goes_in_comes_out(files: dict[str, bytes | None]) -> None:
    whole = archive(files)
    assert len(whole) == zip64.archive_length(members(files))
    with zipfile.ZipFile(io.BytesIO(whole)) as found:
        assert found.testzip() is None
        assert {info.orig_filename for info in found.infolist()} == {
            name + "/" if body is None else name for name, body in files.items()
        }
        for info in found.infolist():
            if not info.orig_filename.endswith("/"):
                assert found.read(info) == files[info.orig_filename]


def test_modes_times_and_folders_are_kept() -> None:
    with zipfile.ZipFile(io.BytesIO(archive({"d": None, "d/run.sh": b"x"}))) as found:
        folder, file = found.infolist()
        assert folder.is_dir()
        assert (file.external_attr >> 16) & 0o777 == 0o640
        assert file.date_time == (2023, 11, 14, 22, 13, 20)


@pytest.mark.parametrize("mtime", [-1.0, 0.0, 1e12])
def test_times_that_a_zip_cannot_say_are_the_nearest_that_it_can(mtime: float) -> None:
    member = zip64.Member("a", 0, 0o644, mtime, is_folder=False)
    assert zip64.local_header(member)
    assert zip64.central_record(member, 0, 0)


def test_another_program_reads_it_too(tmp_path) -> None:
    path = tmp_path / "a.zip"
    path.write_bytes(archive({"d": None, "d/naïve 日本.txt": b"hello", "empty": b""}))
    done = subprocess.run(
        [sys.executable, "-m", "zipfile", "-e", str(path), str(tmp_path / "out")], capture_output=True, check=False
    )
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "out/d/naïve 日本.txt").read_bytes() == b"hello"


def test_offsets_above_four_gigabytes_are_written() -> None:
    member = zip64.Member("big", 5 * 2**30, 0o644, MTIME, is_folder=False)
    record = zip64.central_record(member, 7, 6 * 2**30)
    assert (5 * 2**30).to_bytes(8, "little") in record
    assert (6 * 2**30).to_bytes(8, "little") in record


async def collected(entries: list[Entry], contents: dict[str, bytes]) -> bytes:
    async def listed():
        for entry in entries:
            yield entry

    async def read(blob: BlobRef):
        content = contents[blob.sha256]
        yield content[:2]
        yield content[2:]

    return b"".join([piece async for piece in written(listed(), read)])


async def test_stored_entries_become_an_archive_of_the_announced_length() -> None:
    entries = [
        Entry(path="a", kind="dir", mode=0o755, mtime=MTIME),
        Entry(path="a/x", mode=0o600, mtime=MTIME, blob=BlobRef(sha256="1", size=5)),
    ]
    whole = await collected(entries, {"1": b"hello"})
    assert len(whole) == zip64.archive_length(member_of(entry) for entry in entries)
    assert zipfile.ZipFile(io.BytesIO(whole)).read("a/x") == b"hello"


async def test_a_file_that_is_not_as_long_as_it_says_breaks_the_archive_off() -> None:
    with pytest.raises(WherryError) as caught:
        await collected([Entry(path="x", blob=BlobRef(sha256="1", size=6))], {"1": b"hello"})
    assert caught.value.code == "corrupt"
