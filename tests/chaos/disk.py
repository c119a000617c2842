"""A disk in a file, which can lose its power: what had not reached it is gone (Linux, as root)."""

import contextlib
import os
import shutil
import subprocess
from collections.abc import Generator
from pathlib import Path

MIB = 1024**2


def why_not() -> str | None:
    """Return why no such disk can be made here, or None."""
    if os.name != "posix" or os.geteuid() != 0:
        return "mounting a file as a disk needs root"
    if missing := [name for name in ("mkfs.ext4", "mount", "umount", "cp") if shutil.which(name) is None]:
        return f"there is no {', '.join(missing)}"
    return None


class LoopDisk:
    """An ext4 in a file, mounted at a folder.

    Args:
        image: the file; it takes only the room that is written to.
        folder: where it is mounted.
        size: in bytes.
    """

    def __init__(self, image: Path, folder: Path, size: int) -> None:
        self.image, self.folder = image, folder
        with image.open("wb") as file:
            file.truncate(size)
        _sh("mkfs.ext4", "-q", "-F", str(image))
        folder.mkdir(parents=True, exist_ok=True)
        self._mount()

    def copy(self) -> Path:
        """Return a copy of what has reached the disk until now; whoever writes to it must be stopped."""
        copied = self.image.with_suffix(".cut")
        _sh("cp", "--sparse=always", str(self.image), str(copied))
        return copied

    def replace(self, copied: Path) -> None:
        """Be that copy from now on. Nobody may have a file of it open."""
        self.close()
        copied.replace(self.image)
        self._mount()

    def close(self) -> None:
        """Unmount it."""
        _sh("umount", str(self.folder))

    def _mount(self) -> None:
        _sh("mount", "-o", "loop", str(self.image), str(self.folder))


@contextlib.contextmanager
def loop_disk(image: Path, folder: Path, size: int) -> Generator[LoopDisk]:
    """Make a disk for the block; nothing of it is left after."""
    disk = LoopDisk(image, folder, size)
    try:
        yield disk
    finally:
        disk.close()
        for file in (image, image.with_suffix(".cut")):
            file.unlink(missing_ok=True)


def _sh(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
