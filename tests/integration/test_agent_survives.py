"""Killed agents, lost brokers, absent storage and engines: programs run on, and their results arrive once."""

import asyncio
import random
import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.agent_stack import (
    IMAGE,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    docker,
    head_of,
    storage_of,
    zip_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
COUNT = 'echo run >> "$WHERRY_OUTPUTS/runs"; i=0; while [ $i -lt %d ]; do i=$((i+1)); echo "line $i"; sleep 0.1; done'


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder) as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(loop_scope="module")
async def agent(head: Head, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, tmp_path) as agent:
        yield agent


async def check(head: Head, job_id: str, count: int, end: str = "succeeded") -> None:
    """The program ran once, and every line came: in the log, and in the batches under its number."""
    finished = await head.until(lambda: head.told(job_id, "finished"))
    assert finished["state"] == end, finished
    assert len([1 for job, name, _ in head.reports if (job, name) == (job_id, "finished")]) == 1
    manifest = await head.manifest(finished)
    (runs,) = (entry.blob for entry in manifest.entries if entry.path == "runs")
    assert runs
    assert await head.read(runs) == b"run\n"
    expected = [f"line {number}" for number in range(1, count + 1)]
    assert manifest.stdout
    assert (await head.read(manifest.stdout)).decode().splitlines() == expected
    numbered = {line.n: line.x for line in head.lines[job_id]}
    assert numbered == dict(enumerate(expected, 1))


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": IMAGE} if request.param == "docker" else {"runtime": "process"}


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGTERM])
async def test_a_program_runs_on_without_its_agent_and_the_next_agent_takes_it_up(
    head: Head, agent: AgentProcess, runtime: dict[str, Any], number: signal.Signals
) -> None:
    order = await head.place(command=COUNT % 40, **runtime)
    await head.say(order, "start")
    await head.until(lambda: len(head.text(order.job_id)) >= 5)
    await agent.stop(number)
    await asyncio.sleep(1)
    await agent.start()
    await check(head, order.job_id, 40)


async def test_a_program_that_ends_while_there_is_no_agent_has_its_result_stored_by_the_next(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    order = await head.place(command=COUNT % 10, **runtime)
    await head.say(order, "start")
    await head.until(lambda: head.text(order.job_id))
    await agent.stop(signal.SIGKILL)
    await asyncio.sleep(2)
    await agent.start()
    await check(head, order.job_id, 10)


@pytest.mark.parametrize("pause_s", [0.0, 0.02, 0.05, 0.1, 0.2])
async def test_an_agent_killed_at_any_moment_of_the_start_ends_in_one_run(
    head: Head, agent: AgentProcess, pause_s: float
) -> None:
    source = await head.upload(zip_of({"data.bin": random.Random(1).randbytes(5_000_000)}))
    order = await head.place(command=COUNT % 5, image=IMAGE, source=source)
    await head.say(order, "start")
    if pause_s:
        await head.until(lambda: head.told(order.job_id, "starting"))
    await asyncio.sleep(pause_s)
    await agent.stop(signal.SIGKILL)
    await agent.start()
    await check(head, order.job_id, 5)


async def test_results_wait_for_a_storage_that_is_away_also_over_a_restart_of_the_agent(
    head: Head, agent: AgentProcess
) -> None:
    order = await head.place(command=COUNT % 3 + '; head -c 5000000 /dev/urandom > "$WHERRY_OUTPUTS/big"', image=IMAGE)
    await head.stack.end(signal.SIGKILL)
    await head.say(order, "start")
    await head.until(lambda: head.told(order.job_id, "finishing"))
    await agent.stop(signal.SIGKILL)
    await agent.start()
    await asyncio.sleep(1)
    assert head.told(order.job_id, "finished") is None
    await head.stack.start()
    await check(head, order.job_id, 3)


async def test_an_agent_told_to_stop_its_jobs_leaves_nothing_running(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    await agent.stop()
    await agent.start(WHERRY_STOP_JOBS_ON_EXIT="1")
    order = await head.place(command="echo up; sleep 100", **runtime)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    assert await agent.stop() == 0
    assert [name for name in agent.left_behind() if name.startswith("wherry-")] == []
    assert list((agent.data / "processes").iterdir()) == []
    await agent.start()
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["error"]["reason"] == "agent_lost_container"


async def test_a_container_that_somebody_removed_is_reported_as_lost(head: Head, agent: AgentProcess) -> None:
    order = await head.place(command="echo up; sleep 100", image=IMAGE)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    docker("rm", "-f", f"wherry-{agent.stack_id}-{order.job_id}-1")
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert (finished["state"], finished["error"]["reason"]) in (
        ("failed", "agent_lost_container"),
        ("failed", "exit_code"),  # the engine killed it first, and said so
    )


async def test_what_is_ours_and_in_no_journal_is_removed_and_what_is_not_ours_stays(
    head: Head, agent: AgentProcess
) -> None:
    await agent.stop()
    ours = ["--label", f"wherry.stack={agent.stack_id}", "--label", "wherry.node=n1"]
    stray = [*ours, "--label", "wherry.job=jstray", "--label", "wherry.attempt=1"]
    name = f"wherry-{agent.stack_id}-jstray-1"
    other = [*stray, "--label", "wherry.node=n2"]
    docker("create", "--name", name, *stray, IMAGE, "true")
    docker("volume", "create", *stray, f"{name}-outputs")
    docker("create", "--name", f"{name}-of-another-node", *other, IMAGE, "true")
    await agent.start(WHERRY_STRAY_AGE_S="0")
    async with asyncio.timeout(90):
        while set(await asyncio.to_thread(agent.left_behind)) != {f"{name}-of-another-node"}:
            await asyncio.sleep(0.1)


async def test_a_node_whose_engine_is_away_says_so_and_comes_back(
    head: Head, agent: AgentProcess, tmp_path: Path
) -> None:
    await agent.stop()
    head.beats.clear()
    socket = tmp_path / "engine.sock"
    await agent.start(DOCKER_HOST=f"unix://{socket}", WHERRY_RUNTIMES="docker")
    beat = await head.until(lambda: next((one for one in head.beats if str(socket) in one.node.engine), None))
    assert beat.node.runtimes == ()
    assert "DOCKER_HOST" in beat.node.engine
    order = await head.place(command=COUNT % 2, image=IMAGE)
    await head.say(order, "start")
    socket.symlink_to("/var/run/docker.sock")
    await head.until(lambda: head.beats[-1].node.runtimes == ("docker",))
    await check(head, order.job_id, 2)


async def test_reports_and_results_survive_a_broker_that_restarts(head: Head, agent: AgentProcess) -> None:
    order = await head.place(command=COUNT % 20, image=IMAGE)
    await head.say(order, "start")
    await head.until(lambda: head.text(order.job_id))
    head.stack.nats.kill()
    await asyncio.sleep(1)
    head.stack.nats.start()
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["state"] == "succeeded"
    manifest = await head.manifest(finished)
    assert manifest.stdout
    assert len((await head.read(manifest.stdout)).splitlines()) == 20
