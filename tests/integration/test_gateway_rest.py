"""The REST interface on real NATS, MongoDB and storage: people, jobs, identity under a key, walls between users."""

import http.client
import json
import signal
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import httpx
import pytest

from shared.channels import Service
from shared.events import DeliveryRequested
from tests.integration.gateway_stack import ADMIN, SPEC, GatewayStack, Scheduler, until

PASSWORD = "correct horse battery 9"


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(folder, mongo_url=mongo_server) as running:
        yield running


@pytest.fixture(scope="module")
def admin(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        yield client


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, admin: httpx.Client) -> Iterator[httpx.Client]:
    admin.post("/users", json={"name": "anna", "password": PASSWORD, "email": "anna@example.com"}).raise_for_status()
    with stack.client(stack.login("anna", PASSWORD)) as client:
        yield client


def problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    return answer.json()


def submit(client: httpx.Client, spec: dict | None = None, **headers: str) -> str:
    answer = client.post("/jobs", json=spec or SPEC, headers=headers)
    assert answer.status_code == 202, answer.text
    assert answer.headers["location"] == f"/v1/jobs/{answer.json()['job_id']}"
    return answer.json()["job_id"]


# --- people ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("base", ["", "/v1"])
def test_login_takes_basic_json_and_forms_at_the_root_and_under_v1(stack: GatewayStack, base: str) -> None:
    fields = {"user": ADMIN[0], "password": ADMIN[1]}
    url = f"{stack.url}{base}/login"
    answers = [
        httpx.get(url, auth=ADMIN, timeout=60),
        httpx.post(url, auth=ADMIN, timeout=60),
        httpx.post(url, json=fields, timeout=60),
        httpx.post(url, data=fields, timeout=60),
        httpx.post(url, files={name: (None, value) for name, value in fields.items()}, timeout=60),
    ]
    assert [answer.status_code for answer in answers] == [200] * 5
    assert all(answer.json()["user"] == "admin" and answer.json()["expires_at"].endswith("Z") for answer in answers)
    assert len({answer.json()["token"] for answer in answers}) == 5


def test_a_wrong_password_and_a_missing_one_are_problems(stack: GatewayStack) -> None:
    url = f"{stack.url}/v1/login"
    problem(httpx.post(url, auth=("admin", "wrong"), timeout=60), 401, "unauthenticated")
    problem(httpx.get(url, timeout=60), 401, "unauthenticated")
    fields = problem(httpx.post(url, data={"user": "admin"}, timeout=60), 422, "invalid")["errors"]
    assert [item["field"] for item in fields] == ["password"]
    assert problem(httpx.post(url, json={"name": "x", "password": "y"}, timeout=60), 422, "invalid")["errors"]


def test_a_login_larger_than_any_is_not_read(stack: GatewayStack) -> None:
    many = {f"field{at}": (None, "x" * 100) for at in range(1000)} | {"user": (None, "a"), "password": (None, "b")}
    for sent in ({"files": many}, {"json": ["x"] * 10_000}):
        problem(httpx.post(f"{stack.url}/login", timeout=60, **sent), 413, "too_large")


def test_nothing_is_shown_without_a_token(stack: GatewayStack) -> None:
    for path in ("/jobs", "/jobs/j1", "/events", "/nodes", "/users", "/users/me", "/status", "/artifacts/a1"):
        answer = httpx.get(f"{stack.url}/v1{path}", timeout=60)
        problem(answer, 401, "unauthenticated")
        assert answer.headers["www-authenticate"] == "Bearer"
    problem(httpx.post(f"{stack.url}/v1/jobs", json=SPEC, timeout=60), 401, "unauthenticated")
    nobodys = {"Authorization": "Bearer whr_s_nonsense"}
    problem(httpx.get(f"{stack.url}/v1/jobs", headers=nobodys, timeout=60), 401, "unauthenticated")


