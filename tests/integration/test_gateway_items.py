"""Map jobs and image workloads over HTTP on real servers; the test plays the scheduler and a node."""

import asyncio
import io
import re
import zipfile
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.wherry import AsyncClient, Client, WherryError
from shared.blobs import BlobClient
from shared.channels import Service
from shared.permissions import node_user
from shared.states import JobState
from tests.integration.gateway_stack import NODE, PASSWORD, GatewayStack, new_id, until
from tests.integration.map_scheduler import MapScheduler

PNG = b"\x89PNG\r\n\x1a\n" + b"not really, but nobody here looks further"
SPEC: dict[str, Any] = {"kind": "map", "image": "busybox", "command": "cat $WHERRY_IN > $WHERRY_OUT"}


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(
        folder, mongo_url=mongo_server, WHERRY_IMAGE_BYTES_MAX="100000", WHERRY_ITEMS_BYTES_MAX="100000"
    ) as running:
        yield running


@asynccontextmanager
async def _playing(stack: GatewayStack) -> AsyncIterator[tuple[MapScheduler, BlobClient]]:
    async with (
        stack.bus(Service.SCHEDULER, "scheduler") as bus,
        stack.bus(Service.NODE_AGENT, node_user(NODE), NODE) as agent,
    ):
        yield MapScheduler(bus), BlobClient(agent, "node", NODE)


def playing(stack: GatewayStack, play: Callable[[MapScheduler, BlobClient], Coroutine[Any, Any, Any]]) -> Any:
    async def inside() -> Any:
        async with _playing(stack) as (scheduler, blobs):
            return await play(scheduler, blobs)

    return asyncio.run(inside())


def taken_in(stack: GatewayStack, job_id: str) -> list[Any]:
    return playing(stack, lambda scheduler, _: scheduler.take_in(job_id))


def zip_of(*paths: str) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for path in paths:
            archive.writestr(path, f"content of {path}")
    return buffer.getvalue()


def stored(http: httpx.Client, body: bytes, name: str = "") -> str:
    answer = http.put("/artifacts", content=body, params={"name": name})
    assert answer.status_code == 201, answer.text
    return answer.json()["artifact_id"]


def submit(http: httpx.Client, map_: dict[str, Any], key: str | None = None, **fields: Any) -> httpx.Response:
    return http.post("/jobs", json=SPEC | {"map": map_} | fields, headers={"Idempotency-Key": key} if key else {})


def submitted(http: httpx.Client, map_: dict[str, Any], key: str | None = None, **fields: Any) -> str:
    answer = submit(http, map_, key, **fields)
    assert answer.status_code == 202, answer.text
    return answer.json()["job_id"]


def refused(answer: httpx.Response, status: int, words: str) -> None:
    assert answer.status_code == status, answer.text
    assert re.search(words, answer.text), answer.text


# --- handing in ----------------------------------------------------------------------------------------------------


def test_a_map_job_is_recorded_without_its_items_which_follow_in_order_and_close_it(
    stack: GatewayStack, anna: httpx.Client
):
    artifact_id = stored(anna, b"some bytes", "some.bin")
    job_id = submitted(anna, {"items": ["alpha", {"name": "beta", "params": {"x": 1}}, {"artifact": artifact_id}]})
    assert (
        "items" not in anna.get(f"/jobs/{job_id}").json()["spec"]["map"]
        or not (anna.get(f"/jobs/{job_id}").json()["spec"]["map"]["items"])
    )
    taken_in(stack, job_id)
    items = anna.get(f"/jobs/{job_id}/items").json()["items"]
    assert [(one["number"], one["name"], one["state"]) for one in items] == [
        (1, "alpha", "waiting"),
        (2, "beta", "waiting"),
        (3, "some.bin", "waiting"),
    ]
    assert items[1]["params"] == {"x": 1}
    assert items[2]["artifact_id"] == artifact_id
    assert anna.get(f"/jobs/{job_id}/items/{items[2]['item_id']}/original").content == b"some bytes"
    refused(anna.post(f"/jobs/{job_id}/items", json={"items": ["late"]}), 409, "closed")


