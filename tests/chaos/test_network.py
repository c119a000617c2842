"""Two agents behind networks that misbehave: what runs goes on, what is lost is placed again in time."""

import asyncio
import contextlib
import os
import secrets
import signal
import subprocess
from collections.abc import AsyncGenerator, Callable
from dataclasses import dataclass, field
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

pytestmark = [pytest.mark.slow, pytest.mark.alone, pytest.mark.timeout(240), pytest.mark.asyncio(loop_scope="module")]

NODES = ("a", "b")
IMAGE = "wherry/busybox:latest"
REPLACED_S = 35.0
#: A restarted program would leave its line twice: the folder outlives the program.
COUNTS_STARTS = 'echo started >> "$WHERRY_OUTPUTS/starts.txt"; '


def _has_image() -> bool:
    look = ["docker", "image", "inspect", IMAGE]
    return docker_answers() and subprocess.run(look, capture_output=True, check=False).returncode == 0


@dataclass
class Fleet:
    """A stack whose agents reach NATS only through the networks."""

    stack: BenchStack
    http: httpx.AsyncClient
    runtime: str
    networks: dict[str, Proxy]
    stack_id: str = field(default_factory=lambda: f"net-{secrets.token_hex(4)}")

    def start_agent(self, node: str) -> None:
        url = f"nats://127.0.0.1:{self.networks[node].port}"
        env = {"WHERRY_NATS_URL": url, "WHERRY_STACK_ID": self.stack_id, "WHERRY_RUNTIMES": self.runtime}
        self.stack.agent(node, **env)
        self.stack.processes[node] = self.stack.processes.pop("services.node_agent")

    async def submit(self, command: str, **more: Any) -> str:
        spec = {"command": command, "runtime": self.runtime, "resources": {"cpus": 0.1, "memory": "32MiB"}, **more}
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
        """Wait until every node is."""
        async with asyncio.timeout(60):
            while True:
                nodes = (await self.http.get("/nodes")).json()["nodes"]
                if {node["id"] for node in nodes if node["online"]} == set(NODES):
                    return
                await asyncio.sleep(0.1)

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


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet() -> AsyncGenerator[Fleet]:
    runtime = "docker" if _has_image() else "process"
    async with contextlib.AsyncExitStack() as inside:
        stack = BenchStack(list(NODES))
        await asyncio.to_thread(stack.__enter__)
        inside.push_async_callback(asyncio.to_thread, stack.__exit__)
        nats: NatsServer = stack.nats
        networks = {node: await inside.enter_async_context(Proxy("127.0.0.1", nats.port)) for node in NODES}
        for service in ("storage", "scheduler", "gateway"):
            stack.service(service)
        token = await asyncio.to_thread(stack.login)
        http = await inside.enter_async_context(
            httpx.AsyncClient(
                base_url=f"http://127.0.0.1:{stack.port}/v1", headers={"Authorization": f"Bearer {token}"}, timeout=20
            )
        )
        fleet = Fleet(stack, http, runtime, networks)
        for node in NODES:
            fleet.start_agent(node)
        try:
            await fleet.online()
            yield fleet
        finally:
            for node in NODES:
                stack.processes[node].kill()
            await asyncio.to_thread(_clear, fleet)


def _clear(fleet: Fleet) -> None:
    if fleet.runtime == "process":
        return
    remove_containers(fleet.stack_id)
    docker = engine()
    assert docker
    for volume in docker.volumes.list(filters={"label": f"{STACK_LABEL}={fleet.stack_id}"}):
        volume.remove(force=True)


@pytest.fixture(autouse=True)
def _healed(fleet: Fleet) -> Any:
    yield
    for network in fleet.networks.values():
        network.heal()


@pytest.mark.parametrize("how", ["cut", "hold"])
async def test_ten_seconds_without_network_place_nothing_again(fleet: Fleet, how: str) -> None:
    await fleet.online()
    job_id, node = await fleet.running(f"{COUNTS_STARTS} sleep 12")
    getattr(fleet.networks[node], how)()
    await asyncio.sleep(10)
    fleet.networks[node].heal()
    await fleet.ran_once(job_id)


async def test_an_agent_that_speaks_and_cannot_hear_finishes_what_it_runs(fleet: Fleet) -> None:
    await fleet.online()
    job_id, node = await fleet.running(f"{COUNTS_STARTS} sleep 8")
    fleet.networks[node].hold("down")
    await asyncio.sleep(12)
    fleet.networks[node].heal()
    await fleet.ran_once(job_id)


async def test_flapping_starts_no_program_again(fleet: Fleet) -> None:
    await fleet.online()
    job_id, node = await fleet.running(f"{COUNTS_STARTS} sleep 12")
    async with fleet.networks[node].flapping(good_s=1, bad_s=1):
        await asyncio.sleep(20)
    await fleet.ran_once(job_id)


async def test_a_slow_line_runs_jobs(fleet: Fleet) -> None:
    await fleet.online()
    for network in fleet.networks.values():
        network.delay(0.3)
    await fleet.ran_once(await fleet.submit(COUNTS_STARTS))


async def test_an_agent_that_hears_and_cannot_speak_is_replaced_after_it_has_stopped_its_program(fleet: Fleet) -> None:
    await fleet.online()
    job_id, node = await fleet.running("sleep 45", on_disconnect="stop")
    fleet.networks[node].hold("up")
    began, before = asyncio.get_running_loop().time(), 1
    while len((job := await fleet.job(job_id))["attempts"]) < 2:
        before = await asyncio.to_thread(fleet.programs, job_id, 1)
        assert asyncio.get_running_loop().time() - began < REPLACED_S, job
        await asyncio.sleep(0.2)
    assert job["attempts"][1]["node"] != node
    assert before == 0, "the first program still ran when the second could start"
    fleet.networks[node].heal()
    await fleet.online()
    await fleet.until(job_id, lambda job: job["state"] == "running", 30)
    await fleet.http.post(f"/jobs/{job_id}/cancel")
    job = await fleet.ended(job_id)
    assert (job["state"], len(job["attempts"])) == ("cancelled", 2), job


async def test_every_job_of_a_dead_node_is_placed_again_within_35_seconds(fleet: Fleet) -> None:
    await fleet.online()
    jobs = [await fleet.running("sleep 300", placement={"policy": "pack"}) for _ in range(4)]
    node = jobs[0][1]
    lost = [job_id for job_id, where in jobs if where == node]
    os.kill(fleet.stack.processes[node].pid, signal.SIGKILL)
    fleet.stack.processes[node].wait()
    began = asyncio.get_running_loop().time()
    for job_id in lost:
        left_s = REPLACED_S - (asyncio.get_running_loop().time() - began)
        job = await fleet.until(job_id, lambda job: len(job["attempts"]) == 2, left_s)
        assert job["attempts"][0]["state"] == "lost"
        assert job["attempts"][1]["node"] != node

    fleet.start_agent(node)
    await fleet.online()
    for job_id, _ in jobs:
        await fleet.http.post(f"/jobs/{job_id}/cancel")
    for job_id, where in jobs:
        job = await fleet.ended(job_id)
        assert (job["state"], len(job["attempts"])) == ("cancelled", 2 if where == node else 1), job
