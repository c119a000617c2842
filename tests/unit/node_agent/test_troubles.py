"""Odd file names, a full disk, a journal that fails once: the attempt still ends, with what there is."""

import asyncio
import errno
import os
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.node_agent.adapters.journal import Journal, Outgoing
from services.node_agent.core import machine as m
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from services.node_agent.ports import Chunk, Output
from services.node_agent.shell import collect as collecting
from services.node_agent.shell import outbox as outgoing
from services.node_agent.shell.attempts import Attempts, Doing
from services.node_agent.shell.output import OutputPump
from shared.errors import WherryError
from shared.events import AttemptRunning, OutputBatch
from shared.fleet import Order
from shared.job import BlobRef
from shared.manifest import Manifest
from shared.spec import JobSpec
from shared.states import AttemptEventName

AT = datetime(2026, 1, 1, tzinfo=UTC)
KEY = Key("j1", 1)
LATIN = os.fsdecode(b"caf\xe9.txt")


class Blobs:
    """Stands for storage: keeps everything in memory."""

    def __init__(self) -> None:
        self.kept: dict[str, bytes] = {}

    async def keep(self, _: Key, chunks: AsyncIterator[bytes]) -> BlobRef:
        return await self.keep_bytes(KEY, b"".join([chunk async for chunk in chunks]))

    async def keep_bytes(self, _: Key, body: bytes) -> BlobRef:
        sha256 = str(len(self.kept))
        self.kept[sha256] = body
        return BlobRef(sha256=sha256, size=len(body))

    async def keep_file(self, _: Key, path: Path) -> BlobRef:
        return await self.keep_bytes(KEY, _content(path))


def _content(path: Path) -> bytes:
    return path.read_bytes() if path.exists() else b""


async def big(body: bytes) -> AsyncIterator[bytes]:
    yield body


async def test_a_name_that_is_not_utf8_is_left_out_and_the_others_come_home(tmp_path: Path) -> None:
    async def outputs(*_: object) -> AsyncIterator[Output]:
        yield Output(LATIN, "file", size=1, body=b"1")
        yield Output(f"{LATIN}-large", "file", size=3, chunks=big(b"all"))
        yield Output("second name", "link", target=LATIN)
        yield Output(f"{LATIN}-folder", "dir")
        yield Output(f"{LATIN}-pipe", "other")
        yield Output("fine.txt", "file", size=4, body=b"fine")

    blobs = Blobs()
    runtime: Any = SimpleNamespace(outputs=outputs)
    ref, remarks = await collecting.collect(runtime, cast("Any", blobs), KEY, "", tmp_path)
    manifest = Manifest.from_bytes(blobs.kept[ref.manifest.sha256])
    assert [entry.path for entry in manifest.entries] == ["fine.txt"]
    assert remarks[0] == "caf\ufffd.txt: its name is not UTF-8, left out"
    assert manifest.skipped == remarks
    assert len(remarks) == 5