def test_the_files_of_a_zip_that_match_a_pattern_become_items_below_an_unpacked_input(
    stack: GatewayStack, anna: httpx.Client
):
    body = zip_of("photos/b.png", "photos/deep/a.png", "photos/notes.txt", "top.png")
    name = new_id("set")
    anna.post("/datasets", data={"name": name}, files={"file": ("photos.zip", body)}).raise_for_status()
    for pattern, paths in (
        ("*.png", ["over/photos/b.png", "over/photos/deep/a.png", "over/top.png"]),
        ("photos/*.png", ["over/photos/b.png"]),
        ("photos/**", ["over/photos/b.png", "over/photos/deep/a.png", "over/photos/notes.txt"]),
        ("**/[ab].png", ["over/photos/b.png", "over/photos/deep/a.png"]),
    ):
        job_id = submitted(anna, {"over": f"dataset:{name}", "pattern": pattern})
        assert [one.spec.path for one in taken_in(stack, job_id)] == paths, pattern
    spec = anna.get(f"/jobs/{job_id}").json()["spec"]
    assert f"{name}@1" in str(spec["inputs"]["over"])


def test_a_repeat_under_the_same_key_adds_nothing_twice_even_when_its_dataset_has_a_newer_version(
    stack: GatewayStack, anna: httpx.Client
):
    name, key = new_id("set"), new_id("key")
    put = lambda *paths: anna.post(  # noqa: E731
        "/datasets", data={"name": name}, files={"file": ("a.zip", zip_of(*paths))}
    ).raise_for_status()
    put("one.txt", "two.txt")
    first = submitted(anna, {"over": f"dataset:{name}", "open": True}, key)
    put("a.txt", "b.txt", "c.txt")
    assert submitted(anna, {"over": f"dataset:{name}", "open": True}, key) == first
    assert [one.spec.path for one in taken_in(stack, first)] == ["over/one.txt", "over/two.txt"]


def test_more_items_than_one_message_has_come_in_order(stack: GatewayStack, anna: httpx.Client):
    job_id = submitted(anna, {"items": [f"n{at}" for at in range(1203)]})
    assert [one.spec.name for one in taken_in(stack, job_id)] == [f"n{at}" for at in range(1203)]
    first = anna.get(f"/jobs/{job_id}/items", params={"limit": 1000}).json()
    rest = anna.get(f"/jobs/{job_id}/items", params={"limit": 1000, "cursor": first["cursor"]}).json()
    assert [one["name"] for one in (*first["items"], *rest["items"])] == [f"n{at}" for at in range(1203)]
    assert rest["cursor"] is None


@pytest.mark.parametrize(
    ("map_", "fields", "words"),
    [
        ({}, {}, "nothing to do"),
        ({"pattern": "*.png", "open": True}, {}, "map.pattern"),
        ({"items": [{"name": "a", "given": True}]}, {}, "map.items.0.given: There is no such field"),
        ({"items": [{"name": "a", "sha256": "0" * 64}]}, {}, "no such field"),
        ({"items": [{"name": "a", "path": "data/x"}]}, {}, "map.items.0.path.*inputs: none"),
        ({"items": [{"artifact": "a" * 26}]}, {}, "map.items.0.artifact: There is no artifact"),
        ({"over": "dataset:nothing-like-it"}, {}, "no dataset"),
        ({"over": "https://example.com/a.zip"}, {}, "map.over: Name a zip"),
        ({"open": True}, {"view": "workload"}, "view: There is no such field"),
        ({"open": True, "itmes": []}, {}, "map.itmes"),
        ({"items": ["a"] * 10_001}, {}, "at most 10000"),
    ],
)
def test_what_is_wrong_with_a_map_job_is_named(
    anna: httpx.Client, map_: dict[str, Any], fields: dict[str, Any], words: str
):
    refused(submit(anna, map_, **fields), 422, words)


