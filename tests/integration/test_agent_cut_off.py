"""Agents without a broker, without an engine that answers, without a lease: what must stop stops, the rest arrives."""

import asyncio
import json
import os
import random
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.fleet import Heartbeat, Order
from tests.integration.agent_stack import (
    IMAGE,
    ROOT,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    docker,
    head_of,
    storage_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
STUBBORN = "trap '' TERM; echo up; while true; do sleep 0.1; done"
UNTIL_TOLD = (
    'echo run >> "$WHERRY_OUTPUTS/runs"; echo started; until [ -e "$HOME/end" ]; do sleep 0.1; done; echo ended'
)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder) as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(loop_scope="module")
async def agent(head: Head, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, tmp_path) as agent:
        yield agent


@asynccontextmanager
async def broker_away(head: Head) -> AsyncIterator[None]:
    head.stack.nats.kill()
    try:
        yield
    finally:
        head.stack.nats.start()


async def started(head: Head, **spec: Any) -> Order:
    order = await head.place(**spec)
    await head.say(order, "start")
    await head.until(lambda: head.text(order.job_id))
    return order


def name_of(agent: AgentProcess, order: Order) -> str:
    return f"wherry-{agent.stack_id}-{order.job_id}-1"


def state_of(agent: AgentProcess, order: Order) -> dict[str, Any]:
    return json.loads(docker("inspect", "--format", "{{json .State}}", name_of(agent, order)))


def over_at(agent: AgentProcess, order: Order) -> datetime:
    """Return when a container ended, as its engine saw it."""
    return datetime.fromisoformat(state_of(agent, order)["FinishedAt"][:26]).replace(tzinfo=UTC)


def end(agent: AgentProcess, order: Order) -> None:
    """Let a program that runs until it is told end. Its container may take with it what tells it so."""
    if order.spec.runtime == "docker":
        docker("exec", name_of(agent, order), "touch", "/workspace/end", check=False)
    else:
        (agent.data / "processes" / f"{order.job_id}-1" / "workspace" / "end").touch()


def is_alive(agent: AgentProcess, order: Order) -> bool:
    if order.spec.runtime == "docker":
        return bool(state_of(agent, order)["Running"])
    return not (agent.data / "processes" / f"{order.job_id}-1" / "exit.json").exists()


async def becomes(true: Callable[[], Any], timeout_s: float = 90) -> None:
    """Wait for something that nobody tells of."""
    async with asyncio.timeout(timeout_s):
        while not await asyncio.to_thread(true):
            await asyncio.sleep(0.1)


def logged(agent: AgentProcess, action: str, order: Order) -> bool:
    return any(f'"{action}"' in line and order.job_id in line for line in agent.log().splitlines())


async def finished(head: Head, order: Order, timeout_s: float = 90) -> dict[str, Any]:
    return await head.until(lambda: head.told(order.job_id, "finished"), timeout_s)


async def check_one_run(head: Head, order: Order) -> None:
    """The program was started once, printed everything once, and what it left is there."""
    last = await finished(head, order)
    assert last["state"] == "succeeded", last
    manifest = await head.manifest(last)
    (runs,) = (entry.blob for entry in manifest.entries if entry.path == "runs")
    assert runs
    assert manifest.stdout
    assert await head.read(runs) == b"run\n"
    assert await head.read(manifest.stdout) == b"started\nended\n"
    assert len([1 for job, name, _ in head.reports if (job, name) == (order.job_id, "finished")]) == 1


# --- restarts ------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(900)
async def test_a_hundred_restarts_of_the_agent_restart_no_program(head: Head, agent: AgentProcess) -> None:
    containers = [await started(head, command=UNTIL_TOLD, image=IMAGE) for _ in range(3)]
    processes = [await started(head, command=UNTIL_TOLD, runtime="process")]
    orders = [*containers, *processes]
    before = {order.job_id: state_of(agent, order) for order in containers}
    luck, began = random.Random(1), time.monotonic()

    def has_all(beat: Heartbeat) -> bool:
        return {held.job_id for held in beat.attempts if held.state == "running"} >= {one.job_id for one in orders}

    for number in range(100):
        await agent.stop(signal.SIGKILL if number % 4 else signal.SIGTERM)
        head.beats.clear()
        await agent.start()
        if number % 2:  # killed at any moment of its start, or once it has taken everything up
            await asyncio.sleep(luck.uniform(0, 1.5))
        else:
            await head.until(lambda: head.beats and has_all(head.beats[-1]))
    print(f"100 restarts took {time.monotonic() - began:.0f} s")
    await head.until(lambda: head.beats and has_all(head.beats[-1]))

    after = {order.job_id: state_of(agent, order) for order in containers}
    assert [state["Running"] for state in after.values()] == [True] * 3
    for job_id, state in after.items():
        assert (state["StartedAt"], state["Pid"]) == (before[job_id]["StartedAt"], before[job_id]["Pid"])
    for order in orders:
        end(agent, order)
    for order in orders:
        await check_one_run(head, order)
        assert {line.n: line.x for line in head.lines[order.job_id]} == {1: "started", 2: "ended"}


