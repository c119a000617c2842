"""Nodes, explanations, quotas, needs and dead letters by REST, on real NATS, MongoDB and storage."""

import asyncio
import base64
import io
import zipfile
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.wherry import Client
from shared.bus import Bus, Received, Record
from shared.channels import (
    DEAD_LETTER,
    EXPLAIN,
    FLEET,
    HEARTBEAT,
    NODE_CHANGED,
    NODE_WISH,
    PLAN,
    QUOTA_SET,
    REPLAY,
    Service,
)
from shared.clock import utc_now
from shared.events import DeadLetter
from shared.fleet import Capacity, Gpu, Heartbeat, HeldAttempt, NodeChange, NodeChanged, NodeInfo, NodeRecord
from shared.ids import new_id
from shared.job import Failure, PendingReason
from shared.model import Empty
from shared.requests.explain import ExplainQuery, Explanation, PlanQuery, Suggestion
from shared.states import EndReason, NodeCondition, NodeDuty, PendingCode
from tests.integration.gateway_stack import ADMIN, NODE, OTHER_NODE, SPEC, GatewayStack, Scheduler, eventually, until

PASSWORD = "correct horse battery 9"
GIB = 1024**3


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(folder, mongo_url=mongo_server) as running:
        yield running


@pytest.fixture(scope="module")
def admin(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        yield client


def user(stack: GatewayStack, admin: httpx.Client, name: str) -> httpx.Client:
    admin.post("/users", json={"name": name, "password": PASSWORD}).raise_for_status()
    return stack.client(stack.login(name, PASSWORD))


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    with user(stack, admin, "anna") as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict[str, Any]:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    return answer.json()


def fields(answer: httpx.Response) -> list[str]:
    return [item["field"] for item in problem(answer, 422, "invalid")["errors"]]


def submit(client: httpx.Client, spec: dict[str, Any] | None = None, **headers: str) -> str:
    answer = client.post("/jobs", json=SPEC | (spec or {}), headers=headers)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


# --- nodes ----------------------------------------------------------------------------------------------------------


def heartbeat(node_id: str, **more: Any) -> Heartbeat:
    gpus = (Gpu(uuid="g", name="RTX", memory_total=8 * GIB),)
    whole: dict[str, Any] = {
        "node": NodeInfo(id=node_id, name=f"box-{node_id}", cluster="east"), "session": "s", "boot_id": "b", "seq": 1,
        "capacity": Capacity(cpus=4, memory=8 * GIB, disk=GIB, gpus=gpus),
        "attempts": (HeldAttempt(job_id="j", attempt=1, state="running"),), "at": utc_now(),
    }  # fmt: skip
    return Heartbeat(**whole | more)


async def say(stack: GatewayStack, node_id: str, **more: Any) -> None:
    async with stack.bus(Service.NODE_AGENT, f"node-{node_id}", node_id) as bus:
        await bus.send(HEARTBEAT.subject(node_id=node_id), heartbeat(node_id, **more).to_bytes())


async def record(stack: GatewayStack, node_id: str, **more: Any) -> None:
    whole = {"id": node_id, "name": f"box-{node_id}", "since": utc_now()} | more
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        event = bus.event(NODE_CHANGED, NodeChanged(node=NodeRecord(**whole), epoch=1), subject=node_id)
        await bus.record(Record(NODE_CHANGED, {"node_id": node_id}, event))


async def wished(stack: GatewayStack, node_id: str, verb: str) -> Received[Any]:
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        found = await bus.last(FLEET, NODE_WISH.subject(node_id=node_id, verb=verb))
    assert found
    assert found.data
    return found


@pytest.fixture(scope="module")
def recorded(stack: GatewayStack) -> None:
    async def join() -> None:
        history = (NodeChange(at=utc_now(), what="joined", by="scheduler"),)
        await record(
            stack, NODE, duty=NodeDuty.CORDONED, reason="3 jobs were lost here", by="scheduler", history=history
        )

    asyncio.run(join())


@pytest.fixture
def two_nodes(stack: GatewayStack, admin: httpx.Client, recorded: None) -> None:
    """Two nodes that were heard of just now."""

    async def beat() -> None:
        for node_id in (NODE, OTHER_NODE):
            await say(stack, node_id, problem="Docker is slow" if node_id == NODE else "")

    def seen() -> bool:  # again and again, as nodes do: one may be lost
        asyncio.run(beat())
        return sum(one["online"] for one in admin.get("/nodes").json()["nodes"]) == 2

    until(seen, "both nodes are seen")
    until(lambda: admin.get(f"/nodes/{NODE}").json()["duty"] == "cordoned", "the record is projected")


@pytest.mark.usefixtures("two_nodes")
def test_a_node_shows_whether_it_is_heard_gets_work_and_why_not(admin: httpx.Client, anna: httpx.Client) -> None:
    whole = admin.get(f"/nodes/{NODE}").json()
    assert (whole["condition"], whole["duty"], whole["reason"]) == ("online", "cordoned", "3 jobs were lost here")
    assert (whole["problem"], whole["running"], whole["capacity"]["cpus"]) == ("Docker is slow", 1, 4)
    assert [line["what"] for line in whole["history"]] == ["joined"]
    assert whole["attempts"][0]["job_id"] == "j"
    bare = anna.get(f"/nodes/box-{NODE}").json()
    assert (bare["id"], bare["duty"]) == (NODE, "cordoned")
    assert (bare["attempts"], bare["images"], bare["history"]) == (None, None, None)
    # No record is known of the other one: its heartbeats tell.
    assert admin.get(f"/nodes/{OTHER_NODE}").json()["condition"] == "online"
    counts = admin.get("/status").json()["nodes"]
    assert (counts["total"], counts["online"], counts["cordoned"], counts["lost"]) == (2, 2, 1, 0)


@pytest.mark.usefixtures("two_nodes")
def test_what_a_node_uses_is_kept_over_time(admin: httpx.Client, anna: httpx.Client) -> None:
    def kept() -> Any:
        found = anna.get(f"/nodes/box-{NODE}/metrics").json()
        return found if found["points"] else None

    found = until(kept, "the first sample is written")
    series = {one["name"]: one["last"] for one in found["series"]}
    assert (series["running_jobs"], series["cpu"], series["memory"]) == (1, 0, 8 * GIB)
    assert set(series) == {"cpu", "load", "memory", "disk_free", "running_jobs", "gpu", "gpu_memory"}
    only = anna.get(f"/nodes/{NODE}/metrics", params={"name": "cpu", "points": 2}).json()
    assert {point["name"] for point in only["points"]} == {"cpu"}
    later = (utc_now() + timedelta(hours=1)).isoformat()
    assert anna.get(f"/nodes/{NODE}/metrics", params={"since": later}).json()["points"] == []
    assert anna.get("/nodes/nothing-like-it/metrics").status_code == 404
    token = anna.headers["Authorization"].removeprefix("Bearer ")
    with Client(str(anna.base_url).removesuffix("/v1/"), token) as client:
        seen = client.node_series(NODE, names=["memory"], since=utc_now() - timedelta(hours=1))
    assert {(point.name, point.value) for point in seen.points} == {("memory", 8 * GIB)}


@pytest.mark.usefixtures("two_nodes")
def test_nodes_come_in_pages_by_name_and_clusters_have_sums(admin: httpx.Client, anna: httpx.Client) -> None:
    first = anna.get("/nodes", params={"limit": 1}).json()
    second = anna.get("/nodes", params={"limit": 1, "cursor": first["cursor"]}).json()
    assert [page["nodes"][0]["id"] for page in (first, second)] == [NODE, OTHER_NODE]
    assert second["cursor"] is None
    assert fields(anna.get("/nodes", params={"cursor": "nonsense"})) == ["cursor"]
    assert fields(anna.get("/nodes", params={"limit": 0})) == ["limit"]
    (east,) = admin.get("/clusters").json()["clusters"]
    assert (east["name"], east["online"], east["cpus"], east["gpus"], east["gpu_memory"]) == ("east", 2, 8, 2, 16 * GIB)
    assert [(one["id"], one["duty"]) for one in east["nodes"]] == [(NODE, "cordoned"), (OTHER_NODE, "active")]


@pytest.mark.usefixtures("two_nodes")
async def test_a_drain_is_recorded_with_who_wants_it_why_and_until_when(
    stack: GatewayStack, admin: httpx.Client
) -> None:
    answer = admin.post(f"/nodes/box-{NODE}/drain", json={"deadline": "10m", "reason": "new disk"})
    assert (answer.status_code, answer.json()["id"]) == (202, NODE)
    wish = (await wished(stack, NODE, "drain")).data
    assert (wish.by, wish.reason, wish.deadline_s) == ("admin", "new disk", 600)
    for verb in ("cordon", "undrain"):
        assert admin.post(f"/nodes/{NODE}/{verb}").status_code == 202
        found = await wished(stack, NODE, verb)
        assert (found.data.deadline_s, found.event and found.event.type) == (None, f"io.wherry.fleet.{verb}.v1")


@pytest.mark.usefixtures("two_nodes")
def test_nodes_are_for_administrators_to_manage(admin: httpx.Client, anna: httpx.Client) -> None:
    for verb in ("drain", "undrain", "cordon"):
        problem(anna.post(f"/nodes/{NODE}/{verb}"), 403, "forbidden")
        problem(admin.post(f"/nodes/nobody/{verb}"), 404, "not_found")
    problem(anna.delete(f"/nodes/{NODE}"), 403, "forbidden")
    problem(admin.delete("/nodes/nobody"), 404, "not_found")
    assert fields(admin.post(f"/nodes/{NODE}/drain", json={"deadline": "soon"})) == ["deadline"]
    assert fields(admin.post(f"/nodes/{NODE}/drain", json={"dead_line": 1})) == ["dead_line"]
    assert fields(admin.post(f"/nodes/{NODE}/undrain", json={"deadline": 1})) == ["deadline"]


@pytest.mark.usefixtures("two_nodes")
async def test_a_node_that_is_there_is_not_forgotten_and_one_that_is_lost_is(
    stack: GatewayStack, admin: httpx.Client
) -> None:
    refused = problem(admin.delete(f"/nodes/{OTHER_NODE}"), 409, "conflict")
    assert "online" in refused["detail"]
    await record(stack, OTHER_NODE, condition=NodeCondition.LOST)
    shown = until(
        lambda: (seen := admin.get(f"/nodes/{OTHER_NODE}").json())["condition"] == "lost" and seen, "it is lost"
    )
    assert shown["online"] is False
    assert admin.get("/status").json()["nodes"]["lost"] == 1
    assert admin.delete(f"/nodes/{OTHER_NODE}", params={"reason": "sold"}).status_code == 202
    assert (await wished(stack, OTHER_NODE, "forget")).data.reason == "sold"
    await record(stack, OTHER_NODE, condition=NodeCondition.LOST, forgotten=True)
    until(lambda: admin.get(f"/nodes/{OTHER_NODE}").status_code == 404, "it is forgotten")
    assert [node["id"] for node in admin.get("/nodes").json()["nodes"]] == [NODE]
    await record(stack, OTHER_NODE)
    until(lambda: admin.get(f"/nodes/{OTHER_NODE}").status_code == 200, "it has joined anew")


# --- explain and plan -----------------------------------------------------------------------------------------------


def test_without_a_scheduler_nobody_can_say_why(anna: httpx.Client) -> None:
    job_id = submit(anna)
    assert "scheduler" in problem(anna.get(f"/jobs/{job_id}/explain"), 503, "unavailable")["detail"]
    assert "scheduler" in problem(anna.post("/jobs/plan", json=SPEC), 503, "unavailable")["detail"]


async def test_why_a_job_waits_is_asked_of_the_scheduler_and_only_for_its_owner(
    stack: GatewayStack, anna: httpx.Client, admin: httpx.Client
) -> None:
    job_id = submit(anna)

    async def explain(_: dict[str, str], query: ExplainQuery) -> Explanation:
        return Explanation(
            state="queued", text=f"about {query.job_id}", ahead=3, queue_length=9, nodes_considered=2,
            reasons=(PendingReason(code=PendingCode.CPUS, nodes=2, message="needs 64 cpus"),),
            suggestion=Suggestion(set={"resources.cpus": 4}, message="ask for 4 cpus"),
        )  # fmt: skip

    asked: list[PlanQuery] = []

    async def plan(_: dict[str, str], query: PlanQuery) -> Explanation:
        asked.append(query)
        return Explanation(state="queued", would_start=True, node=NODE, score={"pack": 0.5}, text="it fits")

    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        await bus.serve(EXPLAIN, explain, queue="scheduler")
        await bus.serve(PLAN, plan, queue="scheduler")
        why = (await asyncio.to_thread(anna.get, f"/jobs/{job_id}/explain")).json()
        assert (why["job_id"], why["text"], why["ahead"]) == (job_id, f"about {job_id}", 3)
        assert why["reasons"] == [{"code": "cpus", "nodes": 2, "message": "needs 64 cpus"}]
        assert why["suggestion"]["set"] == {"resources.cpus": 4}
        problem(await asyncio.to_thread(anna.get, "/jobs/jnothing/explain"), 404, "not_found")
        with await asyncio.to_thread(user, stack, admin, "nosy") as nosy:
            problem(await asyncio.to_thread(nosy.get, f"/jobs/{job_id}/explain"), 404, "not_found")

        before = len((await asyncio.to_thread(anna.get, "/jobs")).json()["jobs"])
        planned = await asyncio.to_thread(anna.post, "/jobs/plan", json=SPEC | {"resources": {"cpus": 2}})
        assert (planned.status_code, planned.json()["node"], planned.json()["would_start"]) == (200, NODE, True)
        assert (asked[0].spec.resources.cpus, asked[0].owner.name) == (2, "anna")
        assert fields(await asyncio.to_thread(anna.post, "/jobs/plan", json={"comand": "x"})) == ["comand"]
        archive = io.BytesIO()
        with zipfile.ZipFile(archive, "w") as writer:
            writer.writestr("run.sh", "true")
        form = {"spec": (None, '{"image": "busybox"}', "application/json"), "source": ("a.zip", archive.getvalue())}
        assert (await asyncio.to_thread(anna.post, "/jobs/plan", files=form)).status_code == 200
        form["source"] = ("a.zip", b"no zip at all")
        problem(await asyncio.to_thread(anna.post, "/jobs/plan", files=form), 422, "bad_source")
        assert len((await asyncio.to_thread(anna.get, "/jobs")).json()["jobs"]) == before


async def test_an_ended_job_is_explained_without_a_scheduler(stack: GatewayStack, anna: httpx.Client) -> None:
    job_id = submit(anna)
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        scheduler = Scheduler(bus)
        await scheduler.run(job_id)
        await scheduler.end(job_id, "failed", error=Failure(reason=EndReason.OOM, message="It wanted more than 1 GiB"))
    why = anna.get(f"/jobs/{job_id}/explain").json()
    assert (why["state"], why["node"], why["error"]["reason"]) == ("failed", NODE, "oom")
    assert why["text"].startswith("It has failed: It wanted more than 1 GiB.")


# --- needs and inputs -----------------------------------------------------------------------------------------------


def test_needs_and_inputs_must_be_there_and_be_ones_own(
    stack: GatewayStack, anna: httpx.Client, admin: httpx.Client
) -> None:
    mine, theirs, nobodys = submit(anna), submit(admin), new_id("j")
    spec = {"needs": [mine, theirs], "inputs": {"model": f"job:{nobodys}/best.pt", "data": f"job:{mine}/out"}}
    refused = anna.post("/jobs", json=SPEC | spec)
    assert fields(refused) == ["needs[1]", "inputs.model"]
    assert theirs in refused.text
    assert fields(anna.post("/jobs/plan", json=SPEC | spec)) == ["needs[1]", "inputs.model"]
    told = anna.post("/jobs/batch", json=[SPEC | {"needs": [nobodys]}, SPEC | {"needs": [mine]}]).json()["jobs"]
    assert [item["field"] for item in told[0]["problem"]["errors"]] == ["needs[0]"]
    # An administrator may wait for anybody's job, but what it left goes to its owner's jobs alone.
    submit(admin, {"needs": [mine]})
    assert fields(admin.post("/jobs", json=SPEC | {"inputs": {"x": f"job:{mine}"}})) == ["inputs.x"]
    job = anna.get(f"/jobs/{told[1]['job_id']}").json()
    assert job["needs"] == [{"job": mine, "on": "ok"}]
    wanted = {"needs": [{"job": mine, "on": "always"}], "inputs": {"data": f"job:{mine}/out/"}}
    assert anna.get(f"/jobs/{submit(anna, wanted)}").json()["needs"] == [{"job": mine, "on": "always"}]


@pytest.mark.parametrize("path", ["../x", "a/../b", "/etc", "a//b", ".", "a\\b"])
def test_a_path_that_leads_elsewhere_is_refused(anna: httpx.Client, path: str) -> None:
    job_id = submit(anna)
    assert fields(anna.post("/jobs", json=SPEC | {"inputs": {"in": f"job:{job_id}/{path}"}})) == ["inputs.in"]


# --- quotas ---------------------------------------------------------------------------------------------------------


async def test_a_quota_is_recorded_shown_and_taken_away(stack: GatewayStack, admin: httpx.Client) -> None:
    with user(stack, admin, "quinn") as quinn:
        assert quinn.get("/users/quinn/quota").json() == {"user": "quinn", "quota": None, "by_state": {}}
        limits = {"cpus": 8, "memory": "64GiB", "queued": 100, "share": 2}
        put = admin.put("/users/quinn/quota", json=limits)
        assert put.status_code == 200, put.text
        wanted = {"cpus": 8.0, "memory": 64 * GIB, "gpus": None, "running": None, "queued": 100, "share": 2.0}
        assert put.json()["quota"] == wanted
        submit(quinn)
        assert quinn.get("/users/me/quota").json() == {"user": "quinn", "quota": wanted, "by_state": {"queued": 1}}
        owner = quinn.get("/users/me").json()["id"]
        async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
            found = await bus.last(FLEET, QUOTA_SET.subject(owner=owner))
        assert found
        assert found.data
        assert (found.data.by, found.data.quota.cpus) == ("admin", 8)
        assert admin.delete("/users/quinn/quota").status_code == 204
        assert admin.get("/users/quinn/quota").json()["quota"] is None


def test_quotas_are_for_administrators_to_set_and_ones_own_to_see(admin: httpx.Client, anna: httpx.Client) -> None:
    assert anna.get("/users/anna/quota").status_code == 200
    problem(anna.get("/users/admin/quota"), 403, "forbidden")
    problem(anna.put("/users/anna/quota", json={}), 403, "forbidden")
    problem(anna.delete("/users/anna/quota"), 403, "forbidden")
    problem(admin.put("/users/nobody/quota", json={}), 404, "not_found")
    problem(admin.get("/users/nobody/quota"), 404, "not_found")
    assert fields(admin.put("/users/anna/quota", json={"cpus": -1, "cores": 2})) == ["cpus", "cores"]


def test_more_waiting_jobs_than_the_quota_allows_are_refused_and_a_repeat_is_not(
    stack: GatewayStack, admin: httpx.Client
) -> None:
    with user(stack, admin, "rita") as rita:
        first = submit(rita, **{"Idempotency-Key": "first"})
        admin.put("/users/rita/quota", json={"queued": 3}).raise_for_status()

        def is_known() -> bool:
            return rita.post("/jobs/batch", json=[SPEC] * 9).json()["jobs"][-1].get("problem") is not None

        until(is_known, "the gateway knows of the limit")
        refused = rita.post("/jobs", json=SPEC)
        assert "wait" in problem(refused, 429, "quota_queued")["detail"]
        assert refused.headers["retry-after"]
        problem(rita.post(f"/jobs/{first}/rerun"), 429, "quota_queued")
        # The answer to the first one may have been lost: asking again is not asking for more.
        assert submit(rita, **{"Idempotency-Key": "first"}) == first
        other = rita.post("/jobs", json=SPEC | {"name": "x"}, headers={"Idempotency-Key": "first"})
        problem(other, 409, "idempotency_conflict")
        admin.put("/users/rita/quota", json={"queued": 1000}).raise_for_status()
        until(lambda: rita.post("/jobs", json=SPEC).status_code == 202, "the new limit counts")


def test_a_batch_fills_the_queue_up_to_the_limit_and_not_beyond(stack: GatewayStack, admin: httpx.Client) -> None:
    with user(stack, admin, "sven") as sven:
        admin.put("/users/sven/quota", json={"queued": 5}).raise_for_status()
        sven_id = sven.get("/users/me").json()["id"]
        until(lambda: stack.is_kept("quotas", sven_id), "the quota is where a login looks for it")
        with stack.client(stack.login("sven", PASSWORD)) as fresh:  # a new session knows of the limit at once
            told = fresh.post("/jobs/batch", json=[SPEC] * 12).json()["jobs"]
        assert [("job_id" in item) for item in told].count(True) == 5
        assert {item["problem"]["code"] for item in told if "problem" in item} == {"quota_queued"}


# --- dead letters ---------------------------------------------------------------------------------------------------


def letter(number: int, reader: str = "scheduler", **more: Any) -> DeadLetter:
    whole = {
        "id": f"WHERRY_JOBS.{number}.{reader}", "stream": "WHERRY_JOBS", "seq": number, "reader": reader,
        "target": "wherry.job.u1.j1.created", "reason": "no job in it", "body": base64.b64encode(b'{"x": 1}').decode(),
        "at": utc_now() + timedelta(seconds=number),
    }  # fmt: skip
    return DeadLetter(**whole | more)


async def keep(bus: Bus, one: DeadLetter) -> None:
    event = bus.event(DEAD_LETTER, one, subject=one.id)
    await bus.record(Record(DEAD_LETTER, {"reader": one.reader}, event))


async def test_dead_letters_are_listed_replayed_and_come_back_if_they_fail_again(
    stack: GatewayStack, admin: httpx.Client, anna: httpx.Client
) -> None:
    problem(anna.get("/dead-letters"), 403, "forbidden")
    problem(anna.post("/dead-letters/x/replay"), 403, "forbidden")
    problem(admin.post("/dead-letters/WHERRY_JOBS.1.nobody/replay"), 404, "not_found")
    replayed: asyncio.Queue[DeadLetter] = asyncio.Queue()
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        for number in (1, 2, 3):
            await keep(bus, letter(number))

        async def take(_: dict[str, str], asked: DeadLetter) -> Empty:
            replayed.put_nowait(asked)
            return Empty()

        await bus.serve(REPLAY, take, queue=None, reader="scheduler")

        async def listed(**query: Any) -> dict[str, Any]:
            return (await asyncio.to_thread(admin.get, "/dead-letters", params=query)).json()

        async def all_there() -> bool:
            return len((await listed(reader="scheduler"))["dead_letters"]) == 3

        await eventually(all_there, "three letters")
        page = await listed(reader="scheduler", limit=2)
        rest = await listed(reader="scheduler", limit=2, cursor=page["cursor"])
        letters = page["dead_letters"] + rest["dead_letters"]
        assert [one["seq"] for one in letters] == [3, 2, 1]
        assert (letters[0]["body"], letters[0]["reason"]) == ('{"x": 1}', "no job in it")
        assert letters[0]["replayed_at"] is None
        assert rest["cursor"] is None
        assert (await listed(reader="storage"))["dead_letters"] == []

        answer = await asyncio.to_thread(admin.post, f"/dead-letters/{letters[0]['id']}/replay")
        assert (answer.status_code, bool(answer.json()["replayed_at"])) == (202, True)
        async with asyncio.timeout(60):
            handed = await replayed.get()
        assert handed == letter(3, at=handed.at)
        assert (await listed(reader="scheduler"))["dead_letters"][0]["replayed_at"]

        await keep(bus, letter(3, reason="still no job in it"))

        async def is_back() -> bool:
            first = (await listed(reader="scheduler"))["dead_letters"][0]
            return first["replayed_at"] is None and first["reason"] == "still no job in it"

        await eventually(is_back, "the letter is back")


# --- numbers and cursors that nobody has given ----------------------------------------------------------------------


def _cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode()).decode().rstrip("=")


@pytest.mark.parametrize("path", ["/jobs", "/nodes", "/dead-letters"])
@pytest.mark.parametrize(
    "place",
    [
        "[1" + "0" * 30 + ', "x"]',  # more than the database counts to
        '[true, "x"]',
        '["\\ud800", "\\ud800"]',  # half a character
        '[1, "\\ud800"]',
        "[" * 5000,
        "{}",
        "7",
    ],
)
def test_a_cursor_that_no_list_gave_is_refused(admin: httpx.Client, path: str, place: str) -> None:
    assert fields(admin.get(path, params={"cursor": _cursor(place)})) == ["cursor"]


def test_places_beyond_all_numbers_are_refused(admin: httpx.Client) -> None:
    job_id = submit(admin)
    for path in ("/events", f"/jobs/{job_id}/events", f"/jobs/{job_id}/logs"):
        answer = admin.get(path, params={"after": str(10**30)}, headers={"Accept": "application/json"})
        assert fields(answer) == ["after"]
    assert fields(admin.get(f"/jobs/{job_id}/logs", params={"attempt": str(10**30)})) == ["attempt"]