def test_what_is_no_zip_and_a_zip_without_a_match_are_no_items(anna: httpx.Client):
    text = stored(anna, b"this is not a zip at all")
    refused(
        submit(anna, {"over": f"artifact:{text}"}), 422, "map.over: Items are the files of a zip: that is not a zip"
    )
    archive = stored(anna, zip_of("a.txt"))
    refused(submit(anna, {"over": f"artifact:{archive}", "pattern": "*.png"}), 422, "map.pattern: None of the files")


def test_items_are_added_to_an_open_job_and_once_under_a_key(
    stack: GatewayStack, anna: httpx.Client, bert: httpx.Client
):
    job_id = submitted(anna, {"open": True})
    key = {"Idempotency-Key": new_id("key")}
    first = anna.post(f"/jobs/{job_id}/items", json={"items": ["a", "b"], "close": True}, headers=key)
    assert first.status_code == 202, first.text
    taken_in(stack, job_id)
    again = anna.post(f"/jobs/{job_id}/items", json={"items": ["a", "b"], "close": True}, headers=key)
    assert again.json() == first.json()
    assert [one.spec.name for one in taken_in(stack, job_id)] == ["a", "b"]
    refused(anna.post(f"/jobs/{job_id}/items", json={"items": ["c"]}), 409, '"code":"closed"')
    closed = anna.post(f"/jobs/{job_id}/items", json={"close": True})
    assert (closed.status_code, closed.json()["items"]) == (202, [])
    refused(anna.post(f"/jobs/{job_id}/items", json={}), 422, "Give items, or `close`")
    refused(bert.get(f"/jobs/{job_id}/items"), 404, "not_found")
    refused(bert.get(f"/jobs/{job_id}/items/{first.json()['items'][0]}"), 404, "not_found")
    refused(anna.get(f"/jobs/{job_id}/items", params={"state": "done"}), 422, "waiting, succeeded, failed")
    run = anna.post("/jobs", json={"image": "busybox"}).json()["job_id"]
    refused(anna.post(f"/jobs/{run}/items", json={"items": ["c"]}), 409, "only map jobs")


def test_an_artifact_that_an_item_needs_is_not_deleted_while_the_job_has_not_ended(
    stack: GatewayStack, anna: httpx.Client
):
    artifact_id = stored(anna, b"needed")
    job_id = submitted(anna, {"items": [{"artifact": artifact_id}], "open": True})
    taken_in(stack, job_id)
    refused(anna.delete(f"/artifacts/{artifact_id}"), 409, f"Job {job_id} needs artifact")
    playing(stack, lambda scheduler, _: scheduler.end(job_id, "cancelled"))
    assert anna.delete(f"/artifacts/{artifact_id}").status_code == 204


def test_workers_that_wait_for_room_are_not_among_the_jobs_that_a_quota_lets_wait(
    stack: GatewayStack, admin: httpx.Client
):
    made = admin.post("/users", json={"name": "carl", "password": PASSWORD}).raise_for_status()
    admin.put("/users/carl/quota", json={"queued": 1}).raise_for_status()
    until(lambda: stack.is_kept("quotas", made.json()["id"]), "the quota is where a login looks for it")
    with stack.client(stack.login("carl", PASSWORD)) as carl:  # a new session: no gateway knows it without the quota
        job_id = submitted(carl, {"items": ["one"]})
        refused(submit(carl, {"items": ["two"]}), 429, "quota_queued")  # the job itself counts
        playing(stack, lambda scheduler, _: scheduler.start_worker(job_id, JobState.QUEUED))
        until(lambda: submit(carl, {"items": ["two"]}).status_code == 202, "its workers do not")


# --- results -------------------------------------------------------------------------------------------------------