def test_a_connection_is_kept_longer_than_clients_keep_theirs(stack: GatewayStack) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", stack.port, timeout=60)
    connection.auto_open = 0
    connection.connect()
    with closing(connection):
        for pause_s in (6, 0):  # httpx keeps one for five seconds
            connection.request("GET", "/healthz")
            assert connection.getresponse().read() == b'{"status":"ok"}'
            time.sleep(pause_s)


def test_a_logged_out_token_is_dead(stack: GatewayStack) -> None:
    with stack.client(stack.login(*ADMIN)) as client:
        assert client.get("/users/me").json()["user"] == "admin"
        assert client.delete("/logout").json()["logout_message"]
        problem(client.get("/users/me"), 401, "unauthenticated")


def test_what_another_gateway_revokes_is_dead_here_soon(stack: GatewayStack, admin: httpx.Client) -> None:
    admin.post("/users", json={"name": "carl", "password": PASSWORD}).raise_for_status()
    with stack.client(stack.login("carl", PASSWORD)) as carl:
        assert carl.get("/users/me").json()["role"] == "user"
        assert admin.patch("/users/carl", json={"disabled": True}).json()["disabled"] is True
        until(lambda: carl.get("/users/me").status_code == 401, "the token is dead", timeout_s=30)


def test_a_new_password_ends_the_other_sessions(stack: GatewayStack, admin: httpx.Client) -> None:
    admin.post("/users", json={"name": "dora", "password": PASSWORD}).raise_for_status()
    with stack.client(stack.login("dora", PASSWORD)) as one, stack.client(stack.login("dora", PASSWORD)) as other:
        wrong = one.post("/password", json={"old": "nope", "new": PASSWORD + "1"})
        assert wrong.status_code in {401, 403, 422}
        assert one.post("/password", json={"old": PASSWORD, "new": PASSWORD + "1"}).status_code == 204
        until(lambda: other.get("/users/me").status_code == 401, "the other session is dead", timeout_s=30)
        assert one.get("/users/me").status_code == 200
    stack.login("dora", PASSWORD + "1")


def test_only_administrators_manage_users(admin: httpx.Client, anna: httpx.Client) -> None:
    problem(anna.get("/users"), 403, "forbidden")
    problem(anna.post("/users", json={"name": "eve", "password": PASSWORD}), 403, "forbidden")
    problem(anna.patch("/users/anna", json={"role": "admin"}), 403, "forbidden")
    problem(anna.delete("/users/admin"), 403, "forbidden")
    assert {"admin", "anna"} <= {user["name"] for user in admin.get("/users").json()["users"]}
    problem(admin.delete("/users/admin"), 409, "own_account")
    problem(admin.patch("/users/admin", json={"role": "user"}), 409, "own_account")
    assert admin.post("/users", json={"name": "fred", "password": PASSWORD, "role": "expert"}).status_code == 201
    assert admin.delete("/users/fred").status_code == 204
    problem(admin.delete("/users/fred"), 404, "not_found")


def test_the_status_has_the_names_that_clients_rely_on(stack: GatewayStack, admin: httpx.Client) -> None:
    for url in (f"{stack.url}/status", f"{stack.url}/v1/status"):
        shown = admin.get(url).json()
        assert (shown["system_name"], shown["active_workloads"]) == ("wherry", [])
        assert shown["server_time"].endswith("Z")
        assert shown["nodes"]["total"] >= 0


def test_everybody_has_a_signing_secret_of_their_own(admin: httpx.Client, anna: httpx.Client) -> None:
    secrets = [client.get("/webhook-secret").json()["secret"] for client in (admin, anna, anna)]
    assert secrets[0] != secrets[1] == secrets[2]
    assert all(secret.startswith("whsec_") for secret in secrets)


# --- jobs ------------------------------------------------------------------------------------------------------------


