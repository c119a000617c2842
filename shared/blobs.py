"""Sending and reading blobs: bounded chunks as requests to storage, WINDOW_CHUNKS under way, SHA-256 at both ends.

Each chunk is a request of its own, so that it can be repeated when storage restarts, and its answer is the credit for the next.

INTERFACE DRAFT.
"""

from collections.abc import AsyncIterator

from shared.bus import Bus
from shared.job import BlobRef
from shared.requests import BlobRead, BlobScope, Committed


class BlobClient:
    """Blobs over one bus connection (one of its own: never the control connection).

    BlobClient(bus, kind="gateway"|"node", peer=id)
    """

    # async upload(chunks: AsyncIterator[bytes], scope: BlobScope, *, patience_s=60) -> Committed
    #     any sizes of bytes in; re-cut to CHUNK_BYTES; <= one chunk goes as BLOB_PUT; aborts (tells storage) if `chunks` raises or the task is cancelled.
    # read(target: BlobRead, *, start=0, end=None, patience_s=60) -> AsyncIterator[bytes]: up to WINDOW_CHUNKS requests under way, in order;
    #     checks the SHA-256 when target.sha256 is given and the range is the whole blob; raises WherryError("corrupt") otherwise.
    # async size(target) -> int