class FullDisk:
    """Stands for `os.write` on a disk with room for so many bytes."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.write = os.write

    def __call__(self, file: int, data: bytes) -> int:
        if not self.room:
            raise OSError(errno.ENOSPC, "no space left on device")
        taken = min(self.room, len(data))
        self.room -= taken
        return self.write(file, data[:taken])


async def test_on_a_full_disk_output_is_cut_and_still_seen_live(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.node_agent.shell.output.os.write", FullDisk(4))
    seen: list[OutputBatch] = []

    async def publish(batch: OutputBatch) -> None:
        seen.append(batch)

    pump = OutputPump(tmp_path, publish, bytes_max=1000)
    for text in (b"one\n", b"two\n", b"three\n"):
        pump.sink(Chunk("o", AT, text, {}))
    await pump.finish()
    assert (tmp_path / "stdout").read_bytes() == b"one\n"
    lines = [line.x for batch in seen for line in batch.lines]
    assert lines[0] == "one"
    assert any("no space left" in line for line in lines)


class Program:
    """Stands for a runtime with a program that has ended."""

    def follow(self, _key: Key, _handle: str, _position: Any, sink: Any) -> Any:
        async def wait() -> None:
            sink(Chunk("o", AT, b"hello\n", {"at": 1}))

        return SimpleNamespace(wait=wait, close=lambda: None)

    async def outcome(self, *_: object) -> Outcome:
        return Outcome(0)


async def test_following_that_breaks_begins_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    breaks = iter([True, False])

    def pump(*args: Any, **more: Any) -> OutputPump:
        if next(breaks):
            raise OSError(errno.ENOSPC, "no space left on device")
        return OutputPump(*args, **more)

    monkeypatch.setattr("services.node_agent.shell.attempts.OutputPump", pump)
    assert await followed(Program(), tmp_path) == [m.Exited(KEY, Outcome(0))]
    assert (tmp_path / "j1-1" / "stdout").read_bytes() == b"hello\n"


async def followed(runtime: Program, folder: Path) -> list[m.Fact]:
    """Follow an attempt on *runtime* until a fact is posted."""
    posted: list[m.Fact] = []

    async def publish(*_: object) -> None:
        pass

    doing = Doing(
        runtimes={"process": cast("Any", runtime)},
        storage=cast("Any", None),
        folder=folder,
        post=posted.append,
        publish=publish,
        log_bytes_max=1000,
    )
    attempts = Attempts(doing)
    spec = JobSpec(runtime="process", command="true")
    order = Order(job_id="j1", owner_id="u1", attempt=1, spec=spec, seq=1)
    attempts.act(m.Follow(m.Held(order=order, phase=m.Phase.RUNNING, since=AT)))
    async with asyncio.timeout(10):
        while not posted:
            await asyncio.sleep(0.02)
    await attempts.close()
    return posted


class SlowReading(Program):
    """A program that has ended, and whose output comes slowly, to a last line after which the reading hangs."""

    def follow(self, _key: Key, _handle: str, _position: Any, sink: Any) -> Any:
        async def wait() -> None:
            for number in range(15):
                await asyncio.sleep(0.1)
                sink(Chunk("o", AT, b"line %d\n" % number, {"at": number}))
            await asyncio.sleep(60)

        return SimpleNamespace(wait=wait, close=lambda: None)


async def test_the_output_of_an_ended_program_is_read_as_long_as_more_of_it_comes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("services.node_agent.shell.attempts._LOOK_S", 0.01)
    monkeypatch.setattr("services.node_agent.shell.attempts._LINGER_S", 0.5)
    assert await followed(SlowReading(), tmp_path) == [m.Exited(KEY, Outcome(0))]
    assert (tmp_path / "j1-1" / "stdout").read_text().splitlines() == [f"line {number}" for number in range(15)]


async def test_a_report_goes_out_though_the_journal_fails_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outgoing, "_REFUSED_PAUSE_S", 0.01)
    monkeypatch.setattr(outgoing, "_BROKEN_PAUSE_S", 0.01)
    failures = iter([True])
    sent: list[str] = []
    delivered: list[str] = []

    class Bus:
        async def record_grouped(self, record: Any) -> None:
            sent.append(record.event.id)
            if len(sent) == 1:
                raise WherryError("log_refused", "not now")

    journal = Journal(tmp_path / "journal.db")

    async def once_broken(one: Outgoing) -> None:
        if next(failures, False):
            raise OSError(errno.ENOSPC, "no space left on device")
        await Journal.sent(journal, one)

    monkeypatch.setattr(journal, "sent", once_broken)
    outbox = outgoing.Outbox(cast("Any", Bus()), "n1", journal, lambda one: delivered.append(one.id))
    data = AttemptRunning(attempt=1, at=AT)
    body = (
        b'{"id":"e1","source":"/wherry/node_agent/n1","type":"t","time":"2026-01-01T00:00:00Z","subject":"j1","data":'
        + data.to_bytes()
        + b"}"
    )
    outbox.add(Outgoing("r1", KEY, AttemptEventName.RUNNING, body))
    async with asyncio.timeout(10):
        while not delivered:
            await asyncio.sleep(0.01)
    assert delivered == ["r1"]
    assert not len(outbox)
    await outbox.close()
    journal.close()
