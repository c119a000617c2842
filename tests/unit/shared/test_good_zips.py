"""Zips of common tools work, with what those tools add."""

import io
from pathlib import Path

import pytest

from services.gateway.adapters.zips import PassingZip
from services.node_agent.adapters import source_zip
from shared.zipguard import BadZip, Limits, inspect
from tests.zips.builder import STORED, Member, build
from tests.zips.good import GOOD


def tree(folder: Path) -> dict[str, bytes | None]:
    return {str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.mark.parametrize("name", GOOD)
def test_a_good_zip_is_unpacked_as_its_tool_packed_it(name: str, tmp_path: Path) -> None:
    good = GOOD[name]
    (tmp_path / "zip").write_bytes(good.make())
    (tmp_path / "out").mkdir()
    source_zip.unpack(source_zip.members(tmp_path / "zip", bytes_max=2**20), tmp_path / "out")
    found = tree(tmp_path / "out")
    # Folders that paths only imply are there as well.
    assert {path: data for path, data in found.items() if path in good.holds or data is not None} == good.holds
    assert {str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*")
            if path.is_file() and path.stat().st_mode & 0o111} == good.executable  # fmt: skip


@pytest.mark.parametrize("name", GOOD)
async def test_a_good_zip_passes_the_gateway(name: str) -> None:
    body = GOOD[name].make()

    async def chunks():
        for start in range(0, len(body), 100):
            yield body[start : start + 100]

    passing = PassingZip(chunks())
    assert b"".join([chunk async for chunk in passing]) == body
    assert passing.judged


@pytest.mark.parametrize("name", ["zip", "zip to a pipe", "zip with 64-bit fields", "jar"])
def test_times_are_kept(name: str) -> None:
    times = {entry.path: entry.mtime for entry in inspect(io.BytesIO(GOOD[name].make()))}
    assert times["sub/größe.csv"] == 1709294400  # 2024-03-01 12:00, as the files were touched


@pytest.mark.parametrize("count", [65_535, 65_536])
def test_many_entries_are_read_with_and_without_the_64_bit_end(count: int) -> None:
    body = build(*(Member(b"%d" % number, b"", STORED) for number in range(count)))
    assert len(inspect(io.BytesIO(body), headers=False)) == count


@pytest.mark.parametrize("name", GOOD)
def test_a_good_zip_fits_where_there_is_room_for_just_what_it_holds(name: str) -> None:
    body = io.BytesIO(GOOD[name].make())
    size = sum(entry.size for entry in inspect(body))
    assert inspect(body, Limits(total_bytes=size))
    with pytest.raises(BadZip, match="Pack less"):
        inspect(body, Limits(total_bytes=size - 1))
