"""What a running program has left so far, as those see it who ask; with containers and plain processes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.bus import Bus, Record, job_filter
from shared.channels import JOB_CHANGED, SNAPSHOT_ASK, SNAPSHOT_GET, Service
from shared.errors import NotFound, WherryError
from shared.events import Event, JobChanged
from shared.fleet import Order
from shared.ids import new_id
from shared.job import Attempt, Job
from shared.requests.outputs import SnapshotAsk, SnapshotPage, SnapshotQuery
from shared.states import AttemptState, JobState
from tests.integration.agent_stack import (
    IMAGE,
    NOW,
    OWNER,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    head_of,
    storage_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder / "storage") as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def door(head: Head) -> AsyncIterator[Bus]:
    async with head.stack.bus(Service.GATEWAY, "g1") as bus:
        yield bus


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, folder / "agent") as agent:
        yield agent


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": IMAGE} if request.param == "docker" else {"runtime": "process"}


async def record(head: Head, order: Order, state: JobState) -> None:
    """Tell the log, as the scheduler does, where the job is."""
    attempt = Attempt(number=1, node="n1", state=AttemptState(state.value), placed_at=NOW)
    job = Job(
        id=order.job_id, owner=OWNER, spec=order.spec, state=state, created_at=NOW, updated_at=NOW, attempt=1,
        attempts=(attempt,),
    )  # fmt: skip
    last = await head.bus.last("WHERRY_JOBS", job_filter(order.job_id))
    event = Event[JobChanged](
        id=new_id("e"), source="/wherry/scheduler", type=f"io.wherry.job.{state}.v1", time=NOW, subject=order.job_id,
        data=JobChanged(job=job),
    )  # fmt: skip
    params = {"owner": OWNER.id, "job_id": order.job_id, "event": state.value}
    await head.bus.record(Record(JOB_CHANGED, params, event, (job_filter(order.job_id), last.seq if last else 0)))


async def begin(head: Head, command: str, **spec: Any) -> Order:
    """Start a job and return once it prints "up"."""
    order = await head.place(command=f"{command.strip()}; echo up; sleep 600 & wait", **spec)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    await record(head, order, JobState.RUNNING)
    return order


async def look(door: Bus, order: Order, path: str | None = None, bytes_max: int = 64 * MIB) -> tuple[str, SnapshotPage]:
    snapshot_id = new_id("l")
    await door.ask(
        SNAPSHOT_ASK, SnapshotAsk(snapshot_id=snapshot_id, job_id=order.job_id, path=path, bytes_max=bytes_max)
    )
    async with asyncio.timeout(60):
        while True:
            found = await door.ask(SNAPSHOT_GET, SnapshotQuery(snapshot_id=snapshot_id, job_id=order.job_id))
            if found.taken_at is not None:
                return snapshot_id, found
            await asyncio.sleep(0.02)


WRITES = """
cd "$WHERRY_OUTPUTS"; mkdir -p deep/er; echo first > deep/er/a; echo other > b; ln -s /etc/passwd link
dd if=/dev/zero of=large bs=1024 count=3072 2>/dev/null; mkdir deeper; echo no > deeper/c
"""


async def test_outputs_are_seen_while_the_program_runs_all_of_them_or_what_is_below_a_path(
    head: Head, door: Bus, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    order = await begin(head, WRITES, **runtime)
    _, everything = await look(door, order)
    assert everything.attempt == 1
    assert [(one.path, one.kind, one.blob.size if one.blob else 0) for one in everything.page.entries] == [
        ("b", "file", 6), ("deep", "dir", 0), ("deep/er", "dir", 0), ("deep/er/a", "file", 6), ("deeper", "dir", 0),
        ("deeper/c", "file", 3), ("large", "file", 3 * MIB),
    ]  # fmt: skip
    assert everything.page.skipped == ("link: a link, a device or not readable, left out",)
    for entry in everything.page.entries:
        if entry.blob:
            assert len(await head.read(entry.blob)) == entry.blob.size

    _, part = await look(door, order, "deep")
    assert [one.path for one in part.page.entries] == ["deep", "deep/er", "deep/er/a"]
    _, file = await look(door, order, "deep/er/a")
    (entry,) = file.page.entries
    assert entry.blob
    assert await head.read(entry.blob) == b"first\n"

    _, small = await look(door, order, bytes_max=MIB)
    assert "large" not in {one.path for one in small.page.entries}
    assert any(one.startswith("large: its 3.0 MiB are beyond the 1.0 MiB") for one in small.page.skipped)
    for missing in ("none", "deep/none", "../workspace", "link/x"):
        with pytest.raises(NotFound):
            await look(door, order, missing)

    await head.say(order, "stop", grace_s=1.0)
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert "large" in {entry.path for entry in (await head.manifest(finished)).entries}, "looking took nothing away"
    with pytest.raises(WherryError) as caught:
        await look(door, order)
    assert caught.value.code == "not_running"
    await head.forget(order, agent)


async def test_a_look_stays_as_it_was_while_the_program_writes_on(
    head: Head, door: Bus, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    grows = """
    cd "$WHERRY_OUTPUTS"; (while true; do echo 0123456789 >> log; done) &
    until [ -s log ]; do sleep 0.1; done
    """
    order = await begin(head, grows, resources={"disk": "1GiB"}, **runtime)
    sizes: list[int] = []
    async with asyncio.timeout(90):
        while len(sizes) < 2 or sizes[-1] == sizes[0]:  # the program may not have had a turn meanwhile
            _, found = await look(door, order, "log")
            (entry,) = found.page.entries
            assert entry.blob
            body = await head.read(entry.blob)
            assert len(body) == entry.blob.size
            assert body.startswith(b"0123456789\n")
            sizes.append(len(body))
    assert sizes[0] < sizes[-1]
    refs = head.stack.database["blob_refs"]
    assert refs.count_documents({"scope": {"$regex": f"^attempt:{order.job_id}"}}) == 0, "a look is no output"
    assert refs.count_documents({"scope": {"$regex": f"^live:{order.job_id}"}}) >= 4
    await head.forget(order, agent)


async def test_a_job_that_is_nowhere_cannot_be_looked_at(head: Head, door: Bus) -> None:
    order = await head.place(command="true", image=IMAGE)
    with pytest.raises(WherryError) as caught:
        await look(door, order)
    assert caught.value.code == "not_running"
