"""Requests to a replica: from a gateway's connection over a real broker to a container that nothing else reaches."""

import asyncio
import hashlib
import signal
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from services.gateway.adapters.replica import Answer, Wish, ask
from shared.bus import Bus
from shared.channels import Service
from shared.errors import WherryError
from shared.fleet import Order
from shared.spec import Service as ServiceSpec
from shared.states import EndReason
from tests.integration.agent_stack import ROOT, AgentProcess, Head, agent_of, docker, head_of, storage_of, zip_of

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
PYTHON = "wherry/python-base"
#: Small, so that nothing waits for room on the disk of CI.
SMALL = {"cpus": 0.1, "memory": "64MiB", "disk": "64MiB"}
PROGRAM = """
import hashlib, http.server, json, os, signal, socket, sys, threading, time

class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    well = True

    def do_GET(self):
        if self.path == "/healthz":
            return self.answer(200 if Handler.well else 500, b"")
        if self.path == "/who":
            return self.answer(200, os.environ["WHERRY_JOB_ID"].encode())
        if self.path == "/out":
            return self.answer(200, tried().encode())
        if self.path == "/die":
            os._exit(7)
        if self.path.startswith("/sleep/"):
            time.sleep(float(self.path.rpartition("/")[2]))
            return self.answer(200, b"slept")
        if self.path == "/hold":
            while not os.path.exists("go"):
                time.sleep(0.05)
            return self.answer(200, b"held")
        if self.path == "/sicken":
            Handler.well = False
            return self.answer(200, b"")
        self.answer(404, b"nothing here")

    def do_POST(self):
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.answer(200, body[::-1], ("X-Sha256", hashlib.sha256(body).hexdigest()), ("X-Sent", self.headers["X-Sent"]))

    def answer(self, status, body, *headers):
        self.send_response(status)
        for name, value in headers:
            self.send_header(name, value or "")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

def tried():
    for host in ("1.1.1.1", "example.com"):
        try:
            socket.create_connection((host, 80), 2)
            return "got out to " + host
        except OSError:
            pass
    return "no way out"

signal.signal(signal.SIGTERM, lambda *_: os._exit(0))
print("listening on", os.environ["WHERRY_PORT"], os.environ["PORT"])
host = "0.0.0.0" if sys.argv[1:] != ["local"] else "127.0.0.1"
http.server.ThreadingHTTPServer((host, int(os.environ["PORT"])), Handler).serve_forever()
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storage(mongo_server: str, folder: Path) -> AsyncIterator[Any]:
    subprocess.run([ROOT / "infra/docker/build-base.sh"], check=True, stdout=subprocess.DEVNULL)  # noqa: ASYNC221 - before anything runs
    async with storage_of(mongo_server, folder / "storage") as storage:
        yield storage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(storage: Any) -> AsyncIterator[Head]:
    async with head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(storage: Any, head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(storage, head, folder / "agent") as agent:
        yield agent


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(storage: Any) -> AsyncIterator[Bus]:
    async with storage.bus(Service.GATEWAY, "g2") as bus:
        yield bus


async def replica(head: Head, runtime: str = "docker", *, ready: bool = True, **service: Any) -> Order:
    """Have a replica run, and return once it is ready."""
    source = await head.upload(zip_of({"app.py": PROGRAM}))
    what: dict[str, Any] = {"image": PYTHON} if runtime == "docker" else {"runtime": "process"}
    command = ["python3", "app.py", *(["local"] if runtime == "process" else [])]
    order = await head.place(command=command, source=source, resources=SMALL, **what)
    fields = {"port": 8080, "health": "/healthz", **service}
    order = order.model_copy(update={"parent": "jparent", "service": ServiceSpec(**fields)})
    await head.say(order, "start")
    if ready:
        await head.until(lambda: head.told(order.job_id, "running") or head.told(order.job_id, "finished"))
        assert head.told(order.job_id, "running"), head.told(order.job_id, "finished")
    return order


async def get(gateway: Bus, order: Order, path: str, timeout_s: float = 60) -> Answer:
    return await ask(gateway, "n1", order.job_id, Wish("GET", path, (), b""), timeout_s)


async def refusal(gateway: Bus, order: Order, path: str = "/who", timeout_s: float = 60) -> str:
    with pytest.raises(WherryError) as refused:
        await get(gateway, order, path, timeout_s)
    return refused.value.code


async def let_go(agent: AgentProcess, order: Order) -> None:
    """Have a replica answer what it holds. Where that ends its container, it may take with it what says so."""
    name = f"wherry-{agent.stack_id}-{order.job_id}-1"
    await asyncio.to_thread(docker, "exec", name, "sh", "-c", ": > /workspace/go", check=False)


@pytest.mark.parametrize("runtime", ["docker", "process"])
async def test_a_replica_runs_once_it_is_ready_and_answers(head: Head, agent: AgentProcess, gateway: Bus, runtime: str):
    order = await replica(head, runtime)
    phases = [data["phase"] for job, name, data in head.reports if (job, name) == (order.job_id, "starting")]
    assert phases == ["stage_in", "warmup"]
    answer = await get(gateway, order, "/who")
    assert (answer.status, answer.body) == (200, order.job_id.encode())
    assert answer.took_s > 0
    assert (await get(gateway, order, "/nothing")).status == 404
    served = await head.until(lambda: [held for held in head.beats[-1].attempts if held.served >= 2])
    assert [held.job_id for held in served] == [order.job_id]
    await head.forget(order, agent)
    assert await refusal(gateway, order) == "replica_gone"


async def test_bodies_of_megabytes_go_both_ways_whole(head: Head, agent: AgentProcess, gateway: Bus):
    order = await replica(head)
    body = bytes(range(256)) * 20_500  # 5 MB and a bit
    sent = (("X-Sent", "by me"), ("Content-Type", "application/octet-stream"))
    answer = await ask(gateway, "n1", order.job_id, Wish("POST", "/echo", sent, body), 60)
    assert answer.status == 200
    assert answer.body == body[::-1]
    headers = {name.lower(): value for name, value in answer.headers}
    assert headers["x-sha256"] == hashlib.sha256(body).hexdigest()
    assert headers["x-sent"] == "by me"
    with pytest.raises(WherryError, match="may have") as refused:
        await ask(gateway, "n1", order.job_id, Wish("POST", "/echo", sent, bytes(64 * 1024**2 + 1)), 60)
    assert refused.value.code == "too_large"
    await head.forget(order, agent)


async def test_a_replica_has_no_way_out_and_its_network_goes_with_it(head: Head, agent: AgentProcess, gateway: Bus):
    order = await replica(head)
    networks = docker("network", "ls", "-q", "--filter", f"label=wherry.job={order.job_id}").split()
    assert len(networks) == 1
    assert (await get(gateway, order, "/out")).body == b"no way out"
    await head.forget(order, agent)
    assert not docker("network", "ls", "-q", "--filter", f"label=wherry.job={order.job_id}")


@pytest.mark.slow
async def test_a_request_longer_than_a_step_is_waited_for(head: Head, agent: AgentProcess, gateway: Bus):
    order = await replica(head)
    assert (await get(gateway, order, "/sleep/6")).body == b"slept"
    assert await refusal(gateway, order, "/sleep/6", 2) == "replica_timeout"
    await head.forget(order, agent)


@pytest.mark.slow
async def test_more_requests_than_it_takes_wait_a_moment_and_are_sent_elsewhere(
    head: Head, agent: AgentProcess, gateway: Bus
):
    order = await replica(head, concurrency=1)
    slow = asyncio.create_task(get(gateway, order, "/hold", 200))
    await head.until(lambda: any(held.in_flight for held in head.beats[-1].attempts))
    assert await refusal(gateway, order) == "replica_busy"
    await let_go(agent, order)
    assert (await slow).body == b"held"
    assert (await get(gateway, order, "/who")).status == 200
    await head.forget(order, agent)


async def test_a_stopped_replica_answers_what_it_has_begun_and_takes_nothing_new(
    head: Head, agent: AgentProcess, gateway: Bus
):
    order = await replica(head)
    slow = asyncio.create_task(get(gateway, order, "/hold", 200))
    await head.until(lambda: any(held.in_flight for held in head.beats[-1].attempts))
    await head.say(order, "stop", grace_s=200)
    async with asyncio.timeout(90):
        while True:  # until the word has reached the node
            try:
                await get(gateway, order, "/who")
            except WherryError as error:
                assert error.code == "replica_draining"
                break
    await let_go(agent, order)
    assert (await slow).body == b"held"
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert (finished["state"], finished.get("exit_code")) == ("cancelled", 0)
    await head.forget(order, agent)


@pytest.mark.slow
async def test_what_a_replica_takes_too_long_for_does_not_outlast_its_grace(
    head: Head, agent: AgentProcess, gateway: Bus
):
    order = await replica(head)
    slow = asyncio.create_task(refusal(gateway, order, "/sleep/60", 60))
    await head.until(lambda: any(held.in_flight for held in head.beats[-1].attempts))
    await head.say(order, "stop", grace_s=2)
    await head.until(lambda: head.told(order.job_id, "finished"))
    assert await slow == "replica_lost"
    await head.forget(order, agent)


async def test_a_replica_that_dies_loses_its_requests_and_says_how_it_ended(
    head: Head, agent: AgentProcess, gateway: Bus
):
    order = await replica(head)
    assert await refusal(gateway, order, "/die") == "replica_lost"
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert (finished["exit_code"], finished["error"]["reason"]) == (7, EndReason.EXIT_CODE)
    assert await refusal(gateway, order) == "replica_gone"
    await head.forget(order, agent)


async def test_a_replica_that_is_not_ready_in_time_fails(head: Head, agent: AgentProcess, gateway: Bus):
    order = await replica(head, ready=False, start_timeout=1.5, health="/no-such-path")
    await head.until(lambda: head.told(order.job_id, "starting"))
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["error"]["reason"] == EndReason.UNHEALTHY
    assert "/no-such-path" in finished["error"]["message"]
    assert head.told(order.job_id, "running") is None
    await head.forget(order, agent)


async def test_an_agent_that_was_killed_finds_its_replica_and_goes_on_answering(
    head: Head, agent: AgentProcess, gateway: Bus
):
    order = await replica(head, health=None)
    container = docker("ps", "-q", "--filter", f"label=wherry.job={order.job_id}")
    await agent.stop(signal.SIGKILL)
    async with asyncio.timeout(90):
        while (code := await refusal(gateway, order)) != "unavailable":
            assert code == "replica_lost", "a broker that has not noticed yet passes it on"
    await agent.start()
    async with asyncio.timeout(90):
        while True:
            try:
                answer = await get(gateway, order, "/who")
                break
            except WherryError as error:
                assert error.code in ("unavailable", "replica_gone", "replica_starting")
                await asyncio.sleep(0.1)
    assert answer.body == order.job_id.encode()
    assert docker("ps", "-q", "--filter", f"label=wherry.job={order.job_id}") == container
    assert head.told(order.job_id, "finished") is None
    await head.forget(order, agent)


@pytest.mark.slow
async def test_a_replica_that_stops_being_well_fails(head: Head, agent: AgentProcess, gateway: Bus):
    order = await replica(head)
    assert (await get(gateway, order, "/sicken")).status == 200
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["error"]["reason"] == EndReason.UNHEALTHY
    assert "500" in finished["error"]["message"]
    await head.forget(order, agent)