def test_all_items_of_a_job_together_are_limited_and_what_to_do_is_said(stack: GatewayStack, anna: httpx.Client):
    def some(count: int, first: int = 0) -> list[dict[str, Any]]:
        return [{"name": f"n{at}", "params": {"x": "y" * 10_000}} for at in range(first, first + count)]

    body = {"image": "busybox", "command": "true", "kind": "map", "map": {"items": some(10), "open": True}}
    refused(anna.post("/jobs", json=body), 413, "may have 100,000 bytes together; these would be 100,3")
    job_id = submitted(anna, {"items": some(6), "open": True})
    taken_in(stack, job_id)
    refused(anna.post(f"/jobs/{job_id}/items", json={"items": some(4, 6)}), 413, "files of a dataset or an artifact")
    assert anna.post(f"/jobs/{job_id}/items", json={"items": some(3, 6)}).status_code == 202
    assert len(taken_in(stack, job_id)) == 9


def test_results_come_back_as_files_and_as_a_zip_while_the_job_runs_and_only_what_failed_is_rerun(
    stack: GatewayStack, anna: httpx.Client
):
    job_id = submitted(anna, {"items": ["one.txt", "two", "three", "four"]})

    async def work(scheduler: MapScheduler, blobs: BlobClient) -> list[str]:
        ids = [one.id for one in await scheduler.take_in(job_id)]
        worker = await scheduler.start_worker(job_id)
        await scheduler.succeed(job_id, ids[0], worker, blobs, {"one.txt": b"first"})
        await scheduler.succeed(job_id, ids[1], worker, blobs, {"a.csv": b"1,2", "sub/b.csv": b"3,4"})
        await scheduler.fail(job_id, ids[2], worker, "no such word")
        return ids

    ids = playing(stack, work)
    answer = anna.get(f"/jobs/{job_id}/outputs")
    assert answer.headers["wherry-partial"] == "true"
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {name: archive.read(name) for name in archive.namelist()} == {
            f"{job_id}/0001-one.txt": b"first",
            f"{job_id}/0002-two/a.csv": b"1,2",
            f"{job_id}/0002-two/sub/b.csv": b"3,4",
        }
    listed = anna.get(f"/jobs/{job_id}/outputs", params={"list": True}).json()["entries"]
    assert [one["path"] for one in listed] == archive.namelist()
    assert anna.get(f"/jobs/{job_id}/outputs/{job_id}/0002-two/sub/b.csv").content == b"3,4"
    assert anna.get(f"/jobs/{job_id}/outputs/{job_id}/0003-three").status_code == 404
    assert anna.get(f"/jobs/{job_id}/items/{ids[1]}/files/a.csv").content == b"1,2"
    failed = anna.get(f"/jobs/{job_id}/items", params={"state": "failed"}).json()["items"]
    assert [(one["item_id"], one["error"]["message"]) for one in failed] == [(ids[2], "no such word")]
    refused(anna.post(f"/jobs/{job_id}/rerun"), 409, "not_ended")

    playing(stack, lambda scheduler, _: scheduler.end(job_id, "failed"))
    again = anna.post(f"/jobs/{job_id}/rerun").json()["job_id"]
    assert [one.spec.name for one in taken_in(stack, again)] == ["three", "four"]
    everything = anna.post(f"/jobs/{job_id}/rerun", params={"all": True}).json()["job_id"]
    assert [one.spec.name for one in taken_in(stack, everything)] == ["one.txt", "two", "three", "four"]