def test_a_job_can_be_read_as_soon_as_it_is_accepted(anna: httpx.Client) -> None:
    job_id = submit(anna, {**SPEC, "name": "fresh", "labels": ["blue"], "params": {"rate": 0.5}})
    job = anna.get(f"/jobs/{job_id}").json()
    assert (job["job_id"], job["state"], job["owner"], job["labels"]) == (job_id, "queued", "anna", ["blue"])
    assert job["spec"]["params"] == {"rate": 0.5}
    assert job["spec"]["notify"][0]["email"] == "anna@example.com"


def test_others_jobs_do_not_exist(stack: GatewayStack, admin: httpx.Client, anna: httpx.Client) -> None:
    job_id = submit(admin)
    for path in ("", "/logs", "/logs?follow=true", "/events", "/metrics", "/outputs", "/outputs/x", "/notifications"):
        theirs = problem(anna.get(f"/jobs/{job_id}{path}"), 404, "not_found")
        nobodys = problem(anna.get(f"/jobs/jnothing{path}"), 404, "not_found")
        assert theirs["detail"] == nobodys["detail"]
    for verb in ("cancel", "rerun"):
        problem(anna.post(f"/jobs/{job_id}/{verb}"), 404, "not_found")
    assert job_id not in [job["job_id"] for job in anna.get("/jobs").json()["jobs"]]
    problem(anna.get("/jobs", params={"owner": "admin"}), 403, "forbidden")
    assert submit(anna) in [job["job_id"] for job in admin.get("/jobs", params={"owner": "anna"}).json()["jobs"]]


@pytest.mark.parametrize("job_id", ["%2e%2e", "a.b", "*", ">", "x" * 100, "j%00", "j%20x"])
def test_no_job_id_reaches_a_subject(anna: httpx.Client, job_id: str) -> None:
    problem(anna.post(f"/jobs/{job_id}/cancel"), 404, "not_found")
    problem(anna.get(f"/jobs/{job_id}/events"), 404, "not_found")


def test_the_same_key_is_the_same_job_and_another_spec_is_a_conflict(anna: httpx.Client, admin: httpx.Client) -> None:
    first = submit(anna, **{"Idempotency-Key": "k1"})
    assert submit(anna, **{"Idempotency-Key": "k1"}) == first
    assert submit(anna, {**SPEC, "idempotency_key": "k1"}) == first
    problem(
        anna.post("/jobs", json={**SPEC, "name": "other"}, headers={"Idempotency-Key": "k1"}),
        409,
        "idempotency_conflict",
    )
    twice = anna.post("/jobs", json={**SPEC, "idempotency_key": "k2"}, headers={"Idempotency-Key": "k1"})
    assert problem(twice, 422, "invalid")["errors"][0]["field"] == "idempotency_key"
    assert submit(admin, **{"Idempotency-Key": "k1"}) != first
    assert len(anna.get(f"/jobs/{first}/events").json()["events"]) == 1


def test_bad_specs_are_named_and_leave_nothing(anna: httpx.Client) -> None:
    before = anna.get("/jobs").json()["jobs"]
    assert problem(anna.post("/jobs", json={**SPEC, "imige": "x"}), 422, "invalid")["errors"] == [
        {"field": "imige", "message": "There is no such field; did you mean image?"}
    ]
    assert "column" in problem(anna.post("/jobs", content=b'{"image": nope}'), 400, "invalid_json")["detail"]
    problem(anna.post("/jobs", content=b"x" * 600_000), 413, "too_large")
    problem(anna.post("/jobs", content=iter([b"x" * 300_000] * 3)), 413, "too_large")
    problem(anna.post("/jobs", json={**SPEC, "params": {"x": "y" * 300_000}}), 413, "too_large")
    problem(anna.post("/jobs", json={**SPEC, "source": "a" * 26}), 404, "not_found")
    problem(anna.post("/jobs", json={**SPEC, "notify": [{"email": "boss@example.com"}]}), 403, "forbidden_address")
    assert anna.get("/jobs").json()["jobs"] == before


