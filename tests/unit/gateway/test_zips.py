import io
import random
import zipfile

import pytest

from services.gateway.adapters import zips
from services.gateway.adapters.zips import PassingZip
from shared.errors import WherryError
from tests.zips.builder import STORED, Member, build


def zipped(**files: str) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


async def cut(body: bytes, size: int):
    for start in range(0, len(body), size):
        yield body[start : start + size]


async def passed(body: bytes, size: int = 10) -> tuple[bytes, bool]:
    passing = PassingZip(cut(body, size))
    return b"".join([chunk async for chunk in passing]), passing.judged


@pytest.mark.parametrize("size", [1, 3, 1000])
async def test_a_good_zip_passes_unchanged(size: int) -> None:
    body = zipped(run="x", lib__a="y" * 500)
    assert await passed(body, size) == (body, True)


@pytest.mark.parametrize(
    ("body", "word"),
    [
        (b"", "not a zip"), (b"PK", "not a zip"), (b"#!/bin/sh\n", "not a zip"), (zipped(), "empty"),
        (zipped(run="x")[:-30], "zip"), (zipped(**{"..__etc__passwd": "x"}), "../etc/passwd"),
    ],
    ids=["nothing", "two letters", "a script", "no files", "cut off", "a path upwards"],
)  # fmt: skip
async def test_a_bad_zip_is_refused_before_its_last_byte_counts(body: bytes, word: str) -> None:
    with pytest.raises(WherryError) as caught:
        await passed(body)
    assert caught.value.code == "bad_source"
    assert word in caught.value.message


async def test_what_is_no_zip_is_refused_at_its_first_bytes() -> None:
    with pytest.raises(WherryError):
        await anext(aiter(PassingZip(cut(b"GIF89a" + b"x" * 1000, 2))))


async def test_a_directory_longer_than_the_tail_is_left_to_be_judged_where_it_is_stored(monkeypatch) -> None:
    monkeypatch.setattr(zips, "TAIL_BYTES", 100)
    body = zipped(**{f"file{i}": "x" for i in range(50)})
    assert await passed(body) == (body, False)


async def test_of_a_small_zip_each_content_is_looked_at(monkeypatch) -> None:
    wrong = build(Member(b"bad.bin", local={"crc": 1}, central={"crc": 1}))
    with pytest.raises(WherryError, match=r"'bad\.bin' has another checksum"):
        await passed(wrong, 1000)
    monkeypatch.setattr(zips, "_CONTENTS_BYTES_MAX", 10)
    assert await passed(wrong, 1000) == (wrong, True)  # too much to unpack here: the node looks


async def test_of_a_large_zip_only_the_directory_is_looked_at(monkeypatch) -> None:
    dense = random.Random(1).randbytes(100_000)
    other, upwards = (
        build(Member(b"dense", dense, STORED), Member(b"bad.bin", local={"name": b"two.bin"})),
        build(Member(b"dense", dense, STORED), Member(b"../bad.bin")),
    )
    monkeypatch.setattr(zips, "TAIL_BYTES", 70_000)
    assert await passed(other, 1000) == (other, True)
    with pytest.raises(WherryError, match="leads out"):
        await passed(upwards, 1000)
    monkeypatch.undo()
    with pytest.raises(WherryError, match="has another name"):
        await passed(other, 1000)
