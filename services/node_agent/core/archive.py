"""Building a tar in pieces, so that no file is ever whole in memory."""

import tarfile

#: Whose files they are inside a container: nobody, as which every job runs.
JOB_UID = 65534
#: 1980: programs that write zips refuse older files.
EPOCH = 315_532_800
END = bytes(2 * tarfile.BLOCKSIZE)


def folder(path: str, mode: int = 0o755, mtime: int = EPOCH) -> bytes:
    """Return the tar header of a folder that belongs to the job's user."""
    info = tarfile.TarInfo(path)
    info.type = tarfile.DIRTYPE
    return _header(info, mode, mtime)


def file(path: str, size: int, mode: int = 0o644, mtime: int = EPOCH) -> bytes:
    """Return the tar header of a file of *size* bytes; its content and `padding` must follow."""
    info = tarfile.TarInfo(path)
    info.size = size
    return _header(info, mode, mtime)


def link(path: str, target: str) -> bytes:
    """Return the tar header of a symbolic link."""
    info = tarfile.TarInfo(path)
    info.type, info.linkname = tarfile.SYMTYPE, target
    return _header(info, 0o777, EPOCH)


def padding(size: int) -> bytes:
    """Return the zeros that fill the last block of a file of *size* bytes."""
    return bytes(-size % tarfile.BLOCKSIZE)


def _header(info: tarfile.TarInfo, mode: int, mtime: int) -> bytes:
    info.mode, info.uid, info.gid, info.mtime = mode, JOB_UID, JOB_UID, mtime
    return info.tobuf(tarfile.PAX_FORMAT, "utf-8", "surrogateescape")