def test_a_webhook_secret_is_put_away_and_never_shown(stack: GatewayStack, anna: httpx.Client) -> None:
    secret = "whsec_" + "B" * 44
    job_id = submit(anna, {**SPEC, "notify": [{"webhook": {"url": "https://x.example", "secret": secret}}]})
    assert secret not in anna.get(f"/jobs/{job_id}").text
    assert "secret_ref" not in json.dumps(anna.get(f"/jobs/{job_id}").json()["spec"]["notify"]).replace(
        '"secret_ref": null', ""
    )
    assert secret not in anna.get(f"/jobs/{job_id}/events").text


def test_a_batch_gives_an_id_or_a_problem_for_each_in_order(anna: httpx.Client) -> None:
    specs: list[dict] = [{**SPEC, "name": f"batch{i}"} for i in range(600)]
    specs[7] = {"comand": "x"}
    specs[8] = {**SPEC, "idempotency_key": "batch-key"}
    answer = anna.post("/jobs/batch", json={"jobs": specs})
    assert answer.status_code == 202
    told = answer.json()["jobs"]
    assert len(told) == 600
    assert told[7]["problem"]["errors"][0]["field"] == "comand"
    assert len({item["job_id"] for i, item in enumerate(told) if i != 7}) == 599
    assert anna.get(f"/jobs/{told[599]['job_id']}").json()["name"] == "batch599"
    # Repeated with a spec that is there already and one that is in conflict: the others are not refused for it.
    specs[8] = {**SPEC, "name": "changed", "idempotency_key": "batch-key"}
    again = anna.post("/jobs/batch", json=specs[:20]).json()["jobs"]
    assert [i for i, item in enumerate(again) if "problem" in item] == [7, 8]
    assert again[8]["problem"]["code"] == "idempotency_conflict"


@pytest.mark.parametrize("body", [{"jobs": []}, [], {"specs": []}, "x", {"jobs": [{}] * 1001}])
def test_a_batch_that_is_none_is_refused(anna: httpx.Client, body: object) -> None:
    problem(anna.post("/jobs/batch", json=body), 422, "invalid")


def test_lists_are_filtered_and_paged(anna: httpx.Client) -> None:
    ids = [submit(anna, {**SPEC, "name": "paged", "labels": ["p"]}) for _ in range(5)]
    query = {"name": "paged", "state": "queued,running", "kind": "run", "label": "p", "limit": "2"}
    found: list[str] = []
    while True:
        page = anna.get("/jobs", params=query).json()
        found += [job["job_id"] for job in page["jobs"]]
        if page["cursor"] is None:
            break
        query["cursor"] = page["cursor"]
    assert found == ids[::-1]
    assert anna.get("/jobs", params={"name": "paged", "state": "failed"}).json()["jobs"] == []
    assert problem(anna.get("/jobs", params={"state": "sleeping"}), 422, "invalid")["errors"][0]["field"] == "state"
    assert problem(anna.get("/jobs", params={"limit": 0}), 422, "invalid")["errors"][0]["field"] == "limit"


async def test_cancel_is_recorded_once_and_is_safe_to_repeat(stack: GatewayStack, anna: httpx.Client) -> None:
    job_id = submit(anna)
    assert anna.post(f"/jobs/{job_id}/cancel").status_code == 202
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        asked = await bus.last("WHERRY_JOBS", f"wherry.request.*.{job_id}.cancel")
        assert asked is not None
        assert asked.data.by == anna.get("/users/me").json()["id"]
        scheduler = Scheduler(bus)
        await scheduler.move(job_id, "cancelling", cancel_requested_at=asked.time)
        assert anna.post(f"/jobs/{job_id}/cancel").status_code == 202
        await scheduler.end(job_id, "cancelled")
        answer = anna.post(f"/jobs/{job_id}/cancel")
        assert (answer.status_code, answer.json()["state"]) == (202, "cancelled")
        again = await bus.last("WHERRY_JOBS", f"wherry.request.*.{job_id}.cancel")
        assert again is not None
        assert again.seq == asked.seq


