"""Jobs, and map jobs with their items."""

import io
import json
import zipfile
from typing import Any

from tests.e2e.documented import JSON, User
from tests.e2e.endpoints.things import AS_JSON, EVENTS, HI, SMALL, Things, case
from tests.e2e.stack import until, zip_of


@case("POST /v1/jobs")
def hand_in_a_job(user: User, things: Things) -> None:
    spec = {"runtime": "process", "command": 'cat hi > "$WHERRY_OUTPUTS/copy"', "resources": SMALL}
    form = {"spec": (None, json.dumps(spec), JSON), "source": ("source.zip", zip_of({"hi": HI}), "application/zip")}
    headers = {"Idempotency-Key": f"endpoints-{things.stack.port}"}
    job_id = user.ask("POST /v1/jobs", files=form, headers=headers, status=202).json()["job_id"]
    assert user.ask("POST /v1/jobs", files=form, headers=headers).json()["job_id"] == job_id
    assert user.ask("POST /v1/jobs", json=spec, headers=headers, status=409).json()["code"] == "idempotency_conflict"
    assert things.stack.wait_end(job_id)["state"] == "succeeded"
    assert things.stack.output(job_id, "copy") == HI


@case("GET /v1/jobs")
def jobs(user: User, things: Things) -> None:
    assert things.ended
    found = user.ask("GET /v1/jobs", params={"name": "every-endpoint", "state": "succeeded"}).json()["jobs"]
    assert (found[0]["job_id"], found[0]["spec"]) == (things.ended, None)
    user.ask("GET /v1/jobs", params={"state": "sleepy"}, status=422)


@case("POST /v1/jobs/batch")
def hand_in_many(user: User, _: Things) -> None:
    good = {"runtime": "process", "command": "true", "resources": SMALL}
    body = json.dumps({"jobs": [good, {"command": 7}]})  # of which not all is as described
    told = user.ask("POST /v1/jobs/batch", content=body, status=202).json()["jobs"]
    assert (told[0]["state"], told[1]["problem"]["code"]) == ("queued", "invalid")


@case("POST /v1/jobs/plan")
def plan(user: User, _: Things) -> None:
    spec = {"runtime": "process", "command": "true", "resources": SMALL}

    def known() -> dict[str, Any] | None:  # the scheduler may have begun anew in the test before
        told = user.ask("POST /v1/jobs/plan", json=spec).json()
        return told if told["nodes_considered"] else None

    told = until(known, "a node")
    assert (told["job_id"], told["never"]) == (None, False)


@case("GET /v1/jobs/{job_id}")
def see_a_job(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}", things.ended).json()
    assert (found["state"], found["progress"]["fraction"], found["outputs"]["bytes"]) == ("succeeded", 0.5, 10)
    assert [one["state"] for one in found["attempts"]] == ["succeeded"]


@case("GET /v1/jobs/{job_id}/explain")
def explain_a_job(user: User, things: Things) -> None:
    told = user.ask("GET /v1/jobs/{job_id}/explain", things.ended).json()
    assert (told["job_id"], told["state"], bool(told["text"])) == (things.ended, "succeeded", True)


