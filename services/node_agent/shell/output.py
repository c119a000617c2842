"""From what a program prints to batches on the bus and files on disk."""

import asyncio
import json
import os
import threading
from collections import deque
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from services.node_agent.core.allowance import Allowance
from services.node_agent.core.at_work import Given
from services.node_agent.core.kept import LastBytes
from services.node_agent.core.output import Answer, OutputParser, Parsed
from services.node_agent.core.series import SeriesSet
from services.node_agent.ports import Chunk
from shared import observe
from shared.clock import monotonic, utc_now
from shared.events import LogLine, LostLines, MetricPoint, OutputBatch, Progress, SeriesPart

NAMES = {"o": "stdout", "e": "stderr"}
FLUSH_S = 0.2
#: Between two words of progress.
_PROGRESS_S = 1.0
_FLUSH_BYTES = 64 * 1024
_HELD_BYTES_MAX, _NEVER_REACHED = 512 * 1024, 8
#: Of each chunk, when more comes than may be sent: a screenful and more.
_SKIMMED_BYTES = 16 * 1024
#: Many of them are in the memory of storage at once.
_MESSAGE_BYTES_MAX = 128 * 1024
_LAST_BYTES_MAX = 1024 * 1024
_LINE_OVERHEAD = 64
_FINAL_POINTS = 1000

_log = observe.logger("output")

Publish = Callable[[OutputBatch], Awaitable[None]]


class Listener(Protocol):
    """Hears what a worker says of its items, in the loop.

    Attributes:
        given: what its program has been given and not answered, in order. Read in other threads: replaced as a whole.
    """

    given: tuple[Given, ...]

    def hear(self, answers: Iterable[Answer]) -> None:
        """Take in answers, soon after they were given."""
        ...

    async def sync(self) -> None:
        """Return once what was heard is on disk: the output up to there is not read again."""
        ...


def _size(line: LogLine) -> int:
    return len(line.x) + len(line.i) + _LINE_OVERHEAD


@dataclass(slots=True)
class _Held:
    """What was read and is not published yet."""

    lines: deque[LogLine] = field(default_factory=deque[LogLine])
    metrics: list[MetricPoint] = field(default_factory=list[MetricPoint])
    progress: Progress | None = None
    size: int = 0  # of the lines
    answers: list[Answer] = field(default_factory=list[Answer])

    def add(self, lines: Iterable[LogLine], most: int) -> None:
        """Hold *lines*, and no longer the oldest when all have more than *most* bytes."""
        for line in lines:
            self.lines.append(line)
            self.size += _size(line)
        while self.size > most:
            self.size -= _size(self.lines.popleft())

    def take(self) -> list[LogLine]:
        """Return the lines, and hold them no longer."""
        taken, self.lines, self.size = list(self.lines), deque(), 0
        return taken