def test_failed_items_of_a_job_that_runs_are_tried_again(stack: GatewayStack, anna: httpx.Client):
    job_id = submitted(anna, {"items": ["one", "two"], "open": True})

    async def fail(scheduler: MapScheduler, _: BlobClient) -> tuple[MapScheduler, list[str]]:
        ids = [one.id for one in await scheduler.take_in(job_id)]
        worker = await scheduler.start_worker(job_id)
        for item_id in ids:
            await scheduler.fail(job_id, item_id, worker, "not today")
        refused(anna.post(f"/jobs/{job_id}/items/retry", json={"items": [new_id("i")]}), 422, "There is no item")
        assert anna.post(f"/jobs/{job_id}/items/retry", json={"items": ids[:1]}).status_code == 202
        await scheduler.take_in(job_id)
        return scheduler, ids

    playing(stack, fail)
    assert [one["state"] for one in anna.get(f"/jobs/{job_id}/items").json()["items"]] == ["waiting", "failed"]


def test_bytes_that_the_items_own_worker_has_not_stored_are_not_shown(stack: GatewayStack, anna: httpx.Client):
    job_id = submitted(anna, {"items": ["one"]})

    async def work(scheduler: MapScheduler, blobs: BlobClient) -> None:
        (one,) = await scheduler.take_in(job_id)
        honest, other = await scheduler.start_worker(job_id), await scheduler.start_worker(job_id)
        await scheduler.succeed(job_id, one.id, honest, blobs, {"mine": b"stored by the honest one"})
        claimed = scheduler.items[job_id][one.id].model_copy(update={"worker": other})
        await scheduler.change(job_id, [claimed])

    playing(stack, work)
    assert anna.get(f"/jobs/{job_id}/items").json()["items"][0]["files"] == []


def test_a_path_by_which_a_node_leads_out_of_where_results_are_unpacked_is_not_shown(
    stack: GatewayStack, anna: httpx.Client
):
    job_id = submitted(anna, {"items": ["one"]})

    async def work(scheduler: MapScheduler, blobs: BlobClient) -> None:
        (one,) = await scheduler.take_in(job_id)
        worker = await scheduler.start_worker(job_id)
        await scheduler.succeed(job_id, one.id, worker, blobs, {"good": b"1", "../../../bad": b"2", "/bad": b"3"})

    playing(stack, work)
    assert [file["path"] for file in anna.get(f"/jobs/{job_id}/items").json()["items"][0]["files"]] == ["good"]


# --- image workloads -----------------------------------------------------------------------------------------------


@pytest.fixture
def workload(anna: httpx.Client) -> str:
    answer = anna.post("/workloads")
    assert answer.status_code == 201, answer.text
    return answer.json()["workload_id"]


def post_image(http: httpx.Client, workload_id: str, body: bytes = PNG, field: str = "data", **fields: str):
    return http.post("/images", data={"workload_id": workload_id, **fields}, files={field: ("photo.png", body)})


def posted(http: httpx.Client, workload_id: str, body: bytes = PNG, **fields: str) -> str:
    answer = post_image(http, workload_id, body, **fields)
    assert answer.status_code == 201, answer.text
    return answer.json()["image_id"]


def test_a_workload_is_made_without_a_body_of_json_and_of_a_form(anna: httpx.Client, stack: GatewayStack):
    plain = anna.post("/workloads").json()
    assert {key: plain[key] for key in ("filter", "status", "running_jobs", "filtered_images")} == {
        "filter": "grayscale",
        "status": "scheduling",
        "running_jobs": 0,
        "filtered_images": [],
    }
    assert plain["workload_name"]
    wish = {"filter": "blur", "workload_name": "holidays"}
    token = anna.headers["Authorization"]
    for sent in (
        anna.post("/workloads", json=wish),
        anna.post("/workloads", params=wish),
        anna.post("/workloads", data=wish),
        anna.post("/workloads", files={name: (None, value) for name, value in wish.items()}),
        httpx.post(f"{stack.url}/workloads", json=wish, headers={"Authorization": token}, timeout=60),
    ):
        assert sent.status_code == 201, sent.text
        assert (sent.json()["filter"], sent.json()["workload_name"]) == ("blur", "holidays")
    got = anna.get(f"/workloads/{sent.json()['workload_id']}").json()
    assert got == sent.json()
    refused(anna.post("/workloads", json={"filter": "sepia"}), 422, "there are grayscale, blur")
    refused(anna.post("/workloads", json={"filters": "blur"}), 422, "did you mean filter")
    refused(anna.post("/workloads", params={"filters": "blur"}), 422, "did you mean filter")
    listed = anna.get("/workloads", params={"limit": 2}).json()
    assert [one["workload_name"] for one in listed["workloads"]] == ["holidays", "holidays"]
    assert listed["cursor"]


