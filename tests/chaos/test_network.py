"""Agents behind networks that misbehave: what runs goes on, what is lost is placed again in time.

All that may happen to a network mostly waits, so it happens at once, each to two agents of its own.
"""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncGenerator, Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx
import psutil
import pytest
import pytest_asyncio

from benchmarks.stack import BenchStack
from infra.local.engine import STACK_LABEL, engine, remove_containers
from infra.local.servers import NatsServer
from tests.chaos.proxy import Proxy
from tests.e2e.stack import ENDS, docker_answers

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(420), pytest.mark.asyncio(loop_scope="module")]

IMAGE = "wherry/busybox:latest"
REPLACED_S = 35.0
#: A restarted program would leave its line twice: the folder outlives the program.
COUNTS_STARTS = 'echo started >> "$WHERRY_OUTPUTS/starts.txt"; '


def _has_image() -> bool:
    look = ["docker", "image", "inspect", IMAGE]
    return docker_answers() and subprocess.run(look, capture_output=True, check=False).returncode == 0


@dataclass
class Pair:
    """Two agents that reach NATS only through the networks. What they share with other pairs is the stack."""

    tag: str
    stack: BenchStack
    http: httpx.AsyncClient
    runtime: str
    networks: dict[str, Proxy]
    stack_id: str

    def start_agent(self, node: str) -> None:
        url = f"nats://127.0.0.1:{self.networks[node].port}"
        env = {"WHERRY_STACK_ID": self.stack_id, "WHERRY_RUNTIMES": self.runtime, "WHERRY_TAGS": self.tag}
        self.stack.agent(node, WHERRY_NATS_URL=url, **env)
        self.stack.processes[node] = self.stack.processes.pop("services.node_agent")

    async def submit(self, command: str, placement: dict[str, Any] | None = None, **more: Any) -> str:
        small = {"cpus": 0.1, "memory": "32MiB", "disk": "16MiB"}
        ours = {"tags": [self.tag], **(placement or {})}
        spec = {"command": command, "runtime": self.runtime, "resources": small, "placement": ours, **more}
        if self.runtime == "docker":
            spec["image"] = IMAGE
        answer = await self.http.post("/jobs", json=spec)
        assert answer.status_code == 202, answer.text
        return answer.json()["job_id"]

    async def job(self, job_id: str) -> dict[str, Any]:
        answer = await self.http.get(f"/jobs/{job_id}")
        assert answer.status_code == 200, answer.text
        return answer.json()

    async def until(self, job_id: str, reached: Callable[[dict[str, Any]], Any], timeout_s: float) -> dict[str, Any]:
        async with asyncio.timeout(timeout_s):
            while not reached(job := await self.job(job_id)):
                await asyncio.sleep(0.1)
        return job

    async def running(self, command: str, **more: Any) -> tuple[str, str]:
        """Return a new job that runs, and its node."""
        job_id = await self.submit(command, **more)
        job = await self.until(job_id, lambda job: job["state"] == "running", 60)
        return job_id, job["attempts"][-1]["node"]

    async def ended(self, job_id: str, timeout_s: float = 60) -> dict[str, Any]:
        return await self.until(job_id, lambda job: job["state"] in ENDS, timeout_s)

    async def ran_once(self, job_id: str) -> None:
        """Check that the job succeeded in one attempt whose program was started once."""
        job = await self.ended(job_id)
        assert (job["state"], len(job["attempts"])) == ("succeeded", 1), job
        output = await self.http.get(f"/jobs/{job_id}/outputs/starts.txt")
        assert output.text == "started\n"

    async def online(self) -> None:
        """Wait until both nodes are."""
        async with asyncio.timeout(240):
            for node in self.networks:
                while not (await self.http.get(f"/nodes/{node}")).json().get("online"):
                    await asyncio.sleep(0.2)

    def programs(self, job_id: str, attempt: int) -> int:
        """Return how many programs of an attempt run."""
        if self.runtime == "docker":
            docker = engine()
            assert docker
            labels: list[str] = [f"wherry.job={job_id}", f"wherry.attempt={attempt}", "wherry.role=job"]
            return len(docker.containers.list(filters={"label": labels}))
        found = 0
        for process in psutil.process_iter():
            with contextlib.suppress(psutil.Error):
                env = process.environ()
                found += (env.get("WHERRY_JOB_ID"), env.get("WHERRY_ATTEMPT")) == (job_id, str(attempt))
        return found


async def ten_seconds_without_network_place_nothing_again(how: str, pair: Pair) -> None:
    job_id, node = await pair.running(f"{COUNTS_STARTS} sleep 12")
    getattr(pair.networks[node], how)()
    await asyncio.sleep(10)
    pair.networks[node].heal()
    await pair.ran_once(job_id)


async def an_agent_that_speaks_and_cannot_hear_finishes_what_it_runs(pair: Pair) -> None:
    job_id, node = await pair.running(f"{COUNTS_STARTS} sleep 8")
    pair.networks[node].hold("down")
    await asyncio.sleep(12)
    pair.networks[node].heal()
    await pair.ran_once(job_id)