async def test_a_machine_that_comes_back_without_network_delivers_once_there_is_one(
    head: Head, agent: AgentProcess
) -> None:
    ended = await started(head, command=UNTIL_TOLD, image=IMAGE)
    alone = await started(head, command=UNTIL_TOLD, runtime="process")
    goes_on = await started(head, command=UNTIL_TOLD, image=IMAGE)
    limited = await started(head, command="echo up; sleep 100", image=IMAGE, timeouts={"run": 8})
    await agent.stop(signal.SIGKILL)
    async with broker_away(head):
        for order in (ended, alone):
            end(agent, order)  # nobody sees it
        await agent.start()
        for order in (ended, alone, limited):  # taken up, and the limit enforced, with nobody to talk to
            await becomes(lambda order=order: logged(agent, "attempt_finishing", order))
        assert not is_alive(agent, limited)
        end(agent, goes_on)
        await becomes(lambda: logged(agent, "attempt_finishing", goes_on))
        await agent.stop(signal.SIGKILL)
        await agent.start()
        await asyncio.sleep(1)
    for order in (ended, alone, goes_on):
        await check_one_run(head, order)
    assert (await finished(head, limited))["error"]["reason"] == "run_timeout"


# --- leases --------------------------------------------------------------------------------------------------------


async def test_cut_off_the_agent_stops_what_must_not_run_twice_before_its_lease_ends(
    head: Head, agent: AgentProcess
) -> None:
    head.says["lease_s"] = 24.0
    exclusive = await started(head, command=STUBBORN, image=IMAGE, exclusive=True)
    process = await started(head, command=STUBBORN, runtime="process", on_disconnect="stop")
    kept = await started(head, command=UNTIL_TOLD, image=IMAGE)
    async with broker_away(head):
        answered, last = (beat.at for beat in head.beats[-2:])  # the answer to the last one may be lost
        await becomes(lambda: not is_alive(agent, exclusive) and not is_alive(agent, process))
        over = over_at(agent, exclusive)
        print(f"over {(over - last).total_seconds():.2f} s after the last heartbeat")
        assert (over - answered).total_seconds() >= 16, "stopped long before it had to be"
        assert (over - last).total_seconds() < 24.0
        await asyncio.sleep(2)
        assert is_alive(agent, kept)
    for order in (exclusive, process):
        assert (await finished(head, order))["error"]["reason"] == "fenced"
    end(agent, kept)
    await check_one_run(head, kept)


async def test_an_agent_that_comes_back_after_its_lease_stops_what_must_not_run_twice(
    head: Head, agent: AgentProcess
) -> None:
    head.says["lease_s"] = 12.0
    order = await started(head, command=STUBBORN, image=IMAGE, exclusive=True)
    await agent.stop(signal.SIGKILL)
    async with broker_away(head):
        answered = head.beats[-2].at  # the answer to the last one may be lost
        await agent.start()  # at once: the lease that the agent before it had is good still
        await asyncio.sleep(1)
        await agent.stop(signal.SIGKILL)
        await asyncio.sleep(11)
        await agent.start()
        await becomes(lambda: not is_alive(agent, order))
        assert (over_at(agent, order) - answered).total_seconds() >= 8, "stopped while the lease was good"
    assert (await finished(head, order))["error"]["reason"] == "fenced"


async def test_an_agent_that_slept_past_its_lease_fences_first_thing_on_waking(head: Head, agent: AgentProcess) -> None:
    order = await started(head, command=STUBBORN, image=IMAGE, exclusive=True)
    head.says["lease_s"] = 6.0  # only now: a start may take longer
    count = len(head.beats)
    await head.until(lambda: len(head.beats) >= count + 3)  # it has taken in an answer before it asks again
    assert agent.process
    agent.process.send_signal(signal.SIGSTOP)
    await asyncio.sleep(7)
    agent.process.send_signal(signal.SIGCONT)
    assert (await finished(head, order))["error"]["reason"] == "fenced"


# --- what the scheduler and people say -------------------------------------------------------------------------------


