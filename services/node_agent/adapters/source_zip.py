"""Reading a source zip in pieces, counting what really comes out."""

import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from services.node_agent.core import archive
from shared import zipguard
from shared.errors import WherryError

_PIECE_BYTES = 256 * 1024


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder to be made. `pieces` gives a file's content, once, before the next member is asked for."""

    path: str
    is_dir: bool
    mode: int
    mtime: int = archive.EPOCH
    size: int = 0
    pieces: Iterable[bytes] = ()


def members(path: Path, *, bytes_max: int) -> Iterator[Member]:
    """Give what is in the zip at *path*, every folder before what is in it.

    Raises:
        WherryError: ``bad_source``: the zip is not to be unpacked, is damaged, or holds more than *bytes_max*.
    """
    limits = zipguard.Limits(total_bytes=bytes_max, file_bytes=bytes_max)
    with path.open("rb") as file:
        entries = zipguard.inspect(file, limits)
        made: set[str] = set()
        counter = _Counter(bytes_max)
        with zipfile.ZipFile(file) as archive_:
            for entry in entries:
                yield from _folders(PurePosixPath(entry.path), made)
                if entry.is_dir:
                    made.add(entry.path)
                    yield Member(entry.path, is_dir=True, mode=entry.mode | 0o700, mtime=entry.mtime)
                else:
                    pieces = _pieces(archive_, entry, counter)
                    mode = entry.mode | 0o400
                    yield Member(entry.path, False, mode, entry.mtime, entry.size, pieces)  # noqa: FBT003


def tar_of(members_: Iterator[Member], folder: str) -> Iterator[bytes]:
    """Give *members_* as parts of a tar, under *folder*."""
    for member in members_:
        if member.is_dir:
            yield archive.folder(f"{folder}/{member.path}", member.mode, member.mtime)
        else:
            yield archive.file(f"{folder}/{member.path}", member.size, member.mode, member.mtime)
            yield from member.pieces
            yield archive.padding(member.size)


@dataclass(slots=True)
class _Counter:
    left: int


def _folders(path: PurePosixPath, made: set[str]) -> Iterator[Member]:
    """Give the folders that a path implies: an unpacker would make them for root."""
    for parent in reversed(path.parents[:-1]):
        if str(parent) not in made:
            made.add(str(parent))
            yield Member(str(parent), is_dir=True, mode=0o755)


def _pieces(archive_: zipfile.ZipFile, entry: zipguard.ZipEntry, counter: _Counter) -> Iterator[bytes]:
    given = 0
    try:
        with archive_.open(entry.member) as content:
            while piece := content.read(_PIECE_BYTES):
                given += len(piece)
                counter.left -= len(piece)
                if given > entry.size or counter.left < 0:
                    raise WherryError("bad_source", f"source: {entry.path!r} holds more than it claims")
                yield piece
    except zipguard.BROKEN_ZIP as error:
        raise WherryError("bad_source", f"source: {entry.path!r} cannot be unpacked: {error}") from error
    if given != entry.size:
        raise WherryError("bad_source", f"source: {entry.path!r} holds less than it claims")
