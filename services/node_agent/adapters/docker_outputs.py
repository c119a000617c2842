"""What programs leave in volumes of a Docker engine, read as one tar."""

import asyncio
import base64
import json
import tarfile
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import closing, suppress
from typing import Any, cast

from services.node_agent.adapters.docker_engine import Engine, translated
from services.node_agent.adapters.pieces import PieceReader
from services.node_agent.ports import Output
from shared.errors import NotFound, WherryError
from shared.requests.blobs import CHUNK_BYTES

_TAR_PIECE_BYTES = 256 * 1024
_Item = Output | bytes | BaseException | None


async def outputs(engine: Engine, handle: str, root: str, below: str = "") -> AsyncIterator[Output]:
    """Give what is at *below* in the folder *root* of a container, which may run, and under it.

    Raises:
        NotFound: nothing is there, or a link leads there.
        WherryError: what the engine says.
    """
    queue: asyncio.Queue[_Item] = asyncio.Queue(8)
    loop = asyncio.get_running_loop()
    cancelled = threading.Event()

    def put(item: _Item) -> None:
        if cancelled.is_set():
            raise InterruptedError
        asyncio.run_coroutine_threadsafe(queue.put(item), loop).result()

    reading = engine.in_thread(_read, engine, handle, root, below, put)
    try:
        while (item := await queue.get()) is not None:
            if isinstance(item, BaseException):
                raise item
            if isinstance(item, bytes):
                continue  # of a file whose content nobody wanted
            yield item if item.body is not None or item.kind != "file" else _with_chunks(item, queue)
    finally:
        cancelled.set()
        while not reading.done():
            while not queue.empty():
                queue.get_nowait()
            await asyncio.wait({reading}, timeout=0.05)


def _read(engine: Engine, handle: str, root: str, below: str, put: Callable[[_Item], None]) -> None:
    try:
        with translated("reading the outputs"):
            _refuse_links(engine, handle, root, below)
            pieces, _ = engine.api().get_archive(handle, f"{root}/{below}".rstrip("/"), CHUNK_BYTES)
            with tarfile.open(fileobj=cast("Any", PieceReader(pieces)), mode="r|", bufsize=_TAR_PIECE_BYTES) as tar:
                while (member := tar.next()) is not None:
                    _give(tar, member, below, put)
                    cast("Any", tar).members.clear()  # else it remembers every file
        put(None)
    except InterruptedError:
        return
    except BaseException as error:  # noqa: BLE001 - raised again by the one who reads
        with suppress(InterruptedError):
            put(error)


def _refuse_links(engine: Engine, handle: str, root: str, below: str) -> None:
    """Return if no folder above *below* is a link: the engine would follow it out of *root*.

    Raises:
        NotFound: one is, or there is none.
    """
    api: Any = engine.api()
    folders = below.split("/")[:-1]
    url = api.url(f"containers/{handle}/archive")
    for depth in range(1, len(folders) + 1):
        path = "/".join((root, *folders[:depth]))
        with closing(api.head(url, params={"path": path}, timeout=engine.timeout_s)) as response:
            found = response.headers.get("X-Docker-Container-Path-Stat", "")
        if not found or json.loads(base64.b64decode(found)).get("linkTarget"):
            raise NotFound(f"nothing is at {below!r}")


def _give(
    tar: tarfile.TarFile,
    member: tarfile.TarInfo,
    below: str,
    put: Callable[[_Item], None],
) -> None:
    path = _below_outputs(member.name, below)
    if not path:
        return
    mode, mtime = member.mode & 0o7777, float(member.mtime)
    if member.isdir():
        put(Output(path, "dir", mode, mtime))
    elif member.islnk():
        put(Output(path, "link", mode, mtime, target=_below_outputs(member.linkname, below)))
    elif not member.isreg():
        put(Output(path, "other", mode, mtime))
    elif (content := tar.extractfile(member)) is not None:
        size = member.size
        if size <= CHUNK_BYTES:
            put(Output(path, "file", mode, mtime, size, body=content.read()))
            return
        put(Output(path, "file", mode, mtime, size))
        while piece := content.read(CHUNK_BYTES):
            put(piece)


def _below_outputs(name: str, below: str) -> str:
    """Return the path of a tar's member, whose first part is the last one of what was asked for."""
    return "/".join(filter(None, (below, name.partition("/")[2].strip("/"))))


def _with_chunks(item: Output, queue: "asyncio.Queue[_Item]") -> Output:
    async def chunks() -> AsyncIterator[bytes]:
        left = item.size
        while left > 0:
            piece = await queue.get()
            if isinstance(piece, BaseException):
                raise piece
            if not isinstance(piece, bytes):
                raise WherryError("runtime_error", "the engine's archive ended in the middle of a file", retryable=True)
            left -= len(piece)
            yield piece

    return Output(item.path, "file", item.mode, item.mtime, item.size, chunks=chunks())
