"""Bringing home what an attempt left: files, logs, and the manifest that lists them."""

import asyncio
import os
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from services.node_agent.adapters.storage import Storage
from services.node_agent.core.container import Key
from services.node_agent.core.disk import in_units
from services.node_agent.ports import Output, Runtime
from services.node_agent.shell.output import NAMES
from services.node_agent.shell.stored import Stored
from shared.errors import NotFound
from shared.job import REMARKS_KEPT, BlobRef, OutputsRef
from shared.manifest import FILES_MAX, Entry, Manifest

#: Small files under way at once, at most half a megabyte each.
_AT_ONCE = 16


@dataclass(slots=True)
class _Remarks:
    """What was left out; the first REMARKS_KEPT by name, the others as a number."""

    kept: list[str] = field(default_factory=list[str])
    more: int = 0

    def add(self, remark: str) -> None:
        if len(self.kept) < REMARKS_KEPT - 1:
            self.kept.append(remark)
        else:
            self.more += 1

    def all(self) -> tuple[str, ...]:
        return (*self.kept, *((f"and {self.more} more were left out",) if self.more else ()))


class _ManifestFile:
    """A `Manifest` as JSON, written entry by entry: a hundred thousand of them are never in memory."""

    def __init__(self, path: Path, key: Key) -> None:
        self.files = self.bytes = 0
        self._entries = 0
        self._file = path.open("wb")
        head = Manifest(job_id=key.job_id, attempt=key.attempt).to_bytes()
        self._file.write(head[:-1] + b',"entries":[')

    def add(self, entry: Entry) -> None:
        self._file.write((b"," if self._entries else b"") + entry.to_bytes())
        self._entries += 1
        if entry.blob is not None:
            self.files += 1
            self.bytes += entry.blob.size

    def end(self, logs: Mapping[str, BlobRef], skipped: tuple[str, ...]) -> None:
        tail = Manifest(
            job_id="", attempt=0, skipped=skipped, stdout=logs.get("stdout"), stderr=logs.get("stderr")
        ).model_dump_json(include={"stdout", "stderr", "skipped"})
        self._file.write(b"]," + tail[1:].encode())

    def close(self) -> None:
        self._file.close()


async def collect(
    runtime: Runtime, storage: Storage, key: Key, handle: str, folder: Path, bytes_max: int
) -> tuple[OutputsRef, tuple[str, ...]]:
    """Store outputs and logs of an ended attempt; return the reference to the manifest, and remarks.

    Safe to repeat: what an earlier try has stored, an earlier agent's too, is not stored again.

    Files beyond *bytes_max* bytes in all, or beyond FILES_MAX, are left out, which the remarks and the manifest say.

    Raises:
        WherryError: storage or the runtime refused, or (retryable) is away.
    """
    path = folder / "manifest.json"
    manifest, stored = _ManifestFile(path, key), Stored(folder / "stored")
    files = _Files(storage, key, manifest, stored, bytes_max)
    try:
        # First, for it is on this disk already: while storage is away, the engine is not kept reading.
        logs = await _keep_logs(storage, stored, key, folder)
        try:
            async for output in runtime.outputs(key, handle):
                await files.take(output)
            await files.end()
        except NotFound:
            files.remarks.add("the outputs are gone with their container")
        manifest.end(logs, files.remarks.all())
    finally:
        await files.cancel()
        manifest.close()
        stored.close()
    blob = await storage.keep_file(key, path)
    return OutputsRef(manifest=blob, files=manifest.files, bytes=manifest.bytes), files.remarks.all()


async def _keep_logs(storage: Storage, stored: Stored, key: Key, folder: Path) -> dict[str, BlobRef]:
    async def keep(name: str) -> BlobRef:
        return blob if (blob := known[name]) is not None else await storage.keep_file(key, folder / name)

    names = tuple(NAMES.values())
    seen = {name: _size_and_time(folder / name) for name in names}
    known = {name: stored.next(f"/{name}", *seen[name]) for name in names}
    kept = dict(zip(names, await asyncio.gather(*map(keep, names)), strict=True))
    for name in names:
        if known[name] is None:
            stored.note(f"/{name}", *seen[name], kept[name])
    return kept


def _size_and_time(path: Path) -> tuple[int, float]:
    if not path.exists():
        return 0, 0.0
    status = path.stat()
    return status.st_size, status.st_mtime


