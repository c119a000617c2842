"""Bringing home what an attempt left: files, logs, and the manifest that lists them."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from pathlib import Path

from services.node_agent.adapters.storage import Storage
from services.node_agent.core.container import Key
from services.node_agent.ports import Output, Runtime
from services.node_agent.shell.output import NAMES
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

    def end(self, logs: dict[str, BlobRef], skipped: tuple[str, ...]) -> None:
        tail = Manifest(job_id="", attempt=0, skipped=skipped, **logs).model_dump_json(
            include={"stdout", "stderr", "skipped"}
        )
        self._file.write(b"]," + tail[1:].encode())

    def close(self) -> None:
        self._file.close()


async def collect(
    runtime: Runtime, storage: Storage, key: Key, handle: str, folder: Path
) -> tuple[OutputsRef, tuple[str, ...]]:
    """Store outputs and logs of an ended attempt; return the reference to the manifest, and remarks. Safe to repeat.

    Raises:
        WherryError: storage or the runtime refused, or (retryable) is away.
    """
    remarks = _Remarks()
    path = folder / "manifest.json"
    manifest = _ManifestFile(path, key)
    try:
        try:
            await _files(runtime, storage, key, handle, manifest, remarks)
        except NotFound:
            remarks.add("the outputs are gone with their container")
        logs = {name: await storage.keep_file(key, folder / name) for name in NAMES.values()}
        manifest.end(logs, remarks.all())
    finally:
        manifest.close()
    blob = await storage.keep_file(key, path)
    return OutputsRef(manifest=blob, files=manifest.files, bytes=manifest.bytes), remarks.all()


async def _files(
    runtime: Runtime, storage: Storage, key: Key, handle: str, manifest: _ManifestFile, remarks: _Remarks
) -> None:
    links: list[Output] = []
    blobs: dict[str, tuple[str, int]] = {}  # of a hundred thousand files: small values
    under_way: deque[tuple[Output, asyncio.Task[BlobRef]]] = deque()

    def keep(output: Output, blob: BlobRef) -> None:
        blobs[output.path] = (blob.sha256, blob.size)
        manifest.add(_entry(output, blob))

    async def settle(down_to: int) -> None:
        while len(under_way) > down_to:
            output, task = under_way[0]
            keep(output, await task)
            under_way.popleft()

    try:
        count = 0
        async for output in runtime.outputs(key, handle):
            match output.kind:
                case "dir":
                    manifest.add(_entry(output, None))
                case "other":
                    remarks.add(f"{output.path}: a link or a device, left out")
                case _ if count >= FILES_MAX:
                    remarks.add(f"{output.path}: beyond {FILES_MAX} files, left out")
                case "link":
                    count += 1
                    links.append(output)
                case "file":
                    count += 1
                    if output.chunks is not None:
                        await settle(0)
                        keep(output, await storage.keep(key, output.chunks))
                    else:
                        await settle(_AT_ONCE - 1)
                        task = asyncio.create_task(storage.keep_bytes(key, output.body or b""))
                        under_way.append((output, task))
        await settle(0)
    finally:
        for _, task in under_way:
            task.cancel()
        await asyncio.gather(*(task for _, task in under_way), return_exceptions=True)
    for link in links:
        if (blob := blobs.get(link.target)) is not None:
            manifest.add(_entry(link, BlobRef(sha256=blob[0], size=blob[1])))
        else:
            remarks.add(f"{link.path}: another name of {link.target}, left out")


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