def test_a_form_for_a_workload_has_no_fields_without_number(anna: httpx.Client):
    answer = anna.post("/workloads", files=[(f"field{at}", (None, "x")) for at in range(1000)])
    refused(answer, 413, "65536 bytes")


def test_images_go_in_are_told_in_order_and_come_back_each_by_its_id(
    stack: GatewayStack, anna: httpx.Client, bert: httpx.Client, workload: str
):
    originals = [PNG + b"%d" % at for at in range(4)]
    ids = [posted(anna, workload, body) for body in originals]

    async def work(scheduler: MapScheduler, blobs: BlobClient) -> None:
        await scheduler.take_in(workload)
        worker = await scheduler.start_worker(workload)
        for at in (2, 0):  # the later one is done first
            await scheduler.succeed(workload, ids[at], worker, blobs, {"photo.png": b"filtered %d" % at})
        await scheduler.fail(workload, ids[1], worker, "cannot identify image file")

    playing(stack, work)
    filtered = [f"f{one[1:]}" for one in ids]
    document = anna.get(f"/workloads/{workload}").json()
    assert document["status"] == "running"
    assert document["running_jobs"] == 1
    assert document["filtered_images"] == [filtered[0], filtered[2]]
    assert [(one["image_id"], one["message"]) for one in document["failed_images"]] == [
        (ids[1], "cannot identify image file")
    ]
    assert workload in anna.get("/status").json()["active_workloads"]
    assert workload not in bert.get("/status").json()["active_workloads"]

    for at, body in enumerate(originals):
        answer = anna.get(f"/images/{ids[at]}")
        assert (answer.content, answer.headers["content-type"]) == (body, "image/png")
    answer = anna.get(f"/images/{filtered[2]}")
    assert (answer.content, answer.headers["content-type"]) == (b"filtered 2", "image/png")
    assert anna.get(f"/images/{filtered[2]}", params={"type": "original"}).content == originals[2]
    assert anna.get(f"/images/{ids[2]}", params={"type": "filtered"}).content == b"filtered 2"
    waiting = anna.get(f"/images/{filtered[3]}")
    refused(waiting, 409, "not_ready")
    assert waiting.headers["retry-after"] == "1"
    refused(anna.get(f"/images/{filtered[1]}"), 409, "cannot identify image file")
    refused(bert.get(f"/images/{filtered[0]}"), 404, "no such image")
    refused(anna.get("/images/nothing"), 404, "no such image")

    with zipfile.ZipFile(io.BytesIO(anna.get(f"/workloads/{workload}/results").content)) as archive:
        assert archive.namelist() == [f"{workload}/0001-photo.png", f"{workload}/0003-photo.png"]

    assert anna.post(f"/workloads/{workload}/rerun").status_code == 202
    taken_in_again = playing(stack, lambda scheduler, _: scheduler.take_in(workload))
    assert taken_in_again


def test_an_image_that_comes_as_a_result_is_one_and_has_no_original(
    stack: GatewayStack, anna: httpx.Client, workload: str
):
    image_id = posted(anna, workload, PNG, type="filtered")
    assert image_id.startswith("f")
    taken_in(stack, workload)
    document = anna.get(f"/workloads/{workload}").json()
    assert (document["status"], document["filtered_images"]) == ("completed", [image_id])
    assert anna.get(f"/images/{image_id}").content == PNG
    with zipfile.ZipFile(io.BytesIO(anna.get(f"/workloads/{workload}/results").content)) as archive:
        assert archive.read(f"{workload}/0001-photo.png") == PNG
    refused(anna.get(f"/images/{image_id}", params={"type": "original"}), 404, "no original")
    assert workload not in anna.get("/status").json()["active_workloads"]