async def look(
    runtime: Runtime, storage: Storage, key: Key, handle: str, path: Path, below: str, bytes_max: int
) -> BlobRef:
    """Store the outputs of a running attempt as they are now, or only *below*; return the manifest, written at *path*.

    Files beyond *bytes_max* bytes in all are left out, which the manifest says.

    Raises:
        NotFound: nothing is there.
        WherryError: storage or the runtime refused, or is away.
    """
    noted = path.with_suffix(".stored")
    noted.unlink(missing_ok=True)  # a running program may write without a new time: what was seen before counts nothing
    manifest, stored = _ManifestFile(path, key), Stored(noted)
    files = _Files(storage, key, manifest, stored, bytes_max)
    try:
        async for output in runtime.outputs(key, handle, below):
            await files.take(output)
        await files.end()
        manifest.end({}, files.remarks.all())
    finally:
        await files.cancel()
        manifest.close()
        stored.close()
        noted.unlink(missing_ok=True)
    return await storage.keep_file(key, path)


class _Files:
    """Stores files as they come and lists them in that order: small ones several at once, large ones alone."""

    def __init__(self, storage: Storage, key: Key, manifest: _ManifestFile, stored: Stored, bytes_max: int) -> None:
        self.remarks = _Remarks()
        self._storage, self._key, self._manifest, self._stored = storage, key, manifest, stored
        self._count, self._bytes, self._bytes_max = 0, 0, bytes_max
        self._links: list[Output] = []
        self._blobs: dict[str, tuple[str, int]] = {}  # of a hundred thousand files: small values
        self._under_way: deque[tuple[Output, asyncio.Task[BlobRef]]] = deque()

    async def take(self, output: Output) -> None:
        """Store *output*, or note why not."""
        if not _is_text(output.path):
            self.remarks.add(f"{_readable(output.path)}: its name is not UTF-8, left out")
        elif output.kind == "dir":
            self._manifest.add(_entry(output, None))
        elif output.kind == "other":
            self.remarks.add(f"{output.path}: a link, a device or not readable, left out")
        elif self._count >= FILES_MAX:
            self.remarks.add(f"{output.path}: beyond {FILES_MAX} files, left out")
        elif self._bytes + output.size > self._bytes_max:
            self.remarks.add(
                f"{output.path}: its {in_units(output.size)} are beyond the {in_units(self._bytes_max)} "
                "that are kept of a job, left out"
            )
        else:
            self._count, self._bytes = self._count + 1, self._bytes + output.size
            await self._take_file(output)

    async def end(self) -> None:
        """Wait for what is under way, and list the second names of files."""
        await self._settle(0)
        for link in self._links:
            if (blob := self._blobs.get(link.target)) is not None:
                self._manifest.add(_entry(link, BlobRef(sha256=blob[0], size=blob[1])))
            else:
                self.remarks.add(f"{link.path}: another name of {_readable(link.target)}, left out")

    async def cancel(self) -> None:
        """Stop what is under way."""
        for _, task in self._under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in self._under_way), return_exceptions=True)

    async def _take_file(self, output: Output) -> None:
        if output.kind == "link":
            self._links.append(output)
        elif (blob := self._stored.next(output.path, output.size, output.mtime)) is not None:
            self._list(output, blob)
        elif output.chunks is not None:
            await self._settle(0)
            self._keep(output, await self._storage.keep(self._key, output.chunks))
        else:
            await self._settle(_AT_ONCE - 1)
            task = asyncio.create_task(self._storage.keep_bytes(self._key, output.body or b""))
            self._under_way.append((output, task))

    async def _settle(self, down_to: int) -> None:
        while len(self._under_way) > down_to:
            output, task = self._under_way[0]
            self._keep(output, await task)
            self._under_way.popleft()

    def _keep(self, output: Output, blob: BlobRef) -> None:
        self._stored.note(output.path, output.size, output.mtime, blob)
        self._list(output, blob)

    def _list(self, output: Output, blob: BlobRef) -> None:
        self._blobs[output.path] = (blob.sha256, blob.size)
        self._manifest.add(_entry(output, blob))


def _is_text(path: str) -> bool:
    """Return whether *path* can be written as JSON: Linux takes any bytes for a name."""
    return path == _readable(path)


def _readable(path: str) -> str:
    return os.fsencode(path).decode("utf-8", "replace")


def _entry(output: Output, blob: BlobRef | None) -> Entry:
    kind = "file" if blob is not None else "dir"
    return Entry(path=output.path, kind=kind, mode=output.mode, mtime=output.mtime, blob=blob)


async def until_done(
    act: Callable[[], Awaitable[None]],
    on_error: Callable[[Exception], None],
    *,
    first_s: float = 0.5,
    last_s: float = 30,
) -> None:
    """Repeat *act* with growing pauses until it returns; *on_error* hears of each failure and may raise to give up."""
    pause_s = first_s
    while True:
        try:
            return await act()
        except Exception as error:  # noqa: BLE001 - judged by the caller
            on_error(error)
        await asyncio.sleep(pause_s)
        pause_s = min(pause_s * 2, last_s)
