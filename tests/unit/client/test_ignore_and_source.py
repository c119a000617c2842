import io
import json
import os
import zipfile
from pathlib import Path

import pytest

from client.wherry.errors import SourceError
from client.wherry.ignore import IgnoreRules
from client.wherry.source import list_folder, submission_body, zip_folder


@pytest.mark.parametrize(
    ("lines", "path", "folder", "ignored"),
    [
        (["*.log"], "a.log", False, True),
        (["*.log"], "deep/down/a.log", False, True),
        (["*.log"], "a.login", False, False),
        (["/*.log"], "deep/a.log", False, False),
        (["build/"], "build", True, True),
        (["build/"], "build", False, False),
        (["build/"], "src/build", True, True),
        (["data/raw"], "data/raw", True, True),
        (["data/raw"], "x/data/raw", True, False),
        (["**/raw"], "a/b/raw", True, True),
        (["a/**/z"], "a/z", False, True),
        (["a/**/z"], "a/b/c/z", False, True),
        (["*.log", "!keep.log"], "keep.log", False, False),
        (["# *.py", ""], "a.py", False, False),
        (["file[0-9].txt"], "file7.txt", False, True),
        (["file[!0-9].txt"], "file7.txt", False, False),
        (["a?c"], "abc", False, True),
        (["a?c"], "a/c", False, False),
        (["(x+y).txt"], "(x+y).txt", False, True),
        ([], ".git", True, True),
        ([], "pkg/__pycache__", True, True),
        (["!.git/"], ".git", True, True),
        ([], "sub/.wherryignore", False, False),
        ([], ".gitignore", False, False),
    ],
)  # fmt: skip
def test_an_ignore_file_works_as_gits(lines: list[str], path: str, folder: bool, ignored: bool):  # noqa: FBT001
    assert IgnoreRules(lines).ignores(path, folder=folder) is ignored


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "job"
    for name in ("lib", "data/empty", ".git", "lib/__pycache__", "out"):
        (root / name).mkdir(parents=True)
    (root / "run.sh").write_text("echo hi\n")
    (root / "run.sh").chmod(0o755)
    (root / "lib/größe.py").write_text("x = 1\n")
    (root / "lib/__pycache__/x.pyc").write_bytes(b"x")
    (root / ".git/config").write_text("x")
    (root / "out/big.bin").write_bytes(b"x")
    (root / "data/blob.bin").write_bytes(os.urandom(700_000))
    (root / "none").touch()
    (root / ".wherryignore").write_text("out/\n")
    return root


def test_a_folder_becomes_a_zip_with_its_hierarchy_modes_and_empty_folders(folder: Path):
    told: list[tuple[int, int]] = []
    body = b"".join(zip_folder(list_folder(folder), lambda done, total: told.append((done, total))))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.testzip() is None
        names = archive.namelist()
        assert names == ["data/blob.bin", "data/empty/", "lib/größe.py", "none", "run.sh"]
        assert archive.getinfo("run.sh").external_attr >> 16 & 0o777 == 0o755
        assert archive.read("data/blob.bin") == (folder / "data/blob.bin").read_bytes()
    total = sum((folder / name).stat().st_size for name in names if not name.endswith("/"))
    assert told[-1] == (total, total)
    assert [done for done, _ in told] == sorted(done for done, _ in told)


def test_a_folder_is_the_same_zip_every_time_so_that_a_retry_is_the_same_job(folder: Path):
    assert b"".join(zip_folder(list_folder(folder))) == b"".join(zip_folder(list_folder(folder)))


def test_links_are_followed_but_not_in_circles_or_into_nothing(folder: Path, tmp_path: Path):
    (tmp_path / "shared").mkdir()
    (tmp_path / "shared/a.txt").write_text("a")
    (folder / "linked").symlink_to(tmp_path / "shared")
    assert "linked/a.txt" in {file.name for file in list_folder(folder)}
    (folder / "lib/up").symlink_to(folder)
    with pytest.raises(SourceError, match="lies in"):
        list_folder(folder)
    (folder / "lib/up").unlink()
    (folder / "dangling").symlink_to("nowhere")
    with pytest.raises(SourceError, match="dangling"):
        list_folder(folder)


def test_what_is_neither_file_nor_folder_is_refused_by_name(folder: Path):
    os.mkfifo(folder / "pipe")
    with pytest.raises(SourceError, match="pipe"):
        list_folder(folder)


def test_what_is_packed_already_goes_as_it_is_without_a_word(tmp_path: Path, caplog: pytest.LogCaptureFixture):
    (tmp_path / "photo.png").write_bytes(b"p" * 1000)
    (tmp_path / "notes.txt").write_bytes(b"n" * 1000)
    body = b"".join(zip_folder(list_folder(tmp_path)))
    with zipfile.ZipFile(io.BytesIO(body)) as archive:
        assert archive.getinfo("photo.png").compress_size == 1000
        assert archive.getinfo("notes.txt").compress_size < 100
    assert caplog.records == []


def test_an_empty_folder_a_missing_path_and_a_file_that_is_no_zip_are_refused(tmp_path: Path):
    (tmp_path / "empty").mkdir()
    (tmp_path / "text.zip").write_text("no zip")
    for path, words in (("empty", "no files"), ("missing", "does not exist"), ("text.zip", "neither")):
        with pytest.raises(SourceError, match=words):
            submission_body({}, tmp_path / path)


def test_a_submission_is_a_form_with_the_spec_and_the_zip_and_a_known_length_for_a_zip(folder: Path, tmp_path: Path):
    path = tmp_path / 'we"ird\r\n.zip'
    path.write_bytes(b"".join(zip_folder(list_folder(folder))))
    body = submission_body({"name": "größe"}, path)
    whole = b"".join(body.chunks())
    assert body.length == len(whole)
    assert b"".join(body.chunks()) == whole, "each try sends the same"
    boundary = body.media_type.partition("boundary=")[2].encode()
    _, spec, source, end = whole.split(b"--" + boundary)
    assert json.loads(spec.partition(b"\r\n\r\n")[2]) == {"name": "größe"}
    assert source.partition(b"\r\n\r\n")[2] == path.read_bytes() + b"\r\n"
    assert b'filename="we_ird__.zip"' in source
    assert end == b"--\r\n"
    assert submission_body({}, folder).length is None