def test_the_file_may_be_called_image_and_stand_before_the_workload(anna: httpx.Client, workload: str):
    before = anna.post("/images", files=[("image", ("a.png", PNG)), ("workload_id", (None, workload))])
    assert before.status_code == 201, before.text
    assert set(before.json()) == {"workload_id", "image_id", "type"}


def test_what_is_wrong_with_an_image_is_said_and_nothing_of_it_stays(
    stack: GatewayStack, anna: httpx.Client, bert: httpx.Client, workload: str
):
    before = anna.get("/artifacts").json()["artifacts"]
    refused(post_image(anna, workload, b"#!/bin/sh\necho this is no image at all\n"), 422, "not_an_image")
    refused(post_image(anna, workload, b""), 422, "is empty")
    refused(post_image(anna, workload, PNG * 4000), 413, "100000 bytes")
    refused(post_image(anna, workload, type="sepia"), 422, "neither original nor filtered")
    refused(post_image(anna, new_id("j")), 404, "no such workload")
    refused(post_image(anna, "nothing"), 404, "no such workload")
    refused(post_image(bert, workload), 404, "no such workload")
    refused(post_image(anna, workload, PNG * 400, field="file"), 422, "file: A form has a file `data`")
    two = [("data", ("a.png", PNG)), ("image", ("b.png", PNG * 400))]
    refused(anna.post("/images", data={"workload_id": workload}, files=two), 422, "image: A form has one image")
    refused(anna.post("/images", files={"data": ("a.png", PNG)}), 422, "workload_id: This field is required")
    refused(anna.post("/images", data={"workload_id": workload}, files={"x": (None, "y")}), 422, "nothing else")
    refused(anna.post("/images", json={"workload_id": workload}), 415, "multipart")
    assert anna.get("/artifacts").json()["artifacts"] == before
    assert anna.delete(f"/workloads/{workload}").status_code == 202
    taken_in(stack, workload)
    refused(post_image(anna, workload), 409, "closed")
    assert anna.get("/artifacts").json()["artifacts"] == before


@pytest.mark.parametrize(
    ("name", "kept"),
    [
        ("x" * 300, "x" * 255),
        ("a\x00b\n.png", "ab.png"),
        ("../../etc/passwd", "passwd"),
        ("mein Bild.png", "mein Bild.png"),
        (" \t", "photo.png"),
    ],
)
def test_whatever_name_is_given_to_an_image_it_is_kept_as_one_of_a_file(
    stack: GatewayStack, anna: httpx.Client, workload: str, name: str, kept: str
):
    posted(anna, workload, name=name)
    assert [one.spec.name for one in taken_in(stack, workload)] == [kept]


def test_an_image_under_a_key_is_taken_once(stack: GatewayStack, anna: httpx.Client, workload: str):
    key = {"Idempotency-Key": new_id("key")}
    sent: dict[str, Any] = {"data": {"workload_id": workload}, "files": {"data": ("a.png", PNG)}, "headers": key}
    assert anna.post("/images", **sent).json() == anna.post("/images", **sent).json()
    assert len(taken_in(stack, workload)) == 1