class OutputPump:
    """Takes chunks in a reader's thread and publishes on the loop what they say: the first at once, then batches.

    What was published is noted in `position.json`, so that the next agent goes on there with the same numbers.

    A program may print faster than its node sends: then lines are left out, which their numbers show, and the files
    have them. The files have the beginning of what is too much even for them, and its end; of the lines, the end comes
    when the program has ended.

    Args:
        folder: of the attempt; gets `stdout`, `stderr`, `metrics.jsonl` and `position.json`.
        publish: may lose a batch: the whole log comes home in the files.
        bytes_max: of both files together.
        rate: bytes a second that may be published now; None: no limit.
        listener: of a worker: answers about items are for it, and no part of the output.
    """

    def __init__(
        self,
        folder: Path,
        publish: Publish,
        *,
        bytes_max: int,
        rate: Callable[[], float] | None = None,
        listener: Listener | None = None,
    ) -> None:
        self._folder = folder
        self._publish = publish
        self._rate = rate
        self._listener = listener
        self._allowance = Allowance()
        self._loop = asyncio.get_running_loop()
        self._wake, self._full = asyncio.Event(), asyncio.Event()
        self._room = threading.Condition()
        self._flushing = asyncio.Lock()
        self._held = _Held()
        self._due: list[LogLine] = []  # must be published: the lines before the cut, and what says that it was made
        self._told = (False, False)  # whether the loop knows that something is held, and that it is much
        self._is_finished = False
        self._progress_at = -_PROGRESS_S
        folder.mkdir(parents=True, exist_ok=True)
        saved = _saved(folder)
        is_worker = listener is not None
        self._parser = (
            OutputParser.restored(saved["parser"], is_worker=is_worker) if saved else OutputParser(is_worker=is_worker)
        )
        self.position: dict[str, Any] | None = saved["position"] if saved else None
        self._sizes: dict[str, int] = saved["sizes"] if saved else dict.fromkeys(NAMES, 0)
        self._is_cut: bool = saved["is_cut"] if saved else False
        self._published: int = saved.get("published", self._parser.next_number - 1) if saved else 0
        self._last = LastBytes(min(_LAST_BYTES_MAX, bytes_max // 4), saved.get("left_out", {}) if saved else {})
        self._first_bytes_max = bytes_max - self._last.bytes_max
        self._series = series_in(folder)
        self._files = {stream: _open(folder / name, self._sizes[stream]) for stream, name in NAMES.items()}

    def sink(self, chunk: Chunk) -> None:
        """Take a chunk. Waits while too much is unpublished that may be published: it slows the reader, nobody else."""
        with self._room:
            self._room.wait_for(self._has_room, timeout=30)
            self._keep(chunk)
            self._hold(self._parsed(chunk))
            self.position = chunk.position
            if self._held.answers:
                with suppress(RuntimeError):
                    self._loop.call_soon_threadsafe(self._hand_over)
            is_full = self._held.size >= _FLUSH_BYTES
            news = (True, is_full)
            if news == self._told:
                return  # waking the loop for every line would cost more than the line
            self._told = news
        with suppress(RuntimeError):  # the loop has ended: an agent after this one reads it again
            self._loop.call_soon_threadsafe(partial(self._notify, is_full=is_full))

    def measure(self, points: Iterable[MetricPoint]) -> None:
        """Take what the agent itself has measured of the attempt."""
        with self._room:
            self._held.metrics += self._series.take(points)
        self._notify(is_full=False)

    def progress(self, progress: Progress) -> None:
        """Take how far the program says it is, otherwise than by printing it."""
        with self._room:
            self._held.progress = progress
        self._notify(is_full=False)

    async def run(self) -> None:
        """Publish until `finish`."""
        while not self._is_finished:
            await self._wake.wait()
            self._wake.clear()
            self._full.clear()
            await self._flush()
            if not self._is_finished:
                with suppress(TimeoutError):
                    async with asyncio.timeout(FLUSH_S):
                        await self._full.wait()
                if not self._allowance.is_open:
                    await asyncio.sleep(FLUSH_S)  # however much comes meanwhile

    async def finish(self) -> None:
        """Publish what is left; the files are whole after it."""
        with self._room:
            self._hold(self._parser.finish(utc_now()))
            self._is_finished = True
            self._room.notify_all()
            with suppress(OSError):
                self._append_last()
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

    # --- publishing ---

    @property
    def is_busy(self) -> bool:
        """Return whether it publishes more than it should go on with."""
        return self._allowance.is_low

    def _has_room(self) -> bool:
        return self._held.size < _HELD_BYTES_MAX or not self._may_publish or self._is_finished

    @property
    def _may_publish(self) -> bool:
        return self._allowance.is_open and not self._is_cut

    def _hold(self, parsed: Parsed) -> None:
        # What may be published is waited for; only where nobody has published for long it becomes too much.
        self._held.add(parsed.lines, _HELD_BYTES_MAX * (_NEVER_REACHED if self._may_publish else 1))
        self._held.progress = parsed.progress or self._held.progress
        self._held.metrics += self._series.take(parsed.metrics)
        self._held.answers += parsed.answers

    def _parsed(self, chunk: Chunk) -> Parsed:
        if self._listener is not None:
            self._parser.at_work.has(self._listener.given)
        is_much = not self._allowance.is_open and self._held.size > _HELD_BYTES_MAX / 2
        if self._is_cut or is_much:
            return self._parser.skim(chunk.stream, chunk.at, chunk.data, _SKIMMED_BYTES)
        return self._parser.feed(chunk.stream, chunk.at, chunk.data)

    def _hand_over(self) -> None:
        with self._room:
            answers, self._held.answers = self._held.answers, []
        if self._listener is not None and answers:
            self._listener.hear(answers)

    def _notify(self, *, is_full: bool) -> None:
        self._wake.set()
        if is_full:
            self._full.set()

    async def _flush(self) -> None:
        async with self._flushing:  # the last one waits for what another is publishing still
            await self._publish_held()

    async def _publish_held(self) -> None:
        with self._room:
            answers, self._held.answers = self._held.answers, []
            batch = self._next_batch()
            state = json.dumps(
                {
                    "position": self.position,
                    "parser": self._parser.saved(),
                    "sizes": self._sizes,
                    "is_cut": self._is_cut,
                    "published": self._published,
                    "left_out": self._last.sizes() if self._is_cut else {},  # what is only in memory is lost with it
                    "series": self._series.saved(),
                }
            )
            is_owed = self._held.progress is not None or (self._held.lines and not self._is_cut)
            self._told = (False, False)
            self._room.notify_all()
        if is_owed:
            self._wake.set()
        is_heard = await self._tell_listener(answers)
        for part in in_messages(batch):
            await self._publish(part)
        await asyncio.sleep(0)  # the connection sends in the next turn: an agent killed before that has not noted it
        if not is_heard:
            return  # it is read again from the position before
        with suppress(OSError):  # a full disk: the next agent goes on from the position before
            if batch.metrics:
                with (self._folder / "metrics.jsonl").open("ab") as file:
                    file.write(OutputBatch(metrics=batch.metrics).to_bytes() + b"\n")
            new = self._folder / "position.new"
            new.write_text(state, "utf-8")
            new.replace(self._folder / "position.json")

    async def _tell_listener(self, answers: list[Answer]) -> bool:
        """Return whether what was heard is on disk."""
        if self._listener is None:
            return True
        self._listener.hear(answers)
        try:
            await self._listener.sync()
        except Exception as error:  # noqa: BLE001 - a full disk; what is heard is in memory still
            _log.warning("answers_not_kept", error=str(error))
            return False
        return True

    def _next_batch(self) -> OutputBatch:
        """Return what is to be published now. Lines that may not travel yet are held on, as long as there is room."""
        now, held = monotonic(), self._held
        if self._rate is not None:
            self._allowance.fill(now, self._rate())
        lines, self._due = self._due, []
        if self._is_finished or self._may_publish:
            lines += held.take()
        self._allowance.take(sum(map(_size, lines)))
        progress, metrics = None, held.metrics
        if held.progress and (
            self._is_finished or held.progress.fraction >= 1 or now - self._progress_at >= _PROGRESS_S
        ):
            progress, held.progress, self._progress_at = held.progress, None, now
        held.metrics = []
        return OutputBatch(lines=tuple(lines), progress=progress, metrics=tuple(metrics), lost=self._lost_before(lines))

    def _lost_before(self, lines: list[LogLine]) -> tuple[LostLines, ...]:
        lost: list[LostLines] = []
        for line in lines:
            if line.n != self._published + 1:
                lost.append(LostLines(first=self._published + 1, last=line.n - 1))
            self._published = line.n
        return tuple(lost)

    # --- the files ---

    def _keep(self, chunk: Chunk) -> None:
        if chunk.stream not in self._files:
            return
        room = 0 if self._is_cut else self._first_bytes_max - sum(self._sizes.values())
        try:
            self._write(chunk.stream, chunk.data[:room])
        except OSError as error:
            self._cut(chunk, f"from here on the output is not kept: {error.strerror}")
            return
        if len(chunk.data) > room:
            if not self._is_cut:
                words = f"the first {self._first_bytes_max} bytes of the output are kept, and at its end the last lines"
                self._cut(chunk, words)
            self._last.add(chunk.stream, chunk.data[room:])

    def _write(self, stream: str, data: bytes) -> None:
        while data:
            written = os.write(self._files[stream], data)
            self._sizes[stream] += written
            data = data[written:]

    def _cut(self, chunk: Chunk, why: str) -> None:
        """Publish no more lines before the end, and say why to those who watch."""
        self._is_cut = True
        mark = self._parser.feed(chunk.stream, chunk.at, f"\n[wherry: {why}]\n".encode())
        self._due += [*self._held.take(), *mark.lines]

    def _append_last(self) -> None:
        """Put what came last behind what came first, and between them what is left out."""
        for stream in self._files if self._is_cut else ():
            last, left_out = self._last.of(stream), self._last.left_out.get(stream, 0)
            if left_out:
                words = f"{left_out} bytes are left out here; the first {self._first_bytes_max} of the output are kept"
                self._write(stream, f"\n[wherry: {words}, and the last]\n".encode())
            self._write(stream, last)
        self._last = LastBytes(self._last.bytes_max)  # written: an agent that finishes anew has nothing to add


def in_messages(batch: OutputBatch) -> list[OutputBatch]:
    """Return *batch* in parts that fit into a message; nothing for an empty one."""
    if not batch.lines and not batch.metrics and batch.progress is None:
        return []
    if len(batch.to_bytes()) <= _MESSAGE_BYTES_MAX or len(batch.lines) + len(batch.metrics) < 2:
        return [batch]
    lines, metrics = len(batch.lines) // 2, len(batch.metrics) // 2
    middle = batch.lines[lines].n if batch.lines else 0
    first = OutputBatch(
        lines=batch.lines[:lines],
        metrics=batch.metrics[:metrics],
        lost=tuple(one for one in batch.lost if one.last < middle),
    )
    second = OutputBatch(
        lines=batch.lines[lines:],
        metrics=batch.metrics[metrics:],
        lost=tuple(one for one in batch.lost if one.last >= middle),
        progress=batch.progress,
    )
    return [*in_messages(first), *in_messages(second)]


# --- what an attempt measured ---


def series_in(folder: Path) -> SeriesSet:
    """Return what an attempt has measured, as its files tell."""
    saved, points = _saved(folder) or {}, list[MetricPoint]()
    with suppress(FileNotFoundError):
        for line in (folder / "metrics.jsonl").read_bytes().splitlines():
            with suppress(ValueError):  # the last one may be half a line
                points += OutputBatch.from_bytes(line).metrics
    return SeriesSet.restored(points, saved.get("series", {}))


def final_batches(series: SeriesSet) -> list[OutputBatch]:
    """Return all that an attempt has measured as messages that say it whole; none where it measured nothing."""
    points = series.whole()
    parts = [tuple(points[start : start + _FINAL_POINTS]) for start in range(0, len(points), _FINAL_POINTS)]
    return [
        OutputBatch(metrics=part, final=SeriesPart(index=index, count=len(parts))) for index, part in enumerate(parts)
    ]


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