def test_a_rerun_is_a_new_job_with_the_same_spec(anna: httpx.Client, admin: httpx.Client) -> None:
    job_id = submit(anna, {**SPEC, "name": "again", "env": {"A": "1"}})
    answer = anna.post(f"/jobs/{job_id}/rerun")
    assert answer.status_code == 202
    old, new = (anna.get(f"/jobs/{one}").json() for one in (job_id, answer.json()["job_id"]))
    assert new["job_id"] != old["job_id"]
    assert new["spec"] == old["spec"]
    keyed = [anna.post(f"/jobs/{job_id}/rerun", headers={"Idempotency-Key": "r"}).json()["job_id"] for _ in range(2)]
    assert keyed[0] == keyed[1]
    by_admin = admin.post(f"/jobs/{job_id}/rerun").json()["job_id"]
    assert admin.get(f"/jobs/{by_admin}").json()["owner"] == "anna"


async def test_a_jobs_notifications_are_shown_with_their_tries(stack: GatewayStack, anna: httpx.Client) -> None:
    from shared.bus import Record  # noqa: PLC0415
    from shared.channels import DELIVERY_REQUESTED  # noqa: PLC0415
    from shared.clock import utc_now  # noqa: PLC0415

    job_id = submit(anna)
    owner = anna.get("/users/me").json()["id"]
    async with stack.bus(Service.NOTIFIER, "notifier") as bus:
        data = DeliveryRequested(
            delivery_id="d1", job_id=job_id, owner_id=owner, event_id="e1", event="failed", kind="email",
            target="anna@example.com", at=utc_now(),
        )  # fmt: skip
        event = bus.event(DELIVERY_REQUESTED, data, subject=job_id)
        await bus.record(Record(DELIVERY_REQUESTED, {"owner": owner, "job_id": job_id}, event))
    shown = until(lambda: anna.get(f"/jobs/{job_id}/notifications").json()["notifications"], "the notification")
    assert [(one["kind"], one["target"], one["event"], one["state"]) for one in shown] == [
        ("email", "anna@example.com", "failed", "pending")
    ]


# --- when something is away -------------------------------------------------------------------------------------------


def test_without_storage_new_jobs_are_taken_and_the_rest_says_when_to_come_again(
    tmp_path: Path, mongo_server: str
) -> None:
    with GatewayStack(tmp_path, mongo_url=mongo_server, WHERRY_REQUEST_TIMEOUT_S="8") as stack:
        with stack.client(stack.login(*ADMIN)) as client:
            stack.stop("services.storage", signal.SIGKILL)
            job_id = submit(client)
            answer = httpx.get(f"{stack.url}/readyz", timeout=60)
            problem(answer, 503, "unavailable")
            assert answer.headers["retry-after"]
            assert httpx.get(f"{stack.url}/healthz", timeout=60).status_code == 200
            stack.start_storage()
            until(stack.is_ready, "ready again")
            assert client.get(f"/jobs/{job_id}").json()["state"] == "queued"
        assert stack.stop("services.gateway") == 0


def test_a_gateway_whose_credential_is_refused_asks_to_be_started_again(stack: GatewayStack) -> None:
    good = stack.processes["services.gateway"]
    env = {"WHERRY_NATS_PASSWORD": "wrong", "WHERRY_PORT": "0", "WHERRY_GATEWAY_KEY": "ab" * 32}
    refused = stack.run("services.gateway", "gateway", **env)
    stack.processes["services.gateway"] = good
    assert refused.wait(120) == 75


def test_no_token_and_no_secret_is_in_the_log(stack: GatewayStack, anna: httpx.Client) -> None:
    anna.get("/jobs", params={"name": "find-me"})
    log = stack.home / "services.gateway.log"
    until(lambda: '"action":"request"' in log.read_text(), "an access line")
    text = log.read_text()
    assert anna.headers["Authorization"].split()[1] not in text
    assert PASSWORD not in text
    assert "find-me" not in text
