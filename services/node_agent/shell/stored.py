"""What of an attempt is stored already: an agent that begins anew goes on from there."""

import json
from pathlib import Path

from shared.job import BlobRef


class Stored:
    """A line for each file that storage has, in the order in which files come: the same in every try.

    So nothing of a hundred thousand lines has to be in memory. What a program left does not change after its end; the
    first file that is not the one expected, by name, size and time, ends what is believed. A line is not synced:
    one that a power cut takes only means that a file is stored again.
    """

    def __init__(self, path: Path) -> None:
        """Go on with the file at *path*, or begin it."""
        path.touch()
        self._file = path.open("r+b")
        self._is_behind = True

    def next(self, name: str, size: int, mtime: float) -> BlobRef | None:
        """Return the blob of the next file, or None from the first one on that is not stored."""
        if not self._is_behind:
            return None
        begin = self._file.tell()
        blob = _blob(self._file.readline(), [name, size, mtime])
        if blob is None:
            self._is_behind = False
            self._file.seek(begin)
            self._file.truncate()
        return blob

    def note(self, name: str, size: int, mtime: float, blob: BlobRef) -> None:
        """Keep that a file is stored, in the order in which `next` was asked."""
        self._file.write(json.dumps([name, size, mtime, blob.sha256, blob.size]).encode() + b"\n")
        self._file.flush()

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def _blob(line: bytes, wanted: list[str | int | float]) -> BlobRef | None:
    try:
        *what, sha256, size = json.loads(line)
    except ValueError:  # the last line, cut off; or none
        return None
    return BlobRef(sha256=sha256, size=size) if what == wanted else None
