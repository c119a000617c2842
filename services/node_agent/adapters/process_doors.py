"""Doors of plain processes: ports of this machine's loopback. Who else runs here may knock, and has no token."""

import asyncio
import os
import shutil
import socket
import tarfile
import threading
from collections.abc import Callable, Iterator
from contextlib import closing, suppress
from pathlib import Path
from typing import Any, cast

from services.node_agent.adapters.pieces import PieceReader
from services.node_agent.core import door
from services.node_agent.core.container import Key
from services.node_agent.ports import Access, ServeConnection
from shared.errors import NotFound, Unavailable, WherryError
from shared.fleet import Order

_LOCAL = "127.0.0.1"
_RECEIVE_BYTES = 256 * 1024
_PIECE_BYTES = 256 * 1024
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW


class LocalConnection:
    """A connection of this machine."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._reader = reader
        self._writer = writer

    async def receive(self) -> bytes:
        """Return the next bytes; nothing at the end."""
        return await self._reader.read(_RECEIVE_BYTES)

    async def send(self, data: bytes) -> None:
        """Send, waiting while the other side takes nothing."""
        self._writer.write(data)
        await self._writer.drain()

    async def close(self) -> None:
        """Close it, once what was sent has been taken."""
        self._writer.close()
        with suppress(OSError):
            await self._writer.wait_closed()


class LocalDoor:
    """A port that is listened on."""

    def __init__(self, serve: ServeConnection) -> None:
        self._serve = serve
        self._server: asyncio.Server | None = None
        self._serving: set[asyncio.Task[None]] = set()

    async def open(self, port: int) -> None:
        """Listen.

        Raises:
            Unavailable: somebody else does.
        """
        try:
            self._server = await asyncio.start_server(self._take, _LOCAL, port)
        except OSError as error:
            raise Unavailable(f"Port {port}, at which the program looks for its door, is taken: {error}") from error

    async def wait(self) -> None:
        """Never return: nothing ends it but `close`."""
        await asyncio.Event().wait()

    async def close(self) -> None:
        """Listen no more, and end what is under way."""
        if self._server is not None:
            self._server.close()
        for task in self._serving:
            task.cancel()
        await asyncio.gather(*self._serving, return_exceptions=True)

    async def _take(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        if task is not None:
            self._serving.add(task)
            task.add_done_callback(self._serving.discard)
        with suppress(asyncio.CancelledError):  # else asyncio takes it for an error of ours
            await self._serve(LocalConnection(reader, writer))


class ProcessDoors:
    """The doors of one agent's processes.

    Args:
        folder_of: an attempt's folder.
    """

    needs_image = ""

    def __init__(self, folder_of: Callable[[Key], Path]) -> None:
        self._folder_of = folder_of

    async def port(self) -> int:
        """Return a port that nobody had a moment ago."""
        with closing(socket.socket()) as one:
            one.bind((_LOCAL, 0))
            return one.getsockname()[1]

    async def open(self, order: Order, handle: str, port: int, serve: ServeConnection) -> LocalDoor:
        """Listen at *port*.

        Raises:
            NotFound: the program has ended.
            Unavailable: the port is taken.
        """
        del handle
        if (self._folder_of(Key(order.job_id, order.attempt)) / "exit.json").exists():
            raise NotFound("the program has ended")
        opened = LocalDoor(serve)
        await opened.open(port)
        return opened

    async def put(self, key: Key, handle: str, pieces: Iterator[bytes]) -> None:
        """Unpack a tar in the outputs. A link there is not followed, and no folder is replaced.

        Raises:
            WherryError: ``conflict``; ``not_running``: the program's folder is gone.
        """
        del handle
        await asyncio.to_thread(_put, self._folder_of(key) / "outputs", pieces)


def environment(folder: Path, access: Access | None) -> dict[str, str]:
    """Return the variables of a program's door, and write its token; nothing where it has none."""
    if access is None:
        return {}
    token = folder / "token"
    token.unlink(missing_ok=True)
    with os.fdopen(os.open(token, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o400), "w") as file:
        file.write(access.token)
    return door.environment(access.url, str(token))


def _put(outputs: Path, pieces: Iterator[bytes]) -> None:
    try:
        root, own = os.open(outputs, _FOLDER), os.open(outputs.parent, _FOLDER)
    except OSError as error:
        raise WherryError("not_running", "The program has ended, and its outputs are gone.") from error
    try:
        with tarfile.open(fileobj=cast("Any", PieceReader(pieces)), mode="r|") as tar:
            while (member := tar.next()) is not None:
                _make(root, own, member, tar)
                cast("Any", tar).members.clear()  # else it remembers every file
    except (NotADirectoryError, IsADirectoryError, FileExistsError) as error:
        raise WherryError("conflict", door.OCCUPIED) from error
    finally:
        os.close(root)
        os.close(own)


def _make(root: int, own: int, member: tarfile.TarInfo, tar: tarfile.TarFile) -> None:
    *folders, name = [part for part in member.name.split("/") if part not in ("", ".")] or [""]
    if not name:
        return
    parent = _descend(root, folders)
    try:
        if member.isdir():
            os.close(_descend(parent, [name]))
        elif (content := tar.extractfile(member)) is not None:
            part = f"put-{threading.get_ident()}"
            made = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, member.mode & 0o777 | 0o400, dir_fd=own)
            try:
                with os.fdopen(made, "wb") as file:
                    shutil.copyfileobj(content, file, _PIECE_BYTES)
                os.utime(part, (member.mtime, member.mtime), dir_fd=own)
                os.replace(part, name, src_dir_fd=own, dst_dir_fd=parent)
            except BaseException:
                os.unlink(part, dir_fd=own)
                raise
    finally:
        os.close(parent)


def _descend(root: int, folders: list[str]) -> int:
    """Open a folder below *root*, made where it is missing; a link is none."""
    at = os.dup(root)
    for name in folders:
        with suppress(FileExistsError):
            os.mkdir(name, 0o755, dir_fd=at)
        try:
            below = os.open(name, _FOLDER, dir_fd=at)
        except OSError as error:  # a link is told in several ways
            raise NotADirectoryError(name) from error
        finally:
            os.close(at)
        at = below
    return at
