"""Outputs of one job as inputs of another: there, read-only, with their hierarchy, and nobody else's."""

import signal
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.blobs import BlobClient
from shared.channels import Service
from shared.errors import NotFound
from shared.fleet import Order
from shared.job import Attempt, Job, OutputsRef, Owner
from shared.requests.blobs import BlobRead, InputQuery
from shared.states import AttemptState, JobState
from tests.integration.agent_stack import (
    IMAGE,
    NOW,
    OWNER,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    docker,
    head_of,
    storage_of,
    whole,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
MAKE = """
mkdir -p "$WHERRY_OUTPUTS/deep/er/empty"
head -c 2000000 /dev/zero > "$WHERRY_OUTPUTS/deep/er/zeros"
echo tool > "$WHERRY_OUTPUTS/deep/tool.sh"; chmod 755 "$WHERRY_OUTPUTS/deep/tool.sh"
printf größe > "$WHERRY_OUTPUTS/größe"
echo beside > "$WHERRY_OUTPUTS/deeper"
echo said
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder) as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(loop_scope="module")
async def agent(head: Head, tmp_path: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, tmp_path) as agent:
        yield agent


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": IMAGE} if request.param == "docker" else {"runtime": "process"}


async def ended(head: Head, order: Order, finished: dict[str, Any], owner: Owner = OWNER) -> None:
    """Record the job's end as the scheduler does."""
    outputs = OutputsRef.model_validate(finished["outputs"])
    attempt = Attempt(number=1, node="n1", state=AttemptState.SUCCEEDED, placed_at=NOW, ended_at=NOW, outputs=outputs)
    job = Job(
        id=order.job_id, owner=owner, spec=order.spec, state=JobState.SUCCEEDED, created_at=NOW, updated_at=NOW,
        ended_at=NOW, attempt=1, attempts=(attempt,), outputs=outputs,
    )  # fmt: skip
    await head.stack.record(job, "succeeded")


async def made(head: Head, **more: Any) -> Order:
    order, finished = await head.run(command=MAKE, runtime="process")
    assert finished["state"] == "succeeded", finished
    await ended(head, order, finished, **more)
    return order


async def test_outputs_of_another_job_are_inputs_read_only_with_their_hierarchy(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = (await made(head)).job_id
    inputs = {
        "all": f"job:{source}",
        "folder": f"job:{source}/deep/",
        "file": f"job:{source}/größe",
        "log": f"job:{source}/_stdout.txt",
    }
    look = """
        cd "$WHERRY_INPUTS"; find . | sort; cat file; echo; cat log; wc -c < folder/er/zeros
        test -x all/deep/tool.sh && echo executable; test -d folder/er/empty && echo empty
    """
    order, finished = await head.run(command=look, inputs=inputs, **runtime)
    assert finished["state"] == "succeeded", finished
    manifest = await head.manifest(finished)
    assert manifest.stdout
    assert (await head.read(manifest.stdout)).decode().splitlines() == [
        ".", "./all", "./all/deep", "./all/deep/er", "./all/deep/er/empty", "./all/deep/er/zeros",
        "./all/deep/tool.sh", "./all/deeper", "./all/größe",
        "./file", "./folder", "./folder/er", "./folder/er/empty", "./folder/er/zeros", "./folder/tool.sh", "./log",
        "größe", "said", "2000000", "executable", "empty",
    ]  # fmt: skip
    assert not (agent.data / "attempts" / f"{order.job_id}-1" / "inputs").exists(), "they take the disk twice"
    await head.forget(order, agent)


async def test_a_container_cannot_write_to_its_inputs_and_has_the_folder_without_any(
    head: Head, agent: AgentProcess
) -> None:
    source = (await made(head)).job_id
    for inputs in ({"one": f"job:{source}"}, {}):
        command = 'ls "$WHERRY_INPUTS"; cd "$WHERRY_INPUTS" && ! touch new && ! touch one/new'
        order, finished = await head.run(command=command, inputs=inputs, image=IMAGE)
        assert finished["state"] == "succeeded", finished
        manifest = await head.manifest(finished)
        assert manifest.stdout
        assert (await head.read(manifest.stdout)).decode().split() == list(inputs)
        await head.forget(order, agent)


async def test_a_missing_path_a_job_that_runs_and_one_of_somebody_else_are_missing_inputs(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    mine, foreign = await made(head), await made(head, owner=Owner(id="u2", name="bob"))
    running = await head.place(command="true", image=IMAGE)
    for reference, words in (
        (f"job:{mine.job_id}/no/such", "no/such"),
        (f"job:{mine.job_id}/dee", "dee"),  # the beginning of a name is no folder
        (f"job:{foreign.job_id}", "There is no job"),
        (f"job:{running.job_id}", "has left no outputs"),
    ):
        order, finished = await head.run(command="true", inputs={"x": reference}, **runtime)
        assert (finished["state"], finished["error"]["reason"]) == ("failed", "input_missing"), finished
        assert words in finished["error"]["message"]
        await head.forget(order, agent)


async def test_a_second_job_finds_what_the_first_had_brought_without_taking_its_promised_disk(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = (await made(head)).job_id
    spec: dict[str, Any] = {"inputs": {"x": f"job:{source}/deep"}, "resources": {"disk": "1MB"}, **runtime}
    for _ in range(2):
        order, finished = await head.run(command='cat "$WHERRY_INPUTS/x/tool.sh"', **spec)
        assert finished["state"] == "succeeded", finished
        await head.forget(order, agent)
    assert agent.log().count("input_brought") == 1
    [held] = await head.until(lambda: head.beats[-1].inputs)
    assert held.bytes == 2_000_005


async def test_inputs_beyond_what_the_node_keeps_are_refused(head: Head, tmp_path: Path) -> None:
    async with agent_of(head.stack, head, tmp_path) as agent:
        source = (await made(head)).job_id
        await agent.stop(signal.SIGTERM)
        agent.env["WHERRY_INPUTS_DISK"] = "1MB"
        await agent.start()
        _, finished = await head.run(command="true", image=IMAGE, inputs={"x": f"job:{source}"})
        assert finished["error"]["reason"] == "disk"
        assert "WHERRY_INPUTS_DISK" in finished["error"]["message"]


async def test_inputs_that_fit_one_by_one_and_not_together_are_refused_and_not_waited_for(
    head: Head, tmp_path: Path
) -> None:
    async with agent_of(head.stack, head, tmp_path) as agent:
        source = (await made(head)).job_id
        await agent.stop(signal.SIGTERM)
        agent.env["WHERRY_INPUTS_DISK"] = "3MB"  # both have the zeros, of 2 MB
        await agent.start()
        inputs = {"folder": f"job:{source}/deep", "zeros": f"job:{source}/deep/er/zeros"}
        _, finished = await head.run(command="true", runtime="process", inputs=inputs)
        assert finished["error"]["reason"] == "disk"
        assert "of others of this job" in finished["error"]["message"]


async def test_what_a_killed_agent_was_filling_is_removed_and_what_it_kept_stays(
    head: Head, agent: AgentProcess
) -> None:
    source = (await made(head)).job_id
    spec: dict[str, Any] = {"command": "true", "image": IMAGE, "inputs": {"x": f"job:{source}/deep"}}
    order, _ = await head.run(**spec)
    await head.forget(order, agent)
    await agent.stop(signal.SIGKILL)
    labels = [f"wherry.stack={agent.stack_id}", "wherry.node=n1", "wherry.input=broken"]
    docker("volume", "create", f"{agent.stack_id}-broken", *(f"--label={label}" for label in labels))
    broken = agent.data / "processes-inputs" / "broken.part"
    broken.mkdir()
    await agent.start()
    order, finished = await head.run(**spec)
    assert finished["state"] == "succeeded", finished
    assert agent.log().count("input_brought") == 1
    await head.until(lambda: agent.log().count("input_left_over") == 2)
    await head.until(lambda: not broken.exists())


async def test_a_node_reads_inputs_of_what_it_runs_and_nothing_beside_them(head: Head, agent: AgentProcess) -> None:
    source = (await made(head)).job_id
    order = await head.place(command="true", image=IMAGE, inputs={"x": f"job:{source}/deep"})
    async with head.stack.bus(Service.NODE_AGENT, "n1") as one, head.stack.bus(Service.NODE_AGENT, "n2") as two:
        mine, other = BlobClient(one, "node", "n1"), BlobClient(two, "node", "n2")
        page = await mine.input_page(InputQuery(job_id=order.job_id, input="x"))
        assert [entry.path for entry in page.entries] == [
            "deep/er", "deep/er/empty", "deep/er/zeros", "deep/tool.sh",
        ]  # fmt: skip
        wanted = BlobRead(job_id=order.job_id, input="x", path="deep/tool.sh")
        assert await whole(mine.read(wanted)) == b"tool\n"
        for path in ("größe", "deeper", "deep/../größe", "deep", ""):
            with pytest.raises(NotFound):
                await whole(mine.read(wanted.model_copy(update={"path": path})))
        with pytest.raises(NotFound):
            await whole(other.read(wanted))
        with pytest.raises(NotFound):
            await other.input_page(InputQuery(job_id=order.job_id, input="x"))
