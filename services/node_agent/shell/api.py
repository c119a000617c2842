"""Network ``api``: this agent answers the programs of its jobs about themselves, and takes what they leave.

Each attempt has a door of its own and a token, made here and known to nobody else; both end with it.
"""

import asyncio
import json
import os
import secrets
import zipfile
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing, closing, suppress
from functools import partial
from pathlib import Path
from typing import Any

from prometheus_client import Counter

from services.node_agent.adapters import source_zip
from services.node_agent.adapters.http_server import Answer, Gone, Request, serve_http, whole_body
from services.node_agent.adapters.pieces import Stoppable
from services.node_agent.adapters.storage import Storage
from services.node_agent.core import api, archive
from services.node_agent.core.attempt import Held
from services.node_agent.core.container import Key
from services.node_agent.core.disk import in_units
from services.node_agent.core.inputs import asked_path, place
from services.node_agent.ports import Access, Connection, Runtime
from services.node_agent.shell.output import OutputPump
from shared import observe
from shared.clock import utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.fleet import Order
from shared.job import REMARKS_KEPT
from shared.manifest import Entry
from shared.requests.blobs import CHUNK_BYTES, BlobRead
from shared.states import EndReason

#: For the first bytes of something that storage has; it may be starting.
_PATIENCE_S = 60.0
_PAUSE_S, _PAUSE_MAX_S = 0.2, 10.0
_OUTPUT_S = 10.0  # for the output to be followed, which begins a moment after the program
#: Bodies of one attempt that are taken in at a time; each is on the agent's disk until it is in the outputs.
_BODIES = 2
_REMARK_CHARS_MAX = 500
_EARLIEST_ZIP = (1980, 1, 1, 0, 0, 0)
_log = observe.logger("api")

REQUESTS = Counter("wherry_agent_api_requests_total", "Requests of programs for their own data.", ["what", "status"])
DOORS_LOST = Counter("wherry_agent_api_doors_lost_total", "Doors that had to be opened anew.")


class _Room:
    """One attempt's side of the door.

    Args:
        held: the attempt.
        access: what its program was given.
        folder: of the attempt, on the agent's disk.
    """

    def __init__(self, order: Order, access: Access, folder: Path) -> None:
        self.order = order
        self.access = access
        self.folder = folder
        self.handle = ""
        self.output: OutputPump | None = None
        self.is_output_there = asyncio.Event()
        self.keeping: asyncio.Task[None] | None = None
        self.is_open: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.bodies = asyncio.Semaphore(_BODIES)
        self.count = 0

    @property
    def key(self) -> Key:
        return Key(self.order.job_id, self.order.attempt)

    async def pump(self) -> OutputPump:
        """Return what takes the program's output.

        Raises:
            Unavailable: nobody follows it.
        """
        try:
            async with asyncio.timeout(_OUTPUT_S):
                await self.is_output_there.wait()
        except TimeoutError:
            pass
        if self.output is None:
            raise Unavailable("The node does not follow the program now. Try again.")
        return self.output

    def body_path(self) -> Path:
        self.count += 1
        return self.folder / f"body-{self.count}"


