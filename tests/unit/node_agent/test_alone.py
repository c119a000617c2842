"""An agent by itself: the lease it noted, drivers and programs that hang, what nobody knows, paths from elsewhere."""

import asyncio
import threading
import time
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from services.node_agent.adapters.gpu_nvml import NvmlGpus, PatientGpus
from services.node_agent.adapters.lease_note import LeaseNote
from services.node_agent.core import effects as e
from services.node_agent.core import facts as f
from services.node_agent.core.attempt import Held, Phase
from services.node_agent.core.container import Key, image_names
from services.node_agent.core.ending import Outcome
from services.node_agent.core.inputs import asked_path, place
from services.node_agent.core.lease import Lease
from services.node_agent.core.problems import problem
from services.node_agent.core.strays import Strays
from services.node_agent.core.use import GpuUse
from services.node_agent.ports import Chunk, Found, RuntimeFacts
from services.node_agent.shell import attempts as carrying_out
from services.node_agent.shell.attempts import Attempts, Doing
from services.node_agent.shell.output import OutputPump
from services.node_agent.shell.watch import Watch
from shared.errors import Unavailable, WherryError
from shared.events import OutputBatch
from shared.fleet import Gpu, Order
from shared.spec import JobSpec

AT = datetime(2026, 1, 1, tzinfo=UTC)
KEY, OTHER = Key("j1", 1), Key("j2", 1)
GPU = Gpu(uuid="GPU-1", name="card", memory_total=1)


# --- the lease's note ------------------------------------------------------------------------------------------------


def test_a_lease_is_found_again_by_an_agent_of_the_same_boot_and_by_no_other(tmp_path: Path) -> None:
    path = tmp_path / "lease.json"
    assert LeaseNote(path, "b1").read() is None
    LeaseNote(path, "b1").write(Lease(12.5, 30))
    assert LeaseNote(path, "b1").read() == Lease(12.5, 30)
    assert LeaseNote(path, "b2").read() is None
    for torn in ("", "{", "[]", '{"boot_id": "b1"}'):
        path.write_text(torn)
        assert LeaseNote(path, "b1").read() is None


# --- what hangs ------------------------------------------------------------------------------------------------------


async def test_a_driver_that_hangs_costs_its_time_limit_and_is_named_and_the_cards_stay() -> None:
    hangs = threading.Event()
    hangs.set()

    class Driver:
        def look(self) -> GpuUse:
            hangs.wait(60)
            return GpuUse((GPU,))

    gpus = PatientGpus(cast("NvmlGpus", Driver()), limit_s=60)
    assert await gpus.read() == (GPU,)
    assert not gpus.problem
    hangs.clear()
    gpus._limit_s = 0.5  # pyright: ignore[reportPrivateUsage]
    threads = threading.active_count()
    for _ in range(5):
        began = time.monotonic()
        assert await gpus.read() == (GPU,)
        assert time.monotonic() - began < 30
        assert "not answered" in gpus.problem
    assert threading.active_count() <= threads + 1, "one thread waits, however often it is asked"
    hangs.set()
    async with asyncio.timeout(60):
        while gpus.problem:
            await gpus.read()
    gpus._gpus = cast("Any", SimpleNamespace(close=lambda: None))  # pyright: ignore[reportPrivateUsage]
    gpus.close()


class Immortal:
    """Stands for a runtime whose program nothing ends."""

    def __init__(self) -> None:
        self.signals: list[str] = []

    def follow(self, *_: Any) -> Any:
        return SimpleNamespace(wait=asyncio.Event().wait, close=lambda: None)

    async def outcome(self, *_: Any) -> Outcome | None:
        return None

    async def kill(self, _key: Key, _handle: str, signal: str) -> None:
        self.signals.append(signal)

    async def clear(self, _key: Key) -> None: ...


