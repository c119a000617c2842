"""What a program may write: over its promise it is stopped, and of what it left the part that fits is kept."""

import re
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.integration.agent_stack import IMAGE, AgentProcess, Head, agent_of, busybox, head_of, storage_of

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
MIB = 1024 * 1024


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    busybox()
    async with storage_of(mongo_server, folder / "storage") as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, folder / "agent") as agent:
        await agent.stop()
        agent.env["WHERRY_DISK_INTERVAL_S"] = "0.2"
        await agent.start()
        yield agent


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": IMAGE} if request.param == "docker" else {"runtime": "process"}


FILL = """
cd "$WHERRY_OUTPUTS"; dd if=/dev/zero of=a_early bs=1024 count=1024 2>/dev/null
dd if=/dev/zero of=%s bs=1024 count=3072 2>/dev/null; echo filled; sleep 100 & wait
"""


@pytest.mark.parametrize("where", ["b_large", '"$WHERRY_WORKSPACE/b_large"'])
async def test_a_program_that_writes_more_than_its_disk_is_stopped_and_what_fits_of_its_outputs_is_kept(
    head: Head, agent: AgentProcess, runtime: dict[str, Any], where: str
) -> None:
    order, finished = await head.run(command=FILL % where, resources={"disk": 2 * MIB}, **runtime)
    assert (finished["state"], finished["error"]["reason"]) == ("failed", "disk"), finished
    assert re.search(r"has written [234]\.\d MiB and was promised 2\.0 MiB", finished["error"]["message"]), finished
    manifest = await head.manifest(finished)
    assert [entry.path for entry in manifest.entries] == ["a_early"]
    left_out = r"b_large: its [123]\.\d MiB are beyond the 2\.0 MiB that are kept of a job, left out"
    assert [bool(re.fullmatch(left_out, one)) for one in manifest.skipped] == ([True] if where == "b_large" else [])
    assert finished.get("remarks", []) == list(manifest.skipped)
    await head.forget(order, agent)


async def test_a_program_within_its_disk_is_left_alone_and_a_file_of_two_names_counts_once(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    command = """
    cd "$WHERRY_OUTPUTS"; dd if=/dev/zero of=one bs=1024 count=1536 2>/dev/null; ln one two; sleep 2
    """
    order, finished = await head.run(command=command, resources={"disk": 2 * MIB}, **runtime)
    assert finished["state"] == "succeeded", finished
    manifest = await head.manifest(finished)
    assert sorted(entry.path for entry in manifest.entries) == ["one", "two"]
    await head.forget(order, agent)


async def test_a_cap_for_outputs_of_its_own_leaves_out_what_is_beyond_it_and_the_job_succeeds(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    await agent.stop()
    await agent.start(WHERRY_OUTPUTS_BYTES_MAX=str(MIB))
    command = 'cd "$WHERRY_OUTPUTS"; dd if=/dev/zero of=large bs=1024 count=1025 2>/dev/null; echo x > small'
    order, finished = await head.run(command=command, resources={"disk": 8 * MIB}, **runtime)
    assert finished["state"] == "succeeded", finished
    manifest = await head.manifest(finished)
    assert [entry.path for entry in manifest.entries] == ["small"]
    assert list(manifest.skipped) == ["large: its 1.0 MiB are beyond the 1.0 MiB that are kept of a job, left out"]
    await head.forget(order, agent)