class Api:
    """The doors of all attempts that have one.

    Args:
        storage: has what programs ask for.
        runtimes: by name.
        folder_of: an attempt's folder on the agent's disk, which goes with it.
    """

    def __init__(self, storage: Storage, runtimes: Mapping[str, Runtime], folder_of: Callable[[Key], Path]) -> None:
        self._storage = storage
        self._runtimes = runtimes
        self._folder_of = folder_of
        self._rooms: dict[Key, _Room] = {}

    async def admit(self, order: Order) -> Access | None:
        """Return what the program of *order* is given; None where it has no network. Safe to repeat."""
        if order.spec.network != "api":
            return None
        return (await self._room(order)).access

    async def open(self, held: Held) -> None:
        """Open the program's door, before it is started.

        Raises:
            WherryError: it cannot be opened.
        """
        if held.order.spec.network == "api":
            room = await self._keep(held)
            try:
                await asyncio.shield(room.is_open)
            except Unavailable as error:  # asked again and again, it would be no better: another attempt may
                raise WherryError(EndReason.RUNTIME_ERROR, error.message) from error

    async def keep(self, held: Held) -> None:
        """Open the door of a program that runs, if it is not, and open it again whenever it is lost."""
        if held.order.spec.network == "api":
            await self._keep(held)

    def hear(self, key: Key, pump: OutputPump | None) -> None:
        """Note what takes the program's output now."""
        if (room := self._rooms.get(key)) is not None:
            room.output = pump
            (room.is_output_there.set if pump else room.is_output_there.clear)()

    def remarks(self, key: Key) -> tuple[str, ...]:
        """Return what the program has remarked."""
        with suppress(FileNotFoundError, ValueError):
            return tuple(json.loads(self._remarks_path(key).read_text("utf-8")))
        return ()

    async def shut(self, key: Key) -> None:
        """Shut the door: the program has ended. What it is made of goes with the attempt."""
        if (room := self._rooms.pop(key, None)) is not None:
            await _end(room)

    async def close(self) -> None:
        """Let go of every door; programs run on, and another agent opens it again."""
        await asyncio.gather(*map(_end, self._rooms.values()))
        self._rooms.clear()

    # --- one door ---

    async def _room(self, order: Order) -> _Room:
        key = Key(order.job_id, order.attempt)
        if key not in self._rooms:
            folder = self._folder_of(key)
            folder.mkdir(parents=True, exist_ok=True)
            access = _noted(folder)
            if access is None:
                access = Access(await self._runtimes[order.spec.runtime].doors.port(), secrets.token_urlsafe(32))
                _note(folder, access)
            for left in folder.glob("body-*"):
                left.unlink()
            self._rooms.setdefault(key, _Room(order, access, folder))
        return self._rooms[key]

    async def _keep(self, held: Held) -> _Room:
        room = await self._room(held.order)
        room.handle = held.handle
        if room.keeping is None:
            room.keeping = asyncio.create_task(self._keep_open(room), name=f"api {held.key.job_id}")
        return room

    async def _keep_open(self, room: _Room) -> None:
        doors = self._runtimes[room.order.spec.runtime].doors
        pause_s = _PAUSE_S
        while True:
            try:
                opened = await doors.open(room.order, room.handle, room.access.port, partial(self._serve, room))
            except Exception as error:  # noqa: BLE001 - whoever waits is told; a program that runs waits for a better day
                if not room.is_open.done():
                    room.is_open.set_exception(error)
                    room.is_open.exception()  # seen: nobody may be waiting
                if isinstance(error, NotFound):
                    return
                _log.warning("door_shut", job_id=room.key.job_id, attempt=room.key.attempt, error=str(error))
            else:
                if not room.is_open.done():
                    room.is_open.set_result(None)
                pause_s = _PAUSE_S
                try:
                    await opened.wait()
                finally:
                    await opened.close()
                DOORS_LOST.inc()
            await asyncio.sleep(pause_s)
            pause_s = min(2 * pause_s, _PAUSE_MAX_S)

    async def _serve(self, room: _Room, connection: Connection) -> None:
        await serve_http(connection, partial(self._answer, room))

    # --- one request ---

    async def _answer(self, room: _Room, request: Request) -> Answer:
        what = "nothing"
        try:
            api.check_bearer(request.headers.get("authorization", ""), room.access.token)
            asked = api.asked(request.method, request.target)
            what = asked.what
            answer = await self._do(room, asked, request)
        except WherryError as error:
            answer = _problem(error)
        except Gone:
            raise
        except OSError as error:
            _log.error("api_disk", job_id=room.key.job_id, attempt=room.key.attempt, error=str(error))
            answer = _problem(Unavailable(f"The node cannot take it now: {error.strerror}."))
        except Exception:  # noqa: BLE001 - the program is told, and the agent lives on
            _log.exception("api_failed", job_id=room.key.job_id, attempt=room.key.attempt, what=what)
            answer = _problem(WherryError("internal", "Something went wrong on the node. It is in its log."))
        REQUESTS.labels(what, str(answer.status)).inc()
        return answer

    async def _do(self, room: _Room, asked: api.Asked, request: Request) -> Answer:
        match asked.what:
            case "job":
                return Answer.of_json(api.described(room.order, await self._listed(room.order)))
            case "inputs":
                return Answer.of_json({"inputs": await self._listed(room.order)})
            case "source":
                return await self._source(room.order)
            case "input":
                return await self._input(room.order, asked.name, asked.path)
            case "output":
                return await self._take_output(room, asked.path, request)
            case "unpack":
                return await self._unpack(room, asked.path, request)
            case "progress" | "metrics" | "remarks":
                return await self._hear_of(room, asked.what, request)

    # --- what it may read ---

    async def _listed(self, order: Order) -> list[dict[str, Any]]:
        return [
            {"name": name, "source": one.source, "size": one.size, "staged": one.stage}
            for name, one in order.spec.inputs.items()
        ]

    async def _source(self, order: Order) -> Answer:
        if order.spec.source is None:
            raise NotFound("This job has no source.")
        wanted = BlobRead(artifact_id=order.spec.source, job_id=order.job_id, min_seq=order.seq)
        return await self._blob(wanted, "source.zip", "application/zip")

    async def _input(self, order: Order, name: str, path: str) -> Answer:
        if name not in order.spec.inputs:
            raise NotFound(f"This job has no input {name!r}; /v1/job/inputs lists them.")
        asked = asked_path(order.spec, name)
        async with aclosing(self._storage.input_pages(order, name)) as pages:
            page: tuple[Entry, ...] | None = await anext(pages, None)
        only = page[0] if page is not None and len(page) == 1 else None
        is_file = only is not None and only.blob is not None and (asked is None or not place(only.path, asked))
        if only is not None and is_file and not path:
            wanted = BlobRead(job_id=order.job_id, input=name, path=only.path, min_seq=order.seq)
            return await self._blob(wanted, (asked or name).rpartition("/")[2])
        if order.spec.inputs[name].job is None or is_file:
            raise NotFound(f"The input {name} is one file, at /v1/job/inputs/{name}.")
        if not path:
            body = self._zipped(order, name)
            return Answer(
                200, body, {"Content-Type": "application/zip", "Content-Disposition": _disposed(f"{name}.zip")}
            )
        whole = f"{asked}/{path}" if asked else path
        wanted = BlobRead(job_id=order.job_id, input=name, path=whole, min_seq=order.seq)
        return await self._blob(wanted, path.rpartition("/")[2])

    async def _blob(self, wanted: BlobRead, name: str, media_type: str = "application/octet-stream") -> Answer:
        size = await self._storage.size(wanted, patience_s=_PATIENCE_S)
        headers = {"Content-Type": media_type, "Content-Length": str(size), "Content-Disposition": _disposed(name)}
        return Answer(200, self._storage.pieces(wanted, patience_s=_PATIENCE_S), headers)

    async def _zipped(self, order: Order, name: str) -> AsyncGenerator[bytes, None]:
        """Give what another job left as a zip, stored as it is."""
        asked, sink = asked_path(order.spec, name), _Written()
        with zipfile.ZipFile(sink, "w", zipfile.ZIP_STORED) as made:
            async with aclosing(self._storage.input_pages(order, name)) as pages:
                async for page in pages:
                    for entry in page:
                        async for piece in self._zip_entry(made, order, name, entry, place(entry.path, asked)):
                            yield sink.take() + piece
        yield sink.take()

    async def _zip_entry(
        self, made: zipfile.ZipFile, order: Order, name: str, entry: Entry, path: str
    ) -> AsyncGenerator[bytes, None]:
        """Write one entry; an empty piece is given whenever something was written."""
        info = zipfile.ZipInfo(f"{path}/" if entry.blob is None else path, _EARLIEST_ZIP)
        info.external_attr = (entry.mode & 0o777 | (0o040000 if entry.blob is None else 0o100000)) << 16
        if entry.blob is None:
            made.writestr(info, b"")
            yield b""
            return
        info.file_size = entry.blob.size
        with made.open(info, "w", force_zip64=entry.blob.size >= 2**31) as file:
            async with aclosing(self._storage.input_file(order, name, entry)) as pieces:
                async for piece in pieces:
                    file.write(piece)
                    yield b""

    # --- what it may leave ---

    async def _take_output(self, room: _Room, path: str, request: Request) -> Answer:
        async with room.bodies:
            body = room.body_path()
            try:
                size = await self._spool(room, body, request)
                await self._put(room, _file_tar(path, body, size))
            finally:
                body.unlink(missing_ok=True)
        return Answer.of_json({"path": path, "bytes": size}, 201)

    async def _unpack(self, room: _Room, folder: str, request: Request) -> Answer:
        async with room.bodies:
            body = room.body_path()
            try:
                await self._spool(room, body, request)
                count = await self._put_zip(room, folder, body)
            finally:
                body.unlink(missing_ok=True)
        return Answer.of_json({"path": folder, "files": count}, 201)

    async def _put_zip(self, room: _Room, folder: str, body: Path) -> int:
        most = room.order.spec.resources.disk
        count = 0

        def counted() -> source_zip.Members:
            nonlocal count
            with closing(source_zip.members(body, bytes_max=most)) as members:
                for member in members:
                    count += not member.is_dir
                    yield member

        try:
            await self._put(room, _zip_tar(folder, counted()))
        except WherryError as error:
            if error.code != "bad_source":
                raise
            raise WherryError("bad_source", error.message.removeprefix("source: ")) from error
        return count

    async def _spool(self, room: _Room, path: Path, request: Request) -> int:
        """Write the body to *path*, and return its size.

        Raises:
            WherryError: ``too_large``: it is more than the job may write at all.
        """
        most, size = room.order.spec.resources.disk, request.length or 0
        message = f"It has more than the {in_units(most)} of disk that the job was promised (resources.disk)."
        if size > most:
            raise WherryError("too_large", message)
        size = 0
        with await asyncio.to_thread(path.open, "xb") as file:
            async for piece in request.body:
                size += len(piece)
                if size > most:
                    raise WherryError("too_large", message)
                file.write(piece)  # into the page cache: not worth a thread
        return size

    async def _put(self, room: _Room, tar: Iterator[bytes]) -> None:
        doors = self._runtimes[room.order.spec.runtime].doors
        pieces = Stoppable(tar)
        putting = asyncio.create_task(doors.put(room.key, room.handle, iter(pieces)))
        try:
            await asyncio.wait({putting})
        except asyncio.CancelledError:
            pieces.stop()
            await asyncio.wait({putting})
            putting.exception()
            raise
        putting.result()

    # --- what it says of itself ---

    async def _hear_of(self, room: _Room, what: str, request: Request) -> Answer:
        body = await whole_body(request, api.JSON_BYTES_MAX)
        if what == "remarks":
            remarks = api.remarks_of(body, request.headers.get("content-type", ""))
            await asyncio.to_thread(self._remark, room.key, remarks)
        elif what == "metrics":
            points = api.metrics_of(body, utc_now())
            (await room.pump()).measure(points)
        else:
            (await room.pump()).progress(api.progress_of(body, utc_now()))
        return Answer(204)

    def _remark(self, key: Key, remarks: tuple[str, ...]) -> None:
        kept = [*self.remarks(key), *(one[:_REMARK_CHARS_MAX] for one in remarks)]
        path = self._remarks_path(key)
        new = path.with_suffix(".new")
        # The last ones: a program that fails says at its end why.
        new.write_text(json.dumps(kept[-REMARKS_KEPT:]), "utf-8")
        new.replace(path)

    def _remarks_path(self, key: Key) -> Path:
        return self._folder_of(key) / "remarks.json"


