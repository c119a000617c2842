"""What one end of the blob protocol holds does not grow with the number of its transfers."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

from shared.blobs import SIZE_HEADER, BlobClient
from shared.bus import Raw
from shared.ids import new_id
from shared.job import BlobRef
from shared.model import Empty
from shared.requests.blobs import CHUNK_BYTES, WINDOW_CHUNKS, BlobRead, BlobScope, Committed

SIZE = 3 * WINDOW_CHUNKS * CHUNK_BYTES
PIECE = bytes(CHUNK_BYTES)


class SlowStorage:
    """Answers chunks and reads only as often as it is told to, and counts what is under way."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._answers = asyncio.Semaphore(0)

    def answer(self, times: int) -> None:
        """Let as many calls end, those that wait and then later ones."""
        for _ in range(times):
            self._answers.release()

    async def ask(self, channel: Any, *_: Any, **__: Any) -> Any:
        committed = Committed(blob=BlobRef(sha256="0" * 64, size=0), artifact_id=new_id("a"))
        return committed if channel.reply is Committed else Empty()

    async def ask_raw(self, _channel: Any, _body: Any, _headers: Any, **__: Any) -> Raw:
        self.now += 1
        self.most = max(self.most, self.now)
        try:
            await self._answers.acquire()
        finally:
            self.now -= 1
        return Raw(PIECE, {SIZE_HEADER: str(SIZE)})


async def settled() -> None:
    for _ in range(500):
        await asyncio.sleep(0)


async def pieces() -> AsyncIterator[bytes]:
    for _ in range(3 * WINDOW_CHUNKS):
        yield PIECE


async def test_ten_uploads_together_have_two_windows_under_way():
    storage = SlowStorage()
    client = BlobClient(storage, "gateway", "g1")  # type: ignore[arg-type]
    uploads = [asyncio.create_task(client.upload(pieces(), BlobScope(owner_id="u1"))) for _ in range(10)]
    await settled()
    assert storage.now == 2 * WINDOW_CHUNKS
    storage.answer(1000)
    await asyncio.gather(*uploads)
    assert storage.most == 2 * WINDOW_CHUNKS


async def test_room_of_uploads_that_are_cancelled_comes_back():
    storage = SlowStorage()
    client = BlobClient(storage, "gateway", "g1")  # type: ignore[arg-type]
    for _ in range(5):
        upload = asyncio.create_task(client.upload(pieces(), BlobScope(owner_id="u1")))
        await settled()
        upload.cancel()
        await asyncio.wait([upload])
    storage.answer(1000)
    await client.upload(pieces(), BlobScope(owner_id="u1"))


async def test_ten_readers_together_ask_two_windows_ahead():
    storage = SlowStorage()
    client = BlobClient(storage, "gateway", "g1")  # type: ignore[arg-type]
    streams = [client.read(BlobRead(artifact_id="a1")) for _ in range(10)]
    firsts = [asyncio.create_task(anext(stream)) for stream in streams]
    await settled()
    assert storage.now == 10
    storage.answer(10)
    await asyncio.gather(*firsts)
    await settled()
    assert 10 < storage.now <= 2 * WINDOW_CHUNKS
    for stream in streams:
        await stream.aclose()
    assert storage.now == 0


async def test_one_reader_alone_asks_two_windows_ahead():
    storage = SlowStorage()
    storage.answer(1)
    stream = BlobClient(storage, "gateway", "g1").read(BlobRead(artifact_id="a1"))  # type: ignore[arg-type]
    await anext(stream)
    await settled()
    assert storage.now == 2 * WINDOW_CHUNKS
    await stream.aclose()
