"""Deployments over HTTP on real servers, without a node: names that one request alone gets, and room for bodies."""

import asyncio
import concurrent.futures
import select
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from infra.local.ports import free_port
from shared.bus import Record
from shared.channels import JOB_CHANGED, OUTPUT, Service
from shared.clock import utc_now
from shared.events import JobChanged, LogLine, OutputBatch
from shared.ids import new_id
from shared.job import Failure, GangPlace
from shared.states import EndReason
from tests.integration.agent_stack import zip_of
from tests.integration.gateway_stack import NODE, GatewayStack, Scheduler, until

LARGE = 4 * 1024 * 1024
OTHER = "services.gateway of another machine"


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    limits = {
        "WHERRY_SERVE_BODIES_BYTES": str(2 * LARGE),
        "WHERRY_SERVE_WAIT_S": "0.5",
        "WHERRY_TRANSFER_WAIT_S": "0.5",
    }
    with GatewayStack(folder, mongo_url=mongo_server, **limits) as running:
        yield running


@pytest.fixture(scope="module")
def second(stack: GatewayStack, anna: httpx.Client) -> Iterator[httpx.Client]:
    """Anna at a second gateway."""
    first, port = stack.processes["services.gateway"], free_port()
    env = stack.gateway_env | {"WHERRY_PORT": str(port), "WHERRY_GATEWAY_ID": "g2"}
    stack.processes[OTHER] = stack.run("services.gateway", "gateway", **env)
    stack.processes["services.gateway"] = first
    url = f"http://127.0.0.1:{port}"

    def is_ready() -> bool:
        try:
            return httpx.get(f"{url}/readyz", timeout=5).status_code == 200
        except httpx.TransportError:
            return False

    try:
        until(is_ready, "the second gateway is ready")
        with httpx.Client(base_url=f"{url}/v1", headers=anna.headers, timeout=90) as client:
            yield client
    finally:
        stack.stop(OTHER)


def wish(client: httpx.Client, name: str, **more: Any) -> dict[str, Any]:
    stored = client.put("/artifacts", content=zip_of({"model.json": "{}"}))
    return {"name": name, "artifact": stored.raise_for_status().json()["artifact_id"], **more}


def test_of_many_requests_for_a_name_at_two_gateways_one_gets_it_each_time(
    stack: GatewayStack, anna: httpx.Client, second: httpx.Client
) -> None:
    for number in range(3):  # the name is free again once what has it has ended
        wanted = [wish(anna, "digits", replicas=1 + index % 2) for index in range(8)]
        with concurrent.futures.ThreadPoolExecutor(8) as pool:
            clients = (anna, second) * 4
            asked = [
                pool.submit(client.post, "/deployments", json=one) for client, one in zip(clients, wanted, strict=True)
            ]
            answers = [one.result() for one in asked]
        assert sorted(one.status_code for one in answers) == [202] + 7 * [409], [one.text for one in answers]
        assert {one.json()["code"] for one in answers if one.status_code == 409} == {"name_taken"}
        listed = anna.get("/deployments", params={"name": "digits", "ended": True}).json()["deployments"]
        made = next(one.json()["deployment_id"] for one in answers if one.status_code == 202)
        assert (len(listed), listed[0]["deployment_id"]) == (number + 1, made)
        end(stack, made)


def end(stack: GatewayStack, deployment: str) -> None:
    """Have a deployment ended, as the scheduler does."""

    async def ended() -> None:
        async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
            await Scheduler(bus).end(deployment, "cancelled")

    asyncio.run(ended())


def test_a_repeat_under_a_key_gets_the_same_deployment_and_nobody_else_does(
    stack: GatewayStack, anna: httpx.Client, bert: httpx.Client, second: httpx.Client
) -> None:
    order, key = wish(anna, "again"), {"Idempotency-Key": "k1"}
    with concurrent.futures.ThreadPoolExecutor(4) as pool:
        asked = [pool.submit(client.post, "/deployments", json=order, headers=key) for client in (anna, second) * 2]
        answers = [one.result() for one in asked]
    assert [one.status_code for one in answers] == 4 * [202], [one.text for one in answers]
    made = {one.json()["deployment_id"] for one in answers}
    assert len(made) == 1
    for other in ({}, {"Idempotency-Key": "k2"}):
        refused = anna.post("/deployments", json=order, headers=other)
        assert (refused.status_code, refused.json()["code"]) == (409, "name_taken")
    changed = anna.post("/deployments", json=order | {"replicas": 3}, headers=key)
    assert (changed.status_code, changed.json()["code"]) == (409, "name_taken")
    his = bert.post("/deployments", json=wish(bert, "again"))
    assert his.status_code == 202
    assert his.json()["deployment_id"] not in made
    end(stack, made.pop())
    assert anna.post("/deployments", json=order, headers={"Idempotency-Key": "k3"}).status_code == 202