async def _end(room: _Room) -> None:
    if room.keeping is not None:
        room.keeping.cancel()
        await asyncio.wait({room.keeping})


def _noted(folder: Path) -> Access | None:
    try:
        return Access(**json.loads((folder / "api.json").read_text("utf-8")))
    except (FileNotFoundError, ValueError, TypeError):
        return None


def _note(folder: Path, access: Access) -> None:
    new = folder / "api.new"
    new.unlink(missing_ok=True)
    with os.fdopen(os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w") as file:
        json.dump({"port": access.port, "token": access.token}, file)
        file.flush()
        os.fsync(file.fileno())
    new.replace(folder / "api.json")


def _problem(error: WherryError) -> Answer:
    status, document = api.problem(error)
    answer = Answer.of_json(document, status, "application/problem+json")
    headers = {"WWW-Authenticate": "Bearer"} if status == 401 else {"Retry-After": "1"} if status == 503 else {}
    return Answer(status, answer.body, {**answer.headers, **headers})


def _disposed(name: str) -> str:
    plain = "".join(char if char.isascii() and char.isprintable() and char not in '"\\' else "_" for char in name)
    return f'attachment; filename="{plain}"'


class _Written:
    """A file that cannot be gone back in, which gives what was written since it was last asked."""

    def __init__(self) -> None:
        self._held = bytearray()

    def write(self, data: bytes) -> int:
        """Take bytes."""
        self._held += data
        return len(data)

    def flush(self) -> None:
        """Do nothing."""

    def close(self) -> None:
        """Do nothing."""

    def take(self) -> bytes:
        """Return what is here."""
        taken = bytes(self._held)
        self._held.clear()
        return taken


def _file_tar(path: str, body: Path, size: int) -> Iterator[bytes]:
    """Give a tar, below the outputs, of one file and the folders on its way."""
    now = int(utc_now().timestamp())
    yield from _folders(path.split("/")[:-1], now)
    yield archive.file(path, size, 0o644, now)
    with body.open("rb") as file:
        while piece := file.read(CHUNK_BYTES):
            yield piece
    yield archive.padding(size) + archive.END


def _zip_tar(folder: str, members: source_zip.Members) -> Iterator[bytes]:
    yield from _folders(folder.split("/") if folder else [], int(utc_now().timestamp()))
    yield from source_zip.tar_of(members, folder or ".")
    yield archive.END


def _folders(names: list[str], mtime: int) -> Iterator[bytes]:
    for depth in range(1, len(names) + 1):
        yield archive.folder("/".join(names[:depth]), 0o755, mtime)
