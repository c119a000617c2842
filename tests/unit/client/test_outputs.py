import hashlib
from pathlib import Path

import pytest

from client.wherry.errors import Corrupt, WherryError
from client.wherry.models import Entry
from client.wherry.outputs import append, finish_file, part_file, safe_target, select, start_part


@pytest.mark.parametrize("path", ["/etc/passwd", "../x", "a/../../x", "a/..", "", ".", "a\0b", ".."])
def test_a_path_that_leads_out_of_the_folder_is_refused(tmp_path: Path, path: str):
    with pytest.raises(WherryError) as caught:
        safe_target(tmp_path, path)
    assert caught.value.code == "unsafe_path"


def test_a_link_in_the_way_is_not_followed_out_of_the_folder(tmp_path: Path):
    inside = tmp_path / "in"
    inside.mkdir()
    (inside / "door").symlink_to(tmp_path)
    (inside / "file").symlink_to(tmp_path / "victim")
    for path in ("door/x", "file"):
        with pytest.raises(WherryError):
            safe_target(inside, path)
    assert safe_target(inside, "a/größe …/x") == inside / "a/größe …/x"


def test_one_path_selects_a_file_or_all_below_a_folder_but_not_its_namesakes():
    entries = [Entry(path=path) for path in ("a", "a/b", "a/b/c", "ab")]
    assert [entry.path for entry in select(entries, "a/b")] == ["a/b", "a/b/c"]
    assert [entry.path for entry in select(entries, "a/")] == ["a", "a/b", "a/b/c"]
    assert select(entries, None) == entries
    assert select(entries, "b") == []


def entry_of(body: bytes) -> Entry:
    return Entry(path="x", size=len(body), mode=0o4640, mtime=1000.5, sha256=hashlib.sha256(body).hexdigest())


def test_a_file_goes_on_where_it_was_and_gets_its_mode_and_time(tmp_path: Path):
    target, entry = tmp_path / "deep/x", entry_of(b"abcdef")
    assert start_part(target, entry) == 0
    append(part_file(target), b"abc", 0)
    assert start_part(target, entry) == 3
    append(part_file(target), b"def", 3)
    finish_file(target, entry)
    assert target.read_bytes() == b"abcdef"
    assert target.stat().st_mode & 0o7777 == 0o640
    assert target.stat().st_mtime == 1000.5
    assert list(target.parent.iterdir()) == [target]


def test_a_damaged_file_is_not_kept(tmp_path: Path):
    target, entry = tmp_path / "x", entry_of(b"abcdef")
    append(part_file(target), b"abcdeX", 0)
    with pytest.raises(Corrupt):
        finish_file(target, entry)
    assert list(tmp_path.iterdir()) == []


def test_an_empty_file_is_a_file(tmp_path: Path):
    finish_file(tmp_path / "x", entry_of(b""))
    assert (tmp_path / "x").read_bytes() == b""


def test_left_overs_that_are_too_long_are_dropped(tmp_path: Path):
    append(part_file(tmp_path / "x"), b"too long", 0)
    assert start_part(tmp_path / "x", entry_of(b"abc")) == 0
