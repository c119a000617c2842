"""Stored files as one zip, written while they are read."""

import zlib
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing

from services.gateway.core import zip64
from shared.errors import WherryError
from shared.job import BlobRef
from shared.manifest import Entry

Read = Callable[[BlobRef], AsyncGenerator[bytes, None]]
_PIECE_BYTES = 256 * 1024


async def written(entries: AsyncGenerator[Entry, None], read: Read) -> AsyncGenerator[bytes, None]:
    """Give the archive of *entries* piece by piece; *read* gives a file's bytes.

    Raises:
        WherryError: ``corrupt``: a file is not as long as its entry says; what *read* raises.
    """
    directory = bytearray()
    offset = count = 0
    async for entry in entries:
        member, crc, size = member_of(entry), 0, 0
        head = zip64.local_header(member)
        yield head
        if entry.blob is not None:
            async with aclosing(read(entry.blob)) as pieces:
                async for piece in pieces:
                    crc = zlib.crc32(piece, crc)
                    size += len(piece)
                    yield piece
        if size != member.size:
            raise WherryError("corrupt", f"{entry.path}: {size} bytes came where {member.size} belong.")
        foot = zip64.descriptor(member, crc)
        yield foot
        directory += zip64.central_record(member, crc, offset)
        offset += len(head) + size + len(foot)
        count += 1
    for start in range(0, len(directory), _PIECE_BYTES):
        yield bytes(directory[start : start + _PIECE_BYTES])
    yield zip64.end(count, offset, len(directory))


def member_of(entry: Entry) -> zip64.Member:
    """Return a stored entry as a member of the archive."""
    is_folder = entry.kind == "dir"
    size = entry.blob.size if entry.blob is not None else 0
    return zip64.Member(entry.path, size, entry.mode, entry.mtime, is_folder)
