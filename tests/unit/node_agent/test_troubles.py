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
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core.attempt import Held, Phase
from services.node_agent.core.container import Key
from services.node_agent.core.ending import Outcome
from services.node_agent.ports import Chunk, Found, Image, Output
from services.node_agent.shell import attempts as attempting
from services.node_agent.shell import collect as collecting
from services.node_agent.shell import outbox as outgoing
from services.node_agent.shell.attempts import Attempts, Doing
from services.node_agent.shell.output import OutputPump
from shared.errors import Unavailable, WherryError
from shared.events import AttemptRunning, OutputBatch
from shared.fleet import Order
from shared.job import BlobRef, Failure
from shared.manifest import Manifest
from shared.spec import JobSpec, Timeouts
from shared.states import AttemptEventName, EndReason

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
    ref, remarks = await collecting.collect(runtime, cast("Any", blobs), KEY, "", tmp_path, 2**40)
    manifest = Manifest.from_bytes(blobs.kept[ref.manifest.sha256])
    assert [entry.path for entry in manifest.entries] == ["fine.txt"]
    assert remarks[0] == "caf\ufffd.txt: its name is not UTF-8, left out"
    assert manifest.skipped == remarks
    assert len(remarks) == 5


async def test_what_an_agent_before_has_stored_is_not_stored_again(tmp_path: Path) -> None:
    (tmp_path / "stdout").write_bytes(b"log")
    changed = {"b": b"second"}

    async def outputs(*_: Any) -> AsyncIterator[Output]:
        for name in "abc":
            body = changed.get(name, name.encode() * 3)
            yield Output(name, "file", size=len(body), mtime=5.0, body=body)
        yield Output("d", "file", size=4, chunks=big(b"huge"))
        if len(blobs.kept) < 8:
            raise Unavailable("the engine is away")  # in the middle of it

    blobs = Blobs()
    runtime: Any = SimpleNamespace(outputs=outputs)

    async def bring() -> Manifest:
        ref, _ = await collecting.collect(runtime, cast("Any", blobs), KEY, "", tmp_path, 2**40)
        return Manifest.from_bytes(blobs.kept[ref.manifest.sha256])

    with pytest.raises(Unavailable):
        await bring()
    first = list(blobs.kept.values())
    assert first[:2] == [b"log", b""]  # b and c were under way at most
    with (tmp_path / "stored").open("ab") as file:
        file.write(b'["d", 4')  # cut off
    changed["b"] = b"another"  # from here on nothing is believed
    blobs.kept |= {f"x{number}": b"" for number in range(8)}
    manifest = await bring()
    again = list(blobs.kept.values())[len(first) + 8 :]
    assert again[:-1] == [b"another", b"ccc", b"huge"]
    assert [blobs.kept[entry.blob.sha256] for entry in manifest.entries if entry.blob] == [
        b"aaa", b"another", b"ccc", b"huge",
    ]  # fmt: skip
    assert manifest.stdout is not None
    assert blobs.kept[manifest.stdout.sha256] == b"log"
    before = len(blobs.kept)
    await bring()
    assert len(blobs.kept) == before + 1  # the manifest


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
    assert await followed(Program(), tmp_path) == [f.Exited(KEY, Outcome(0))]
    assert (tmp_path / "j1-1" / "stdout").read_bytes() == b"hello\n"


async def followed(runtime: Program, folder: Path) -> list[f.Fact]:
    """Follow an attempt on *runtime* until a fact is posted."""
    posted: list[f.Fact] = []

    async def publish(*_: object) -> None:
        pass

    doing = Doing(
        runtimes={"process": cast("Any", runtime)},
        storage=cast("Any", None),
        inputs=cast("Any", None),
        folder=folder,
        post=posted.append,
        publish=publish,
        log_bytes_max=1000,
    )
    attempts = Attempts(doing)
    spec = JobSpec(runtime="process", command="true")
    order = Order(job_id="j1", owner_id="u1", attempt=1, spec=spec, seq=1)
    attempts.act(e.Follow(Held(order=order, phase=Phase.RUNNING, since=AT)))
    async with asyncio.timeout(60):
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
    assert await followed(SlowReading(), tmp_path) == [f.Exited(KEY, Outcome(0))]
    assert (tmp_path / "j1-1" / "stdout").read_text().splitlines() == [f"line {number}" for number in range(15)]