def begun(stack: GatewayStack, client: httpx.Client, deployment: str) -> socket.socket:
    """Return a connection on which a prediction of `LARGE` bytes is announced, of which one has come."""
    one = socket.create_connection(("127.0.0.1", stack.port), timeout=90)
    head = (
        f"POST /v1/deployments/{deployment}/predict HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Authorization: {client.headers['Authorization']}\r\nContent-Length: {LARGE}\r\n\r\n"
    )
    one.sendall(head.encode() + b"{")
    return one


def ended_with(connection: socket.socket) -> bytes:
    """Return the answer once all of the body has been sent."""
    rest = b'"instances": [1]}'
    connection.sendall(b" " * (LARGE - 1 - len(rest)) + rest)
    return answered(connection)


def answered(connection: socket.socket) -> bytes:
    said = b""
    while b'"code"' not in said and (piece := connection.recv(65536)):
        said += piece
    return said.lower()


def test_bodies_are_read_when_there_is_room_for_them_and_one_owners_leave_room_for_anothers(
    stack: GatewayStack, anna: httpx.Client, bert: httpx.Client
) -> None:
    mine, his = (
        client.post("/deployments", json=wish(client, "large")).raise_for_status().json()["deployment_id"]
        for client in (anna, bert)
    )
    with begun(stack, anna, mine) as one, begun(stack, anna, mine) as other, begun(stack, bert, his) as anothers:
        (refused, *more), _, _ = select.select([one, other], [], [], 90)
        assert not more
        said = answered(refused)
        assert said.startswith(b"http/1.1 503 ")
        assert b"retry-after: " in said
        assert b'"busy"' in said
        # Another owner's is read to its end; then there is no replica. So is a small one of the same owner's.
        assert b"no replica of it runs" in ended_with(anothers)
        small = anna.post(f"/deployments/{mine}/predict", json={"instances": [1]})
        assert (small.status_code, small.json()["code"]) == (503, "unavailable"), small.text
        assert b"no replica of it runs" in ended_with(other if refused is one else one)
    with begun(stack, anna, mine) as again:
        assert b"no replica of it runs" in ended_with(again)


def test_who_asks_a_model_that_does_not_load_is_told_what_its_program_said_last(
    stack: GatewayStack, anna: httpx.Client
) -> None:
    made = anna.post("/deployments", json=wish(anna, "broken")).raise_for_status().json()["deployment_id"]
    assert anna.get(f"/deployments/{made}").json()["last_failure"] is None
    replica = asyncio.run(fail_a_replica(stack, made, "there is no model"))

    def told() -> bool:
        failure = anna.get(f"/deployments/{made}").json()["last_failure"]
        assert failure is None or failure["job_id"] == replica
        return failure is not None and failure["message"].endswith("exit code 3: there is no model")

    until(told, "the deployment says why its replica has failed")
    asked = anna.post(f"/deployments/{made}/predict", json={"instances": [1]})
    assert asked.status_code == 503
    assert asked.json()["detail"].startswith("No replica of it runs yet")
    assert f"({replica}): The program ended with exit code 3: there is no model" in asked.json()["detail"]


async def fail_a_replica(stack: GatewayStack, deployment: str, words: str) -> str:
    """Have a replica of *deployment* run, print *words* as an error and fail; return its id."""
    async with (
        stack.bus(Service.SCHEDULER, "scheduler") as bus,
        stack.bus(Service.NODE_AGENT, f"node-{NODE}", NODE) as node,
    ):
        scheduler = Scheduler(bus)
        _, service = await scheduler.last(deployment)
        place = GangPlace(gang_id=deployment, round=0, role="replica", index=0, rank=0, size=1)
        spec = service.spec.model_copy(update={"kind": "run", "service": None})
        replica = service.model_copy(update={"id": new_id("j"), "spec": spec, "member_of": place, "members": ()})
        placed = bus.event(JOB_CHANGED, JobChanged(job=replica, epoch=1), subject=replica.id, event="placed")
        params = {"owner": replica.owner.id, "job_id": replica.id, "event": "placed"}
        await bus.record(Record(JOB_CHANGED, params, placed))
        await scheduler.run(replica.id)
        line = LogLine(n=1, t=utc_now(), s="e", x=words)
        said = OUTPUT.subject(node_id=NODE, job_id=replica.id, attempt="1")
        await node.put(said, OutputBatch(lines=(line,)).to_bytes(), deadline_s=60)
        error = Failure(reason=EndReason.EXIT_CODE, message="The program ended with exit code 3.")
        await scheduler.end(replica.id, "failed", error=error)
        return replica.id