def attempts_on(runtime: Any, folder: Path, posted: list[f.Fact]) -> tuple[Attempts, Held]:
    async def publish(*_: object) -> None: ...

    doing = Doing({"process": runtime}, cast("Any", None), folder, posted.append, publish, 1000, cast("Any", None))
    spec = JobSpec(runtime="process", command="true")
    order = Order(job_id="j1", owner_id="u1", attempt=1, spec=spec, seq=1)
    return Attempts(doing), Held(order=order, phase=Phase.RUNNING, since=AT)


async def test_a_program_that_sigkill_does_not_end_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying_out, "_UNKILLABLE_S", 0.5)
    monkeypatch.setattr(carrying_out, "_LINGER_S", 0.1)
    posted: list[f.Fact] = []
    runtime = Immortal()
    attempts, held = attempts_on(runtime, tmp_path, posted)
    attempts.act(e.Follow(held))
    attempts.act(e.Stop(held, 0.1))
    async with asyncio.timeout(60):
        while not posted:
            await asyncio.sleep(0.02)
    assert posted == [f.Unkillable(KEY)]
    assert runtime.signals[0] == "SIGTERM"
    assert set(runtime.signals[1:]) == {"SIGKILL"}
    await attempts.close()


async def test_a_fence_kills_though_a_longer_stop_is_under_way(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(carrying_out, "_LINGER_S", 0.1)
    runtime = Immortal()
    attempts, held = attempts_on(runtime, tmp_path, [])
    attempts.act(e.Follow(held))
    attempts.act(e.Stop(held, 600))
    async with asyncio.timeout(60):
        while not runtime.signals:
            await asyncio.sleep(0.02)
    assert runtime.signals == ["SIGTERM"]
    attempts.act(e.Stop(held, 0))
    async with asyncio.timeout(60):
        while "SIGKILL" not in runtime.signals:
            await asyncio.sleep(0.02)
    await attempts.close()


async def test_what_is_being_published_when_a_program_ends_is_not_dropped(tmp_path: Path) -> None:
    connected, seen = asyncio.Event(), list[str]()

    async def publish(batch: OutputBatch) -> None:
        await connected.wait()
        seen.extend(line.x for line in batch.lines)

    pump = OutputPump(tmp_path, publish, bytes_max=1000)
    running = asyncio.create_task(pump.run())
    pump.sink(Chunk("o", AT, b"one\n", {}))
    await asyncio.sleep(0.05)
    asyncio.get_running_loop().call_later(0.1, connected.set)
    await pump.finish()
    running.cancel()
    assert seen == ["one"]


async def test_what_was_published_is_on_its_way_before_it_is_noted(tmp_path: Path) -> None:
    noted: list[bool] = []

    def send() -> None:
        noted.append((tmp_path / "position.json").exists())

    async def publish(_: OutputBatch) -> None:  # as a connection does: in the next turn of the loop
        asyncio.get_running_loop().call_soon(send)

    pump = OutputPump(tmp_path, publish, bytes_max=1000)
    pump.sink(Chunk("o", AT, b"one\n", {}))
    await pump.finish()
    assert noted == [False], "an agent that is killed in between would leave it out for ever"
    assert (tmp_path / "position.json").exists()


# --- runtimes that are watched ---------------------------------------------------------------------------------------


class Engine:
    """Stands for an engine that may hang or be away, and holds what nobody knows."""

    name = "docker"

    def __init__(self) -> None:
        self.is_away = False
        self.flows = asyncio.Event()
        self.flows.set()
        self.things = {OTHER}
        self.cleared: list[Key] = []

    async def describe(self) -> RuntimeFacts:
        await self.flows.wait()
        if self.is_away:
            raise Unavailable("gone")
        return RuntimeFacts("an engine")

    async def images(self) -> tuple[str, ...]:
        return tuple(f"image{number:04}" for number in range(700))

    async def found(self) -> list[Found]:
        return [Found(key, AT, "c", "started") for key in self.things]

    async def clear(self, key: Key) -> None:
        self.cleared.append(key)


async def test_an_engine_that_goes_away_is_named_and_what_nobody_knows_is_removed_after_its_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("services.node_agent.shell.watch._WATCH_S", 0.05)
    monkeypatch.setattr("services.node_agent.shell.watch._SWEEP_S", 0.05)
    engine, posted, changes = Engine(), list[f.Fact](), list[int]()
    watch = Watch([cast("Any", engine)], 0.3, lambda: {KEY}, posted.append, lambda: changes.append(1))
    engine.things.add(KEY)
    running = asyncio.create_task(watch.run())
    try:
        await watch.until_asked(5)
        assert posted == [f.Recovered("docker", {KEY: ("c", "started"), OTHER: ("c", "started")})]
        assert watch.problems == {"docker": ""}
        assert len(watch.images) == 500
        assert engine.cleared == [], "it has its time"
        async with asyncio.timeout(60):
            while not engine.cleared:
                await asyncio.sleep(0.02)
        assert set(engine.cleared) == {OTHER}
        engine.is_away = True
        async with asyncio.timeout(60):
            while watch.facts:
                await asyncio.sleep(0.02)
        assert watch.problems == {"docker": "gone"}
        assert len(posted) == 1
        assert len(changes) == 2
    finally:
        running.cancel()


async def test_the_first_heartbeat_does_not_wait_for_an_engine_that_hangs() -> None:
    engine = Engine()
    engine.flows.clear()
    watch = Watch([cast("Any", engine)], 60, set, lambda _: None, lambda: None)
    running = asyncio.create_task(watch.run())
    async with asyncio.timeout(60):
        await watch.until_asked(0.1)
    assert not watch.facts
    running.cancel()


# --- small decisions -------------------------------------------------------------------------------------------------


def test_a_stray_has_to_be_unknown_all_the_time() -> None:
    strays = Strays(60)
    assert strays.due({KEY, OTHER}, 0) == []
    assert strays.due({KEY}, 59) == []
    assert strays.due({KEY, OTHER}, 60) == [KEY]
    assert strays.due({OTHER}, 119) == []
    assert strays.due({OTHER}, 120) == [OTHER]


def test_images_are_known_by_all_names_under_which_jobs_ask_for_them() -> None:
    images: list[dict[str, Any]] = [
        {"Id": "sha256:1", "RepoTags": ["a/b:latest", "a/b:2"], "RepoDigests": ["a/b@sha256:9"]},
        {"Id": "sha256:2", "RepoTags": ["<none>:<none>"], "RepoDigests": ["<none>@<none>"]},
        {"Id": "sha256:3", "RepoTags": None, "RepoDigests": None},
    ]
    assert set(image_names(images)) == {
        "a/b", "a/b:latest", "a/b:2", "a/b@sha256:9", "sha256:1", "sha256:2", "sha256:3",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("path", "asked", "expected"),
    [("a/b", None, "a/b"), ("a/b", "a", "b"), ("a/b", "a/b", ""), ("größe", None, "größe")],
)
def test_where_an_output_goes_among_the_inputs(path: str, asked: str | None, expected: str) -> None:
    assert place(path, asked) == expected


@pytest.mark.parametrize(
    ("path", "asked"),
    [("../x", None), ("a/../../x", None), ("/etc/x", None), ("a/./b", None), ("ab", "a"), ("a/..", "a")],
)
def test_an_output_that_leads_out_of_the_input_is_refused(path: str, asked: str | None) -> None:
    with pytest.raises(WherryError, match="leads out"):
        place(path, asked)


def test_what_an_input_is_for() -> None:
    job = "j" + "a" * 25
    spec = JobSpec(image="i", inputs={"all": f"job:{job}", "some": f"job:{job}/a/b/"})
    assert (asked_path(spec, "all"), asked_path(spec, "some")) == (None, "a/b")


def test_problems_are_told_together_and_none_is_nothing() -> None:
    assert problem([], {"docker": "", "process": ""}, None, 1, 0) == ""
    assert problem([], {"docker": "away"}, None, 1, 0, gpus="stuck") == "docker: away; GPUs: stuck"
