"""Reading a source zip in pieces, counting what really comes out."""

import hashlib
import os
from collections.abc import Generator, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

from services.node_agent.core import archive
from shared import zipguard


@dataclass(frozen=True, slots=True)
class Member:
    """A file or folder to be made. `pieces` gives a file's content, once, before the next member is asked for."""

    path: str
    is_dir: bool
    mode: int
    mtime: int = archive.EPOCH
    size: int = 0
    pieces: Iterable[bytes] = ()


#: Holds the zip open until it is exhausted or closed.
Members = Generator[Member, None, None]


def members(path: Path, *, bytes_max: int) -> Members:
    """Give what is in the zip at *path*, every folder before what is in it.

    Raises:
        WherryError: ``bad_source``: the zip is not to be unpacked, is damaged, or holds more than *bytes_max*.
    """
    limits = zipguard.Limits(total_bytes=bytes_max, file_bytes=bytes_max)
    with path.open("rb") as file:
        zip_ = zipguard.inspect(file, limits)
        made = _Made()
        for entry in zip_:
            yield from made.on_the_way_to(entry.path)
            if entry.is_dir:
                made.add(entry.path)
                yield Member(entry.path, is_dir=True, mode=entry.mode | 0o700, mtime=entry.mtime)
            else:
                mode = entry.mode | 0o400
                yield Member(entry.path, False, mode, entry.mtime, entry.size, zip_.read(entry))  # noqa: FBT003


def tar_of(members_: Members, folder: str) -> Iterator[bytes]:
    """Give *members_* as parts of a tar, under *folder*."""
    with closing(members_):  # also where a content turns out to be damaged
        for member in members_:
            if member.is_dir:
                yield archive.folder(f"{folder}/{member.path}", member.mode, member.mtime)
            else:
                yield archive.file(f"{folder}/{member.path}", member.size, member.mode, member.mtime)
                yield from member.pieces
                yield archive.padding(member.size)


def unpack(members_: Members, folder: Path) -> None:
    """Make *members_* in *folder*, which is there and is empty: nothing in it can lead elsewhere."""
    with closing(members_):
        for member in members_:
            _make(member, folder / member.path)


def _make(member: Member, path: Path) -> None:
    if member.is_dir:
        path.mkdir(exist_ok=True)
        path.chmod(member.mode)
        return
    with path.open("xb") as file:
        for piece in member.pieces:
            file.write(piece)
    path.chmod(member.mode)
    os.utime(path, (member.mtime, member.mtime))


class _Made:
    """The folders that are there. Digests of their paths: those of a hostile zip would be hundreds of megabytes."""

    def __init__(self) -> None:
        self._digests: set[bytes] = set()
        self._last = ""

    def add(self, path: str) -> bool:
        """Note a folder; return whether it is new."""
        before = len(self._digests)
        self._digests.add(hashlib.blake2b(path.encode(), digest_size=16).digest())
        return len(self._digests) > before

    def on_the_way_to(self, path: str) -> Iterator[Member]:
        """Give the folders that a path implies: an unpacker would make them for root."""
        parent = path.rpartition("/")[0]
        if parent == self._last:
            return
        self._last = parent
        names = parent.split("/")
        for depth in range(1, len(names) + 1):
            folder = "/".join(names[:depth])
            if self.add(folder):
                yield Member(folder, is_dir=True, mode=0o755)