async def test_a_stop_abandons_an_upload_that_is_stuck(head: Head, agent: AgentProcess) -> None:
    order = await head.place(command='head -c 3000000 /dev/urandom > "$WHERRY_OUTPUTS/big"', image=IMAGE)
    await head.stack.end(signal.SIGKILL)
    try:
        await head.say(order, "start")
        await head.until(lambda: head.told(order.job_id, "finishing"))
        await asyncio.sleep(1)
        assert head.told(order.job_id, "finished") is None
        await head.say(order, "stop")
        last = await finished(head, order)
        assert (last["state"], last["error"]["reason"]) == ("cancelled", "cancelled_by_user")
        assert last.get("outputs") is None
        await head.until(lambda: head.beats[-1].attempts and head.beats[-1].attempts[0].delivered)
        await head.forget(order, agent)
    finally:
        await head.stack.start()
        await head.stack.ready()


async def test_an_agent_whose_identity_another_one_has_ends_and_leaves_its_programs_alone(
    head: Head, agent: AgentProcess
) -> None:
    order = await started(head, command=UNTIL_TOLD, image=IMAGE)
    head.says["evicted"] = True
    assert agent.process
    async with asyncio.timeout(90):
        assert await agent.process.ended() == 78
    assert "evicted" in agent.log()
    assert is_alive(agent, order)


async def test_an_agent_whose_identity_is_another_s_leaves_nothing_exclusive_running(
    head: Head, agent: AgentProcess
) -> None:
    order = await started(head, command=UNTIL_TOLD, image=IMAGE, exclusive=True)
    head.says["evicted"] = True
    assert agent.process
    async with asyncio.timeout(90):
        assert await agent.process.ended() == 78
    assert not [name for name in agent.left_behind() if name.startswith("wherry-") and order.job_id in name]


async def test_an_agent_that_leaves_says_so_and_ends_with_its_last_job(head: Head, agent: AgentProcess) -> None:
    order = await started(head, command=UNTIL_TOLD, image=IMAGE)
    env = os.environ | {"WHERRY_DATA_DIR": str(agent.data), "WHERRY_NODE_ID": "n1"}
    leave = await asyncio.create_subprocess_exec(
        sys.executable, "-m", "services.node_agent", "leave", cwd=ROOT, env=env, stdout=asyncio.subprocess.PIPE
    )
    await head.until(lambda: head.beats[-1].leaving)
    assert not (head.beats[-1].attempts[0].delivered)
    end(agent, order)
    await check_one_run(head, order)
    await head.forget(order, agent)
    assert agent.process
    async with asyncio.timeout(90):
        assert await agent.process.ended() == 0
        said, _ = await leave.communicate()
    assert leave.returncode == 0
    assert "It has ended." in said.decode()


# --- an engine that hangs --------------------------------------------------------------------------------------------


class SlowEngine:
    """A way to the real engine that can be held: what is sent stays unanswered for as long."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.flows = asyncio.Event()
        self.flows.set()
        self._tasks: set[asyncio.Task[None]] = set()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        there, back = await asyncio.open_unix_connection("/var/run/docker.sock")

        async def pump(source: asyncio.StreamReader, target: asyncio.StreamWriter) -> None:
            with suppress(ConnectionError):
                while data := await source.read(65536):
                    await self.flows.wait()
                    target.write(data)
                    await target.drain()
                if target.can_write_eof():
                    target.write_eof()

        try:
            await asyncio.gather(pump(reader, back), pump(there, writer))
        finally:
            back.close()
            writer.close()


async def test_an_engine_that_hangs_is_a_problem_of_the_node_and_does_not_silence_it(
    head: Head, agent: AgentProcess, tmp_path: Path
) -> None:
    await agent.stop()
    engine = SlowEngine(tmp_path / "engine.sock")
    server = await asyncio.start_unix_server(engine.serve, engine.path)
    try:
        head.beats.clear()
        await agent.start(DOCKER_HOST=f"unix://{engine.path}", WHERRY_ENGINE_TIMEOUT_S="10")
        names = {IMAGE, f"{IMAGE}:latest"}
        await head.until(lambda: head.beats and not head.beats[-1].problem and names <= set(head.beats[-1].images))
        order = await started(head, command=UNTIL_TOLD, image=IMAGE)
        engine.flows.clear()
        await head.until(lambda: head.beats[-1].problem.startswith("docker: "))
        assert head.beats[-1].node.runtimes == ("process",)
        count, began = len(head.beats), time.monotonic()
        await head.until(lambda: len(head.beats) >= count + 8)
        assert time.monotonic() - began < 8 * 10, "it waits for no engine, which would take ten seconds each time"
        engine.flows.set()
        await head.until(lambda: not head.beats[-1].problem)
        end(agent, order)
        await check_one_run(head, order)
        await agent.stop(signal.SIGKILL)
    finally:
        engine.flows.set()
        server.close()