class Registry:
    """Stands for a runtime whose pulls end with these errors, one after the other, and then well."""

    def __init__(self, *errors: WherryError) -> None:
        self.errors = list(errors)
        self.pulls = 0

    async def find_image(self, _: Order) -> None:
        return None

    async def pull_image(self, *_: object) -> Image:
        self.pulls += 1
        if self.errors:
            raise self.errors.pop(0)
        return Image("i1", "repo@sha256:1")

    async def stage(self, *_: object) -> str:
        return "c1"


async def prepared(runtime: Registry, folder: Path, pull_s: float = 30) -> tuple[list[f.Fact], list[str]]:
    """Prepare an attempt; return the facts, and what those who watch are told."""
    posted: list[f.Fact] = []
    told: list[str] = []

    async def publish(_: Key, batch: OutputBatch) -> None:
        assert batch.progress
        told.append(batch.progress.message)

    doing = Doing(
        {"docker": cast("Any", runtime)}, cast("Any", None), folder, posted.append, publish, 1000, cast("Any", None)
    )
    attempts = Attempts(doing)
    spec = JobSpec(image="repo:1", timeouts=Timeouts(pull=pull_s))
    attempts.act(e.Prepare(Order(job_id="j1", owner_id="u1", attempt=1, spec=spec, seq=1)))
    async with asyncio.timeout(60):
        while not any(isinstance(fact, f.Failed | f.Staged) for fact in posted):
            await asyncio.sleep(0.01)
    await attempts.close()
    return posted, told


def pull_failed(message: str = "no route to it") -> WherryError:
    return WherryError("image_pull_failed", message, retryable=True)


async def test_a_pull_that_fails_is_tried_three_times_more(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attempting, "_PULL_PAUSES_S", (0.01, 0.02, 0.03))
    runtime = Registry(*[pull_failed()] * 3)
    facts, told = await prepared(runtime, tmp_path)
    assert facts == [f.ImageMissing(KEY), f.ImageFound(KEY, "repo@sha256:1"), f.Staged(KEY, "c1")]
    assert told == [f"no route to it; the next try in {pause} s" for pause in ("0.01", "0.02", "0.03")]

    runtime = Registry(*[pull_failed()] * 3, pull_failed("still none"))
    facts, _ = await prepared(runtime, tmp_path)
    assert facts[-1] == f.Failed(KEY, Failure(reason=EndReason.IMAGE_PULL_FAILED, message="still none"))
    assert runtime.pulls == 4


@pytest.mark.parametrize(
    "error",
    [WherryError("image_not_found", "no such"), WherryError("image_pull_failed", "a wrong digest")],
    ids=["not found", "wrong digest"],
)
async def test_a_pull_that_can_never_do_is_not_tried_again(tmp_path: Path, error: WherryError) -> None:
    runtime = Registry(error)
    facts, told = await prepared(runtime, tmp_path)
    assert facts[-1] == f.Failed(KEY, Failure(reason=EndReason(error.code), message=error.message))
    assert (runtime.pulls, told) == (1, [])


async def test_a_pull_for_which_the_time_is_up_says_why_it_failed(tmp_path: Path) -> None:
    facts, _ = await prepared(Registry(pull_failed()), tmp_path, pull_s=4)
    assert facts[-1] == f.Failed(KEY, Failure(reason=EndReason.IMAGE_PULL_FAILED, message="no route to it"))


