"""What must hold for every zip, however odd. Written without the guard's own rules, and with a second reader."""

import io
import shutil
import time
import unicodedata
import zipfile
import zlib
from contextlib import suppress
from pathlib import Path
from types import ModuleType

from services.node_agent.adapters import source_zip
from shared import zipguard

#: Small ones, which odd zips pass often.
LIMITS = zipguard.Limits(
    entries=200, total_bytes=8000, file_bytes=5000, ratio=10, ratio_from=4000, directory_bytes=2**18
)
SECONDS_MAX = 2.0
_LINK, _DEVICES = 0o120000, (0o010000, 0o020000, 0o060000, 0o140000)


class Broken(AssertionError):
    """Something that must always hold did not."""


def expect(holds: object, what: str) -> None:
    if not holds:
        raise Broken(what)


def judge(body: bytes, guard: ModuleType = zipguard) -> str:
    """Let the guard, or a mutant of it, look at *body* and hold it to what must be; return what it said.

    Raises:
        Broken: it let something through, or broke. So does any exception but the guard's own.
    """
    began = time.process_time()
    given: list[tuple[str, bool, bytes, int]] = []
    try:
        archive = guard.inspect(io.BytesIO(body), LIMITS)
        for entry in archive:
            content = b"" if entry.is_dir else b"".join(archive.read(entry))
            given.append((entry.path, entry.is_dir, content, entry.mode))
            expect(entry.is_dir or len(content) == entry.size, "a size that is not the content's")
        said = "accepted"
    except guard.BadZip as error:
        expect(error.code == "bad_source" and error.wrong, "an error without a reason")
        said = str(error.reason)
    expect(time.process_time() - began < SECONDS_MAX, "too slow")
    if said == "accepted":
        unpacked = sum(len(content) for _, _, content, _ in given)
        expect(unpacked <= max(LIMITS.ratio_from, len(body) * LIMITS.ratio), "a bomb")
        _check_paths(given)
        _check_second_reader(body, given)
    return said


def _check_paths(given: list[tuple[str, bool, bytes, int]]) -> None:
    expect(any(not is_dir for _, is_dir, _, _ in given), "an empty zip")
    expect(sum(len(content) for _, _, content, _ in given) <= LIMITS.total_bytes, "more than may be")
    taken: dict[str, bool] = {}
    for path, is_dir, _, mode in given:
        parts = path.split("/")
        expect(0 < len(parts) <= LIMITS.depth, "depth")
        for part in parts:
            expect(part not in ("", ".", "..") and len(part.encode()) <= LIMITS.name_bytes, f"the name {part!r}")
            expect(all(unicodedata.category(char) != "Cc" and char not in "\\:" for char in part), f"the name {part!r}")
        expect(0 <= mode <= 0o777, "mode")
        place = unicodedata.normalize("NFKC", path).casefold() if path.isascii() else _folded(path)
        expect(place not in taken, f"two for {path!r}")
        taken[place] = is_dir
    for place in taken:
        above = place.rpartition("/")[0]
        while above:
            expect(taken.get(above, True), f"{place!r} lies in a file")
            above = above.rpartition("/")[0]


def _folded(path: str) -> str:
    """Return what a disk that folds case and composes accents makes of *path*: Unicode's canonical caseless match."""
    return unicodedata.normalize("NFD", unicodedata.normalize("NFD", path).casefold())


def _check_second_reader(body: bytes, given: list[tuple[str, bool, bytes, int]]) -> None:
    """Refuse a zip that the standard library reads otherwise: then two readers could be made to see two zips."""
    try:
        archive = zipfile.ZipFile(io.BytesIO(body))
    except NotImplementedError:  # a version that it does not know; the guard looks at what is there instead
        return
    found: list[bytes] = []
    end = 0
    for info in sorted(archive.infolist(), key=lambda info: info.header_offset):
        expect(info.header_offset >= end, "two entries that share bytes")
        end = info.header_offset + 30 + info.compress_size
    for info in archive.infolist():
        kind = info.external_attr >> 16 & 0o170000
        expect(kind != _LINK and kind not in _DEVICES, "a special file")
        expect(not info.flag_bits & 1, "an encrypted file")
        if not info.is_dir():
            with suppress(zipfile.BadZipFile, zlib.error, EOFError, OSError):  # one that was left out may be damaged
                found.append(archive.read(info))
    contents = [content for _, is_dir, content, _ in given if not is_dir]
    expect(_is_within(contents, found), "another reader sees other contents")


def _is_within(contents: list[bytes], found: list[bytes]) -> bool:
    """Return whether *contents* are *found*, in this order; macOS's additions, which are not given, are left out."""
    rest = iter(found)
    return all(any(content == other for other in rest) for content in contents)


def unpack(body: bytes, root: Path) -> bool:
    """Unpack *body* for real below *root*; return whether it was taken.

    Raises:
        Broken: something was written beside the folder, or is there that no entry is for.
    """
    inside, beside = root / "in" / "side", root / "x"
    inside.mkdir(parents=True)
    beside.write_bytes(b"canary")
    (root / "z.zip").write_bytes(body)
    try:
        source_zip.unpack(source_zip.members(root / "z.zip", bytes_max=2**20), inside)
        is_taken = True
    except zipguard.BadZip:
        is_taken = False
    try:
        outside = {str(path.relative_to(root)) for path in (*root.glob("*"), *root.glob("in/*"))}
        expect(outside == {"in", "in/side", "x", "z.zip"}, f"written outside: {outside}")
        expect(beside.read_bytes() == b"canary", "the canary was changed")
        size = 0
        for path in inside.rglob("*"):
            expect(not path.is_symlink() and (path.is_dir() or path.is_file()), f"a special file, {path.name!r}")
            size += path.stat().st_size if path.is_file() else 0
        expect(size <= 2**20, "more was written than may be")
    finally:
        shutil.rmtree(root)
    return is_taken
