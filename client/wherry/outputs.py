"""What comes down: where each file goes, that it cannot go elsewhere, and that it is what the job wrote."""

import contextlib
import hashlib
import os
import re
from pathlib import Path, PurePosixPath

from client.wherry.errors import Corrupt, WherryError
from client.wherry.models import Entry

PART_SUFFIX = ".wherry-part"
_DRIVE = re.compile(r"^[A-Za-z]:")


def safe_target(folder: Path, path: str) -> Path:
    """Return where *path* of a job's outputs goes under *folder*.

    Raises:
        WherryError: the path, or a link that stands in its way, leads out of the folder (code ``unsafe_path``).

    """
    parts = PurePosixPath(path).parts
    odd = not parts or path.startswith("/") or "\0" in path or any(part in ("..", ".") for part in parts)
    if os.name == "nt":
        odd = odd or "\\" in path or any(":" in part for part in parts) or bool(_DRIVE.match(path))
    target = folder.joinpath(*parts)
    if odd or not target.parent.resolve().is_relative_to(folder.resolve()) or target.is_symlink():
        raise WherryError("unsafe_path", f"{path!r} leads out of {folder}: nothing was written there")
    return target


def select(entries: list[Entry], path: str | None) -> list[Entry]:
    """Return the entries at or below *path*; all of them when it is None."""
    if path is None:
        return entries
    wanted = path.strip("/")
    return [entry for entry in entries if entry.path == wanted or entry.path.startswith(f"{wanted}/")]


def part_file(target: Path) -> Path:
    """Return where the bytes of *target* gather until all are there."""
    return target.with_name(target.name + PART_SUFFIX)


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def already_there(target: Path, entry: Entry) -> bool:
    """Return whether *target* is the wanted file, from an earlier download."""
    return target.is_file() and target.stat().st_size == entry.size and sha256_of(target) == entry.sha256


def start_part(target: Path, entry: Entry) -> int:
    """Make room for *target* and return how many of its bytes an earlier download has left."""
    target.parent.mkdir(parents=True, exist_ok=True)
    part = part_file(target)
    have = part.stat().st_size if part.is_file() else 0
    if have > entry.size:
        part.unlink()
        have = 0
    return have


def append(part: Path, chunk: bytes, offset: int) -> None:
    """Write *chunk* at *offset* of *part*, dropping whatever lay behind it."""
    with part.open("r+b" if part.exists() else "wb") as file:
        file.seek(offset)
        file.truncate()
        file.write(chunk)


def finish_file(target: Path, entry: Entry) -> None:
    """Check the gathered bytes and give them their name, mode and time.

    Raises:
        Corrupt: they are not what the server said. They are gone, so that a new try starts afresh.

    """
    part = part_file(target)
    if not part.exists():
        part.touch()
    if entry.sha256 and sha256_of(part) != entry.sha256:
        part.unlink()
        raise Corrupt(f"{entry.path} arrived damaged: its SHA-256 is not {entry.sha256}; try again")
    part.replace(target)
    restore(target, entry)


def restore(target: Path, entry: Entry) -> None:
    """Give *target* the mode and time that the job gave it; never set-user-id or the like."""
    with contextlib.suppress(OSError):  # a file system without modes or times still has the bytes
        target.chmod(entry.mode & 0o777)
        os.utime(target, (entry.mtime, entry.mtime))
