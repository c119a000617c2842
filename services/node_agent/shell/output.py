"""From what a program prints to batches on the bus and files on disk."""

import asyncio
import json
import os
import threading
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from services.node_agent.core.output import OutputParser, Parsed
from services.node_agent.ports import Chunk
from shared.clock import utc_now
from shared.events import LogLine, MetricPoint, OutputBatch, Progress

NAMES = {"o": "stdout", "e": "stderr"}
FLUSH_S = 0.2
_FLUSH_BYTES = 64 * 1024
_HELD_BYTES_MAX = 512 * 1024
_MESSAGE_BYTES_MAX = 900 * 1024
_LINE_OVERHEAD = 64

Publish = Callable[[OutputBatch], Awaitable[None]]


@dataclass(slots=True)
class _Held:
    """What was read and is not published yet."""

    lines: list[LogLine] = field(default_factory=list[LogLine])
    metrics: list[MetricPoint] = field(default_factory=list[MetricPoint])
    progress: Progress | None = None
    size: int = 0

    def add(self, parsed: Parsed) -> None:
        self.lines += parsed.lines
        self.metrics += parsed.metrics
        self.progress = parsed.progress or self.progress
        self.size += sum(len(line.x) + _LINE_OVERHEAD for line in parsed.lines) + _LINE_OVERHEAD * len(parsed.metrics)

    def batch(self) -> OutputBatch:
        return OutputBatch(lines=tuple(self.lines), progress=self.progress, metrics=tuple(self.metrics))


class OutputPump:
    """Takes chunks in a reader's thread and publishes on the loop what they say: the first at once, then batches.

    What was published is noted in `position.json`, so that the next agent goes on there with the same numbers.

    Args:
        folder: of the attempt; gets `stdout`, `stderr` and `position.json`.
        publish: may lose a batch: the whole log comes home in the files.
        bytes_max: of both files together; what the program prints beyond it is not kept, and said so once.
    """

    def __init__(self, folder: Path, publish: Publish, *, bytes_max: int) -> None:
        self._folder = folder
        self._publish = publish
        self._bytes_max = bytes_max
        self._loop = asyncio.get_running_loop()
        self._wake, self._full = asyncio.Event(), asyncio.Event()
        self._room = threading.Condition()
        self._flushing = asyncio.Lock()
        self._held = _Held()
        self._told = (False, False)  # whether the loop knows that something is held, and that it is much
        self._is_finished = False
        folder.mkdir(parents=True, exist_ok=True)
        saved = _saved(folder)
        self._parser = OutputParser.restored(saved["parser"]) if saved else OutputParser()
        self.position: dict[str, Any] | None = saved["position"] if saved else None
        self._sizes: dict[str, int] = saved["sizes"] if saved else dict.fromkeys(NAMES, 0)
        self._is_cut: bool = saved["is_cut"] if saved else False
        self._files = {stream: _open(folder / name, self._sizes[stream]) for stream, name in NAMES.items()}

    def sink(self, chunk: Chunk) -> None:
        """Take a chunk. Waits while too much is unpublished, which slows the reader and nobody else."""
        with self._room:
            self._room.wait_for(lambda: self._held.size < _HELD_BYTES_MAX or self._is_finished, timeout=30)
            self._keep(chunk)
            self._held.add(self._parser.feed(chunk.stream, chunk.at, chunk.data, keep_lines=not self._is_cut))
            self.position = chunk.position
            is_full = self._held.size >= _FLUSH_BYTES
            news = (True, is_full)
            if news == self._told:
                return  # waking the loop for every line would cost more than the line
            self._told = news
        with suppress(RuntimeError):  # the loop has ended: an agent after this one reads it again
            self._loop.call_soon_threadsafe(partial(self._notify, is_full=is_full))

    async def run(self) -> None:
        """Publish until `finish`."""
        while not self._is_finished:
            await self._wake.wait()
            self._wake.clear()
            self._full.clear()
            await self._flush()
            if not self._is_finished:
                with suppress(TimeoutError):
                    await asyncio.wait_for(self._full.wait(), FLUSH_S)

    async def finish(self) -> None:
        """Publish what is left; the files are whole after it."""
        with self._room:
            self._held.add(self._parser.finish(utc_now(), keep_lines=not self._is_cut))
            self._is_finished = True
            self._room.notify_all()
        await self._flush()
        self._notify(is_full=True)
        self.close()

    def close(self) -> None:
        """Close the files; what still comes is dropped."""
        with self._room:
            self._is_finished = True
            self._room.notify_all()
            while self._files:
                os.close(self._files.popitem()[1])

    def _notify(self, *, is_full: bool) -> None:
        self._wake.set()
        if is_full:
            self._full.set()

    async def _flush(self) -> None:
        async with self._flushing:  # the last one waits for what another is publishing still
            await self._publish_held()

    async def _publish_held(self) -> None:
        with self._room:
            held, self._held, self._told = self._held, _Held(), (False, False)
            state = json.dumps(
                {
                    "position": self.position,
                    "parser": self._parser.saved(),
                    "sizes": self._sizes,
                    "is_cut": self._is_cut,
                }
            )
            self._room.notify_all()
        for batch in in_messages(held.batch()):
            await self._publish(batch)
        new = self._folder / "position.new"
        with suppress(OSError):  # a full disk: the next agent goes on from the position before
            new.write_text(state, "utf-8")
            new.replace(self._folder / "position.json")

    def _keep(self, chunk: Chunk) -> None:
        if self._is_cut or chunk.stream not in self._files:
            return
        room = self._bytes_max - sum(self._sizes.values())
        data = chunk.data
        if len(data) > room:
            data = data[:room] + self._cut(chunk, f"of the output, the first {self._bytes_max} bytes are kept")
        try:
            while data:
                written = os.write(self._files[chunk.stream], data)
                self._sizes[chunk.stream] += written
                data = data[written:]
        except OSError as error:
            if not self._is_cut:
                self._cut(chunk, f"from here on the output is not kept: {error.strerror}")

    def _cut(self, chunk: Chunk, why: str) -> bytes:
        """Keep no more, say why to those who watch, and return what says so in the file."""
        self._is_cut = True
        mark = f"\n[wherry: {why}]\n".encode()
        self._held.add(self._parser.feed(chunk.stream, chunk.at, mark))
        return mark


def in_messages(batch: OutputBatch) -> list[OutputBatch]:
    """Return *batch* in parts that fit into a message; nothing for an empty one."""
    if not batch.lines and not batch.metrics and batch.progress is None:
        return []
    if len(batch.to_bytes()) <= _MESSAGE_BYTES_MAX or len(batch.lines) + len(batch.metrics) < 2:
        return [batch]
    lines, metrics = len(batch.lines) // 2, len(batch.metrics) // 2
    first = OutputBatch(lines=batch.lines[:lines], metrics=batch.metrics[:metrics])
    return [*in_messages(first), *in_messages(
        OutputBatch(lines=batch.lines[lines:], metrics=batch.metrics[metrics:], progress=batch.progress)
    )]  # fmt: skip


def _saved(folder: Path) -> dict[str, Any] | None:
    try:
        return json.loads((folder / "position.json").read_text("utf-8"))
    except (FileNotFoundError, ValueError):
        return None


def _open(path: Path, size: int) -> int:
    """Open a file to append to it, cut to what is known to be in it."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
    os.ftruncate(file, size)
    return file