def test_the_seeds_paths_stand_at_the_root_for_curl(stack: GatewayStack, workload: str):
    for method in ("GET", "POST"):
        answer = httpx.request(method, f"{stack.url}/login", auth=("anna", PASSWORD), timeout=60)
        assert set(answer.json()) >= {"user", "token"}
    refused(httpx.post(f"{stack.url}/login", timeout=60), 401, "`user` and `password` as JSON or a form")
    token = {"Authorization": f"Bearer {answer.json()['token']}"}
    with httpx.Client(base_url=stack.url, headers=token, timeout=60) as http:
        assert http.get("/status").json()["active_workloads"]
        assert http.get(f"/workloads/{workload}").json()["workload_id"] == workload
        image = post_image(http, workload).json()
        assert (image["workload_id"], image["type"]) == (workload, "original")
        taken_in(stack, workload)
        assert http.get(f"/images/{image['image_id']}").content == PNG
        assert http.delete("/logout").json()["logout_message"]
        refused(http.get("/status"), 401, "")


# --- the client ----------------------------------------------------------------------------------------------------


def test_a_folder_goes_up_as_a_zip_whose_files_become_items(stack: GatewayStack, anna: httpx.Client, tmp_path: Path):
    for name in ("photos/b.png", "photos/deep/a.png", "photos/notes.txt"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(f"content of {name}")
    with Client(stack.url, anna.headers["Authorization"].removeprefix("Bearer ")) as client:
        folder = client.put_artifact(tmp_path / "photos")
        assert client.artifacts(limit=1)[0].name == "photos.zip"
        job = client.submit(SPEC | {"map": {"over": f"artifact:{folder.artifact_id}", "pattern": "*.png"}})
        (tmp_path / "empty").mkdir()
        with pytest.raises(WherryError, match="has no files to send"):
            client.put_artifact(tmp_path / "empty")
    assert [one.spec.path for one in taken_in(stack, job.job_id)] == ["over/b.png", "over/deep/a.png"]


def test_the_client_gives_items_and_images_and_reads_them_back_both_ways(
    stack: GatewayStack, anna: httpx.Client, tmp_path: Path
):
    token = anna.headers["Authorization"].removeprefix("Bearer ")
    photo = tmp_path / "Fête.png"
    photo.write_bytes(PNG)

    async def use(scheduler: MapScheduler, blobs: BlobClient) -> None:
        async with AsyncClient(stack.url, token) as client:
            made = await client.create_workload("blur", name="by client")
            image = await client.put_image(made.workload_id, photo)
            await scheduler.take_in(made.workload_id)
            worker = await scheduler.start_worker(made.workload_id)
            await scheduler.succeed(made.workload_id, image.image_id, worker, blobs, {"Fête.png": b"filtered"})
            done = await client.workload(made.workload_id)
            assert (done.status, done.images.filtered) == ("completed", 1)
            saved = await client.get_image(done.filtered_images[0], tmp_path / "out.png")
            assert saved.read_bytes() == b"filtered"
            (listed,) = [one async for one in client.workloads(limit=1)]
            assert listed.workload_name == "by client"
            (one,) = [one async for one in client.items(made.workload_id)]
            assert (one.name, one.files[0].path) == ("Fête.png", "Fête.png")
            kept = await client.download_item(made.workload_id, one.item_id, "Fête.png", tmp_path / "kept.png")
            assert kept.read_bytes() == b"filtered"
            assert (await client.end_workload(made.workload_id)).workload_id == made.workload_id

    playing(stack, use)
    with Client(stack.url, token) as client:
        job = client.submit(SPEC | {"map": {"open": True}})
        added = client.add_items(job.job_id, ["one", {"name": "two", "params": {"x": 1}}], close=True, key="k")
        assert client.add_items(job.job_id, ["one", {"name": "two", "params": {"x": 1}}], close=True, key="k") == added
        taken_in(stack, job.job_id)
        assert [one.name for one in client.items(job.job_id, limit=1)] == ["one"]
        assert [one.name for one in client.items(job.job_id, states=("waiting",))] == ["one", "two"]
        assert client.job(job.job_id).items is not None
        assert client.close_job(job.job_id).job_id == job.job_id
        with pytest.raises(WherryError, match="has not ended"):
            client.rerun(job.job_id)
