"""The list of what an attempt left behind, stored as a JSON blob beside the files it names."""

from typing import Literal

from shared.job import BlobRef
from shared.model import Message

FILES_MAX = 100_000
_PATH_CHARS_MAX = 4096


def stays_below(path: str) -> bool:
    """Return whether *path* is one of an entry: wherever what a node names is unpacked, it leads to nothing else."""
    is_whole = all(part not in ("", ".", "..") for part in path.split("/"))
    return (
        is_whole
        and ".." not in path.replace("\\", "/").split("/")
        and "\0" not in path
        and len(path) <= _PATH_CHARS_MAX
    )


class Entry(Message):
    """One file or folder of /outputs. `path` is relative, with forward slashes, without `.` or `..`."""

    path: str
    kind: Literal["file", "dir"] = "file"
    mode: int = 0o644
    mtime: float = 0.0  # seconds since the epoch
    blob: BlobRef | None = None  # of a file


class Manifest(Message):
    """Outputs, logs and what was left out of one attempt."""

    job_id: str
    attempt: int
    entries: tuple[Entry, ...] = ()
    stdout: BlobRef | None = None
    stderr: BlobRef | None = None
    skipped: tuple[str, ...] = ()  # remarks: links, devices, too many files