class BusyEngine(Program):
    """An engine that does not answer a start, and knows that it did not happen."""

    def __init__(self) -> None:
        self.starts = 0
        self.was_asked = asyncio.Event()

    async def start(self, *_: object) -> None:
        self.starts += 1
        self.was_asked.set()
        raise Unavailable("no answer")

    async def found(self) -> list[Found]:
        await asyncio.sleep(0.05)
        return [Found(KEY, AT, "c1", "created")]


async def test_a_start_that_got_no_answer_is_not_repeated_once_nobody_wants_it(tmp_path: Path) -> None:
    engine = BusyEngine()
    posted: list[f.Fact] = []
    attempts, held = on(engine, tmp_path, posted, Phase.STARTING)
    attempts.act(e.Start(held))
    await engine.was_asked.wait()
    attempts.act(e.StartNoMore(KEY))
    async with asyncio.timeout(60):
        while not posted:
            await asyncio.sleep(0.01)
    await attempts.close()
    assert [type(fact) for fact in posted] == [f.Failed]
    assert engine.starts == 1


class SlowEngine(Program):
    """An engine that an agent before this one has asked for a start, which it is only now about to do."""

    def __init__(self) -> None:
        self.starts = 0
        self.condition: str = "created"

    async def start(self, *_: object) -> None:
        self.starts += 1

    async def outcome(self, *_: object) -> Outcome | None:
        self.condition = "started"  # it answers for a container only when it is done with it
        return Outcome(0)

    async def found(self) -> list[Found]:
        return [Found(KEY, AT, "c1", cast("Any", self.condition))]


async def test_a_start_that_an_agent_before_has_asked_for_is_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "_DOUBT_S", 0.0)
    engine = SlowEngine()
    posted: list[f.Fact] = []
    attempts, held = on(engine, tmp_path, posted, Phase.STARTING)
    attempts.act(e.Start(held, again=True))
    async with asyncio.timeout(60):
        while len(posted) < 2:
            await asyncio.sleep(0.01)
    await attempts.close()
    assert [type(fact) for fact in posted] == [f.Started, f.Exited]
    assert engine.starts == 0


class Chatty(Program):
    """A program that SIGKILL ends at once, and whose output takes long to read."""

    def follow(self, _key: Key, _handle: str, _position: Any, sink: Any) -> Any:
        async def wait() -> None:
            for number in range(12):
                await asyncio.sleep(0.1)
                sink(Chunk("o", AT, b"line %d\n" % number, {"at": number}))

        return SimpleNamespace(wait=wait, close=lambda: None)

    async def kill(self, *_: object) -> None:
        """End it."""


async def test_a_program_that_has_ended_is_not_unkillable_while_its_output_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(attempting, "_UNKILLABLE_S", 0.05)
    posted: list[f.Fact] = []
    attempts, held = on(Chatty(), tmp_path, posted, Phase.RUNNING)
    attempts.act(e.Follow(held))
    attempts.act(e.Stop(held, 0.0))
    async with asyncio.timeout(60):
        while not posted:
            await asyncio.sleep(0.02)
    await attempts.close()
    assert posted == [f.Exited(KEY, Outcome(0))]


def on(runtime: Program, folder: Path, posted: list[f.Fact], phase: Phase) -> tuple[Attempts, Held]:
    """Return what carries out effects on *runtime*, and an attempt in *phase*."""

    async def publish(*_: object) -> None:
        pass

    doing = Doing(
        {"process": cast("Any", runtime)}, cast("Any", None), folder, posted.append, publish, 1000, cast("Any", None)
    )
    order = Order(job_id="j1", owner_id="u1", attempt=1, spec=JobSpec(runtime="process", command="true"), seq=1)
    return Attempts(doing), Held(order=order, phase=phase, since=AT, handle="c1")


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
    async with asyncio.timeout(60):
        while not delivered:
            await asyncio.sleep(0.01)
    assert delivered == ["r1"]
    assert not len(outbox)
    await outbox.close()
    journal.close()