async def flapping_starts_no_program_again(pair: Pair) -> None:
    job_id, node = await pair.running(f"{COUNTS_STARTS} sleep 12")
    async with pair.networks[node].flapping(good_s=1, bad_s=1):
        await asyncio.sleep(20)
    await pair.ran_once(job_id)


async def a_slow_line_runs_jobs(pair: Pair) -> None:
    for network in pair.networks.values():
        network.delay(0.3)
    await pair.ran_once(await pair.submit(COUNTS_STARTS))


async def an_agent_that_hears_and_cannot_speak_is_replaced_after_it_has_stopped_its_program(pair: Pair) -> None:
    job_id, node = await pair.running("sleep 45", on_disconnect="stop")
    pair.networks[node].hold("up")
    began, before = asyncio.get_running_loop().time(), 1
    while len((job := await pair.job(job_id))["attempts"]) < 2:
        before = await asyncio.to_thread(pair.programs, job_id, 1)
        assert asyncio.get_running_loop().time() - began < REPLACED_S, job
        await asyncio.sleep(0.2)
    assert job["attempts"][1]["node"] != node
    assert before == 0, "the first program still ran when the second could start"
    pair.networks[node].heal()
    await pair.online()
    await pair.until(job_id, lambda job: job["state"] == "running", 30)
    await pair.http.post(f"/jobs/{job_id}/cancel")
    job = await pair.ended(job_id)
    assert (job["state"], len(job["attempts"])) == ("cancelled", 2), job


async def every_job_of_a_dead_node_is_placed_again_within_35_seconds(pair: Pair) -> None:
    jobs = [await pair.running("sleep 300", placement={"policy": "pack"}) for _ in range(4)]
    node = jobs[0][1]
    lost = [job_id for job_id, where in jobs if where == node]
    os.kill(pair.stack.processes[node].pid, signal.SIGKILL)
    pair.stack.processes[node].wait()
    began = asyncio.get_running_loop().time()
    for job_id in lost:
        left_s = REPLACED_S - (asyncio.get_running_loop().time() - began)
        job = await pair.until(job_id, lambda job: len(job["attempts"]) == 2, left_s)
        assert job["attempts"][0]["state"] == "lost"
        assert job["attempts"][1]["node"] != node

    pair.start_agent(node)
    await pair.online()
    for job_id, _ in jobs:
        await pair.http.post(f"/jobs/{job_id}/cancel")
    for job_id, where in jobs:
        job = await pair.ended(job_id)
        assert (job["state"], len(job["attempts"])) == ("cancelled", 2 if where == node else 1), job


Scenario = Callable[[Pair], Awaitable[None]]
SCENARIOS: dict[str, Scenario] = {
    "cut": partial(ten_seconds_without_network_place_nothing_again, "cut"),
    "held": partial(ten_seconds_without_network_place_nothing_again, "hold"),
    "deaf": an_agent_that_speaks_and_cannot_hear_finishes_what_it_runs,
    "flapping": flapping_starts_no_program_again,
    "slow": a_slow_line_runs_jobs,
    "mute": an_agent_that_hears_and_cannot_speak_is_replaced_after_it_has_stopped_its_program,
    "dead": every_job_of_a_dead_node_is_placed_again_within_35_seconds,
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def outcomes() -> AsyncGenerator[dict[str, asyncio.Task[None]]]:
    """A stack on which everything in SCENARIOS goes on, each with its two agents."""
    runtime, stack_id = "docker" if _has_image() else "process", f"net-{secrets.token_hex(4)}"
    async with contextlib.AsyncExitStack() as inside:
        stack = BenchStack([f"{tag}-{end}" for tag in SCENARIOS for end in "ab"])
        await asyncio.to_thread(stack.__enter__)
        inside.push_async_callback(asyncio.to_thread, stack.__exit__)
        nats: NatsServer = stack.nats
        for service in ("storage", "scheduler", "gateway"):
            stack.service(service)
        token = await asyncio.to_thread(stack.login)
        http = await inside.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{stack.port}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=20
            )
        )
        pairs: list[Pair] = []
        for tag in SCENARIOS:
            lines = {f"{tag}-{end}": await inside.enter_async_context(Proxy("127.0.0.1", nats.port)) for end in "ab"}
            pairs.append(Pair(tag, stack, http, runtime, lines, stack_id))
        for pair in pairs:
            for node in pair.networks:
                pair.start_agent(node)
        try:
            for pair in pairs:
                await pair.online()
            going_on = {pair.tag: asyncio.ensure_future(SCENARIOS[pair.tag](pair)) for pair in pairs}
            yield going_on
            for task in going_on.values():
                task.cancel()
            await asyncio.wait(going_on.values())
        finally:
            for node in (node for pair in pairs for node in pair.networks):
                stack.processes[node].kill()
            if runtime == "docker":
                await asyncio.to_thread(_clear, stack_id)


def _clear(stack_id: str) -> None:
    remove_containers(stack_id)
    docker = engine()
    assert docker
    for volume in docker.volumes.list(filters={"label": f"{STACK_LABEL}={stack_id}"}):
        volume.remove(force=True)


@pytest.mark.parametrize("network", SCENARIOS)
async def test_what_runs_goes_on_and_what_is_lost_is_placed_again_in_time(
    outcomes: dict[str, asyncio.Task[None]], network: str
) -> None:
    await outcomes[network]