@case("GET /v1/jobs/{job_id}/logs")
def logs(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/logs"
    text = user.ask(operation, things.ended, params={"stream": "stdout", "tail": 5})
    assert "hello" in text.text.splitlines()
    lines = user.ask(operation, things.ended, headers=AS_JSON).json()["lines"]
    assert {"stdout", "stderr"} == {one["stream"] for one in lines}
    told = user.ask(operation, things.ended, params={"follow": "true"})
    assert (told.headers["content-type"].partition(";")[0], "event: end" in told.text) == (EVENTS, True)
    user.ask(operation, things.ended, params={"attempt": 9}, status=404)


@case("GET /v1/jobs/{job_id}/events")
def events_of_a_job(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/events"
    found = user.ask(operation, things.ended, headers=AS_JSON).json()
    assert [one["type"].split(".")[3] for one in found["events"]][-1] == "succeeded"
    told = user.ask(operation, things.ended, headers={"Accept": EVENTS}).text
    assert told.count("\nid: ") == len(found["events"])


@case("GET /v1/events")
def events(user: User, things: Things) -> None:
    assert things.ended
    found = user.ask("GET /v1/events", params={"limit": 3}).json()
    assert (len(found["events"]), found["events"][0]["specversion"]) == (3, "1.0")
    assert user.ask("GET /v1/events", params={"limit": 3, "after": found["cursor"]}).json()["cursor"] > found["cursor"]


@case("GET /v1/jobs/{job_id}/metrics")
def metrics_of_a_job(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/metrics", things.ended, params={"name": "loss"}).json()
    assert [(one["name"], one["value"], one["step"]) for one in found["points"]] == [("loss", 0.5, 1)]


@case("GET /v1/jobs/{job_id}/notifications")
def notifications(user: User, things: Things) -> None:
    def delivered() -> list[dict[str, Any]]:
        found = user.ask("GET /v1/jobs/{job_id}/notifications", things.ended).json()["notifications"]
        return found if [one["state"] for one in found] == ["delivered"] else []

    assert until(delivered, "the webhook is told")[0]["tries"] >= 1


@case("GET /v1/jobs/{job_id}/outputs")
def outputs(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/outputs"
    with zipfile.ZipFile(io.BytesIO(user.ask(operation, things.ended).content)) as archive:
        assert archive.read("deep/digits") == b"0123456789"
    entries = user.ask(operation, things.ended, params={"list": "true"}).json()["entries"]
    assert {"deep", "deep/digits", "_stdout.txt"} <= {one["path"] for one in entries}
    things.stack.wait_state(things.running, "running")
    user.ask(operation, things.running, status=409)
    user.ask(operation, things.ended, params={"live": "true"}, status=409)


@case("GET /v1/jobs/{job_id}/outputs/{path}")
def an_output(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/outputs/{path}"
    assert user.ask(operation, things.ended, "deep/digits").content == b"0123456789"
    assert user.ask(operation, things.ended, "deep/digits", headers={"Range": "bytes=-2"}, status=206).text == "89"
    user.ask(operation, things.ended, "deep/digits", headers={"Range": "bytes=99-"}, status=416)
    user.ask(operation, things.running, "deep/digits", status=409)


@case("POST /v1/jobs/{job_id}/cancel")
def cancel(user: User, things: Things) -> None:
    job_id = things.job("sleep 600")
    assert user.ask("POST /v1/jobs/{job_id}/cancel", job_id, status=202).json()["job_id"] == job_id
    things.stack.wait_state(job_id, "cancelled")
    assert user.ask("POST /v1/jobs/{job_id}/cancel", job_id).json()["state"] == "cancelled"


@case("POST /v1/jobs/{job_id}/rerun")
def rerun(user: User, things: Things) -> None:
    answer = user.ask("POST /v1/jobs/{job_id}/rerun", things.ended, status=202)
    again = answer.json()["job_id"]
    assert (again != things.ended, answer.headers["location"]) == (True, f"/v1/jobs/{again}")
    assert user.ask("GET /v1/jobs/{job_id}", again).json()["name"] == "every-endpoint"


@case("GET /v1/jobs/{job_id}/items")
def items(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/items"
    found = user.ask(operation, things.map_job, params={"state": "failed"}).json()["items"]
    assert [(one["number"], one["name"], one["error"]["reason"]) for one in found] == [(2, "bad.txt", "item_failed")]
    assert user.ask(operation, things.ended, status=409).json()["code"] == "conflict"
    user.ask(operation, things.map_job, params={"state": "sleepy"}, status=422)


@case("GET /v1/jobs/{job_id}/items/{item_id}")
def see_an_item(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/items/{item_id}", things.map_job, things.items[0]).json()
    assert (found["state"], found["artifact_id"], len(found["files"])) == ("succeeded", things.artifact, 1)


@case("GET /v1/jobs/{job_id}/items/{item_id}/original")
def the_original_of_an_item(user: User, things: Things) -> None:
    found = user.ask("GET /v1/jobs/{job_id}/items/{item_id}/original", things.map_job, things.items[0])
    assert found.content == HI


@case("GET /v1/jobs/{job_id}/items/{item_id}/files/{path}")
def a_file_of_an_item(user: User, things: Things) -> None:
    operation = "GET /v1/jobs/{job_id}/items/{item_id}/files/{path}"
    shown = user.ask("GET /v1/jobs/{job_id}/items/{item_id}", things.map_job, things.items[0]).json()
    path = shown["files"][0]["path"]
    assert user.ask(operation, things.map_job, things.items[0], path).content == HI.upper()
    user.ask(operation, things.map_job, things.items[1], path, status=404)


@case("POST /v1/jobs/{job_id}/items/retry")
def retry_items(user: User, things: Things) -> None:
    sent = {"items": [things.items[1]]}
    told = user.ask("POST /v1/jobs/{job_id}/items/retry", things.map_job, json=sent, status=202).json()
    assert told["job_id"] == things.map_job
    show = "GET /v1/jobs/{job_id}/items/{item_id}"
    until(lambda: user.ask(show, things.map_job, things.items[1]).json()["tries"] == 2, "it is tried again")
    user.ask("POST /v1/jobs/{job_id}/items/retry", things.ended, status=409)


@case("POST /v1/jobs/{job_id}/items")
def add_items(user: User, things: Things) -> None:
    operation, sent = "POST /v1/jobs/{job_id}/items", {"items": [{"artifact": things.artifact, "name": "more"}]}
    added = user.ask(operation, things.map_job, json=sent, status=202).json()
    assert (len(added["items"]), added["closed"]) == (1, False)
    wrong = user.ask(operation, things.map_job, json={"items": [{"artifact": "a" * 26}]}, status=422).json()
    assert wrong["errors"][0]["field"] == "items.0.artifact"


@case("POST /v1/jobs/{job_id}/close")
def close_a_map_job(user: User, things: Things) -> None:
    assert user.ask("POST /v1/jobs/{job_id}/close", things.map_job, status=202).json()["job_id"] == things.map_job
    job = things.stack.wait_end(things.map_job)
    assert (job["state"], job["items"]["closed"]) == ("failed", True)
    late = user.ask("POST /v1/jobs/{job_id}/items", things.map_job, json={"items": ["late"]}, status=409)
    assert late.json()["code"] == "closed"
