"""Datasets over HTTP on real servers, and what jobs that name them are recorded with."""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import httpx
import pytest

from client.wherry import AsyncClient, Client, SourceError, WherryError
from shared.blobs import BlobClient
from shared.channels import Service
from shared.job import OutputsRef
from shared.manifest import Entry, Manifest
from shared.permissions import node_user
from shared.requests.blobs import BlobScope
from tests.integration.gateway_stack import NODE, PASSWORD, SPEC, GatewayStack, Scheduler, new_id


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(folder, mongo_url=mongo_server, WHERRY_FETCH_ALLOW="127.0.0.1:8099") as running:
        yield running


@pytest.fixture
def name() -> str:
    return new_id("set")


def put(http: httpx.Client, name: str, body: bytes, **fields: str) -> httpx.Response:
    return http.post("/datasets", data={"name": name, **fields}, files={"file": ("train.csv", body)})


def stored(http: httpx.Client, body: bytes) -> dict[str, Any]:
    answer = http.put("/artifacts", content=body)
    assert answer.status_code == 201, answer.text
    return answer.json()


def submit(http: httpx.Client, inputs: dict[str, Any], **fields: Any) -> httpx.Response:
    return http.post("/jobs", json=SPEC | {"inputs": inputs} | fields)


def recorded(http: httpx.Client, job_id: str) -> dict[str, Any]:
    return http.get(f"/jobs/{job_id}").json()["spec"]["inputs"]


def test_a_dataset_is_stored_described_and_read_back(anna: httpx.Client, name: str):
    body = b"a,b\n1,2\n"
    answer = put(anna, name, body, description="Two columns", labels="small, csv", visibility="shared")
    assert answer.status_code == 201, answer.text
    document = answer.json()
    assert document.pop("is_new") is True
    assert answer.headers["location"] == f"/v1/datasets/{name}@1"
    assert {key: document[key] for key in ("name", "version", "size", "description", "labels", "visibility")} == {
        "name": name, "version": 1, "size": len(body), "description": "Two columns", "labels": ["small", "csv"],
        "visibility": "shared",
    }  # fmt: skip
    assert (document["sha256"], document["owner"]) == (hashlib.sha256(body).hexdigest(), "anna")
    assert anna.get(f"/datasets/{name}").json() == document
    content = anna.get(f"/datasets/{name}@1/content")
    assert (content.content, content.headers["etag"]) == (body, f'"{document["sha256"]}"')
    part = anna.get(f"/datasets/{name}/content", headers={"Range": "bytes=4-6"})
    assert (part.status_code, part.content) == (206, b"1,2")


def test_versions_count_up_and_the_same_bytes_are_no_new_one(anna: httpx.Client, name: str):
    first, second, again = (put(anna, name, body) for body in (b"one", b"two", b"one"))
    assert [(answer.status_code, answer.json()["version"]) for answer in (first, second, again)] == [
        (201, 1), (201, 2), (200, 1)
    ]  # fmt: skip
    found = anna.get(f"/datasets/{name}").json()
    assert (found["version"], [one["version"] for one in found["versions"]]) == (2, [2, 1])
    assert anna.get(f"/datasets/{name}@1").json()["sha256"] == hashlib.sha256(b"one").hexdigest()
    for ref in (f"{name}@3", f"{name}@0", f"{name}@x", f"{name}@", f"{name}x"):
        assert anna.get(f"/datasets/{ref}").status_code == 404


def test_versions_that_come_at_once_have_a_number_each(anna: httpx.Client, name: str):
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda n: put(anna, name, b"%d" % (n % 12)), range(16)))
    assert {answer.status_code for answer in answers} <= {200, 201}
    assert sorted(answer.json()["version"] for answer in answers if answer.status_code == 201) == list(range(1, 13))
    versions = anna.get(f"/datasets/{name}").json()["versions"]
    assert [one["version"] for one in versions] == list(range(12, 0, -1))
    assert len({one["sha256"] for one in versions}) == 12


def test_a_name_belongs_to_who_had_it_first_and_nothing_more_is_told(
    anna: httpx.Client, bert: httpx.Client, admin: httpx.Client, name: str
):
    put(anna, name, b"private").raise_for_status()
    taken = put(bert, name, b"mine")
    assert (taken.status_code, taken.json()["code"]) == (409, "name_taken")
    assert "anna" not in taken.text
    assert anna.get(f"/datasets/{name}").json()["version_count"] == 1
    for method, path in (("GET", ""), ("GET", "/content"), ("DELETE", "")):
        assert bert.request(method, f"/datasets/{name}{path}").status_code == 404
    assert bert.patch(f"/datasets/{name}", json={"visibility": "shared"}).status_code == 404
    assert admin.get(f"/datasets/{name}/content").content == b"private"
    assert put(admin, name, b"by an admin").json()["owner"] == "anna"
    anna.patch(f"/datasets/{name}", json={"visibility": "shared"}).raise_for_status()
    assert bert.get(f"/datasets/{name}@1/content").content == b"private"
    assert bert.delete(f"/datasets/{name}").status_code == 403
    assert put(bert, name, b"mine").status_code == 409


def test_lists_show_ones_own_and_shared_ones_and_search_finds_all_words(anna: httpx.Client, bert: httpx.Client):
    prefix = new_id("find")
    for number in range(5):
        fields = {"description": f"Number 9{number} ($search .*)", "labels": "Cats" if number % 2 else "dogs"}
        put(anna, f"{prefix}-{number}", b"%d" % number, visibility="shared" if number < 3 else "private", **fields)

    def found(http: httpx.Client, **params: Any) -> list[str]:
        page = http.get("/datasets", params=params).json()
        return [one["name"].removeprefix(f"{prefix}-") for one in page["datasets"] if one["name"].startswith(prefix)]

    assert found(anna, search=prefix) == list("01234")
    assert found(bert, search=prefix) == list("012")
    assert found(anna, search=f"{prefix} CATS") == ["1", "3"]
    assert found(anna, search=f"number 94 {prefix}") == ["4"]  # no id has a 9
    assert found(anna, search=f"{prefix} ($search .*)") == list("01234")
    assert found(anna, search=f"{prefix} $name") == []
    assert found(bert, search=prefix, owner="me") == []
    assert found(bert, search=prefix, owner="anna") == list("012")
    first = anna.get("/datasets", params={"search": prefix, "limit": 2}).json()
    second = anna.get("/datasets", params={"search": prefix, "limit": 2, "cursor": first["cursor"]}).json()
    names = [one["name"] for page in (first, second) for one in page["datasets"]]
    assert names == [f"{prefix}-{number}" for number in range(4)]
    assert anna.get("/datasets", params={"cursor": "x"}).status_code == 422


def test_an_artifact_is_a_version_without_being_stored_again(anna: httpx.Client, bert: httpx.Client, name: str):
    artifact = stored(anna, b"bytes")
    made = anna.post("/datasets", json={"name": name, "artifact_id": artifact["artifact_id"]})
    assert (made.status_code, made.json()["artifact_id"]) == (201, artifact["artifact_id"])
    theirs = bert.post("/datasets", json={"name": f"{name}x", "artifact_id": artifact["artifact_id"]})
    assert theirs.status_code == 404
    refused = anna.delete(f"/artifacts/{artifact['artifact_id']}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert anna.delete(f"/datasets/{name}").status_code == 204
    assert anna.delete(f"/artifacts/{artifact['artifact_id']}").status_code == 204


@pytest.mark.parametrize(
    ("body", "field"),
    [
        ({"name": "Up"}, "name"), ({"name": "../x"}, "name"), ({"artifact_id": "a" + "b" * 25}, "name"),
        ({"name": "x"}, "artifact_id"), ({"name": "x", "output": "job:j/x"}, "output"),
        ({"name": "x", "artifact": "y"}, "artifact"), ({"name": "x", "visibility": "public"}, "visibility"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(anna: httpx.Client, body: dict[str, Any], field: str):
    answer = anna.post("/datasets", json=body)
    assert answer.status_code == 422
    assert [one["field"] for one in answer.json()["errors"]] == [field]


def test_a_form_without_a_file_or_with_an_unknown_field_is_refused(anna: httpx.Client, name: str):
    for fields, files in (({"name": name}, {"x": b"y"}), ({"name": name}, {"file": b"1", "source": b"2"})):
        assert anna.post("/datasets", data=fields, files=files).status_code == 422
    assert anna.post("/datasets", files={"name": (None, name)}).status_code == 422
    assert anna.get(f"/datasets/{name}").status_code == 404


# --- jobs that have them as inputs ---------------------------------------------------------------------------------


def test_a_job_is_pinned_to_the_version_that_is_newest_when_it_is_handed_in(anna: httpx.Client, name: str):
    first = put(anna, name, b"one").json()
    job_id = submit(anna, {"data": f"dataset:{name}", "raw": {"source": f"dataset:{name}", "unpack": False}}).json()[
        "job_id"
    ]
    put(anna, name, b"two").raise_for_status()
    pinned = {
        "source": f"dataset:{name}@1", "artifact": first["artifact_id"], "sha256": first["sha256"], "size": 3,
        "stage": True,
    }  # fmt: skip
    assert recorded(anna, job_id) == {"data": pinned | {"unpack": True}, "raw": pinned | {"unpack": False}}
    later = submit(anna, {"data": f"dataset:{name}"}).json()["job_id"]
    assert recorded(anna, later)["data"]["source"] == f"dataset:{name}@2"
    older = submit(anna, {"data": f"dataset:{name}@1"}).json()["job_id"]
    assert recorded(anna, older)["data"]["sha256"] == first["sha256"]


def test_a_repeat_under_a_key_is_the_same_job_though_there_is_a_newer_version(anna: httpx.Client, name: str):
    put(anna, name, b"one").raise_for_status()
    key = new_id("key")
    first = submit(anna, {"data": f"dataset:{name}"}, idempotency_key=key)
    put(anna, name, b"two").raise_for_status()
    again = submit(anna, {"data": f"dataset:{name}"}, idempotency_key=key)
    assert (again.status_code, again.json()["job_id"]) == (202, first.json()["job_id"])
    assert submit(anna, {"data": f"dataset:{name}@2"}, idempotency_key=key).status_code == 409


def test_an_artifact_is_recorded_with_its_digest(anna: httpx.Client, bert: httpx.Client):
    artifact = stored(anna, b"12345")
    source = f"artifact:{artifact['artifact_id']}"
    job_id = submit(anna, {"data": {"source": source, "unpack": False}}).json()["job_id"]
    assert recorded(anna, job_id)["data"] == {
        "source": source, "unpack": False, "artifact": artifact["artifact_id"], "sha256": artifact["sha256"], "size": 5,
        "stage": True,
    }  # fmt: skip
    assert submit(bert, {"data": source}).json()["errors"][0]["field"] == "inputs.data"


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ("dataset:nobody-has-this", "inputs.x"), ("artifact:a" + "b" * 25, "inputs.x"),
        ({"source": "artifact:a" + "b" * 25, "sha256": "0" * 64}, "inputs.x.sha256"),
        ({"source": "https://example.org/x", "artifact": "a" + "b" * 25}, "inputs.x.artifact"),
        ({"source": "https://example.org/x", "size": 0}, "inputs.x.size"),
        ("http://example.org/x", "inputs.x"), ("https://127.0.0.1/x", "inputs.x"), ("https://[::1]/x", "inputs.x"),
        ("https://169.254.169.254/latest", "inputs.x"), ("https://user:pw@example.org/x", "inputs.x"),
        ("https://example.org:22/x", "inputs.x"),
    ],
)  # fmt: skip
def test_inputs_that_cannot_be_are_refused_and_named(anna: httpx.Client, given: Any, field: str):
    for answer in (submit(anna, {"x": given}), anna.post("/jobs/plan", json=SPEC | {"inputs": {"x": given}})):
        assert answer.status_code == 422, answer.text
        assert [one["field"] for one in answer.json()["errors"]] == [field]
    [one] = anna.post("/jobs/batch", json=[SPEC | {"inputs": {"x": given}}]).json()["jobs"]
    assert one["problem"]["errors"][0]["field"] == field
    form = anna.post("/jobs", files={"spec": (None, json.dumps(SPEC | {"inputs": {"x": given}}))})
    assert form.json()["errors"][0]["field"] == field


def test_addresses_that_may_be_called_are_recorded_as_they_are(anna: httpx.Client):
    for url in ("https://example.org/train.csv?x=1", "http://127.0.0.1:8099/allowed"):
        job_id = submit(anna, {"x": url}).json()["job_id"]
        assert recorded(anna, job_id) == {"x": url}


def test_shared_datasets_are_inputs_for_everybody_and_private_ones_for_their_owner(
    anna: httpx.Client, bert: httpx.Client, name: str
):
    put(anna, name, b"one").raise_for_status()
    refused = submit(bert, {"x": f"dataset:{name}"})
    missing = submit(bert, {"x": f"dataset:{name}x"})
    assert refused.status_code == missing.status_code == 422
    assert refused.json()["detail"].replace(name, "") == missing.json()["detail"].replace(f"{name}x", "")
    anna.patch(f"/datasets/{name}", json={"visibility": "shared"}).raise_for_status()
    assert submit(bert, {"x": f"dataset:{name}"}).status_code == 202
    assert "has no version 7" in submit(bert, {"x": f"dataset:{name}@7"}).json()["detail"]


def test_a_batch_is_pinned_to_one_version(anna: httpx.Client, name: str):
    put(anna, name, b"one").raise_for_status()
    specs = [SPEC | {"inputs": {"data": f"dataset:{name}"}} for _ in range(20)]
    jobs = anna.post("/jobs/batch", json=specs).json()["jobs"]
    assert {recorded(anna, job["job_id"])["data"]["source"] for job in jobs} == {f"dataset:{name}@1"}


async def test_deletion_waits_for_jobs_that_need_it(stack: GatewayStack, anna: httpx.Client, name: str):
    for body in (b"one", b"two"):
        put(anna, name, body).raise_for_status()
    job_id = submit(anna, {"data": f"dataset:{name}@1"}).json()["job_id"]
    for ref in (name, f"{name}@1"):
        refused = anna.delete(f"/datasets/{ref}")
        assert (refused.status_code, refused.json()["code"]) == (409, "dataset_in_use")
        assert job_id in refused.json()["detail"]
    assert anna.delete(f"/datasets/{name}@2").status_code == 204
    assert [one["version"] for one in anna.get(f"/datasets/{name}").json()["versions"]] == [1]
    assert put(anna, name, b"three").json()["version"] == 3  # no number comes again
    async with stack.bus(Service.SCHEDULER, "scheduler") as bus:
        await Scheduler(bus).end(job_id, "cancelled")
    assert anna.delete(f"/datasets/{name}").status_code == 204
    assert anna.get(f"/datasets/{name}").status_code == 404
    assert anna.delete(f"/datasets/{name}").status_code == 404


async def test_what_a_job_left_becomes_a_dataset(stack: GatewayStack, anna: httpx.Client, name: str):
    job_id = submit(anna, {}).json()["job_id"]

    async def pieces(body: bytes) -> AsyncIterator[bytes]:
        yield body

    async with (
        stack.bus(Service.SCHEDULER, "scheduler") as bus,
        stack.bus(Service.NODE_AGENT, node_user(NODE), NODE) as node,
    ):
        await Scheduler(bus).run(job_id)
        blobs, scope = BlobClient(node, "node", NODE), BlobScope(job_id=job_id, attempt=1)
        stored = (await blobs.upload(pieces(b"left"), scope)).blob
        manifest = Manifest(
            job_id=job_id, attempt=1, entries=(Entry(path="model", kind="dir"), Entry(path="model/w.bin", blob=stored))
        )
        listed = (await blobs.upload(pieces(manifest.to_bytes()), scope)).blob
        refused = anna.post("/datasets", json={"name": name, "output": f"job:{job_id}/model/w.bin"})
        assert refused.json()["code"] == "not_ended"
        outputs = OutputsRef(manifest=listed, files=1, bytes=4)
        _, job = await Scheduler(bus).last(job_id)
        ended = tuple(one.model_copy(update={"outputs": outputs}) for one in job.attempts)
        await Scheduler(bus).end(job_id, outputs=outputs, attempts=ended)
    made = await asyncio.to_thread(anna.post, "/datasets", json={"name": name, "output": f"job:{job_id}/model/w.bin"})
    assert (made.status_code, made.json()["sha256"]) == (201, stored.sha256)
    assert anna.get(f"/datasets/{name}/content").content == b"left"
    assert made.json()["versions"][0]["file"] == "w.bin"
    for path in ("model", "none"):
        assert anna.post("/datasets", json={"name": name, "output": f"job:{job_id}/{path}"}).status_code == 404


# --- the SDK -------------------------------------------------------------------------------------------------------


def test_the_sdk_puts_files_and_folders_and_brings_them_back(stack: GatewayStack, name: str, tmp_path: Path):
    folder = tmp_path / "data"
    (folder / "deep").mkdir(parents=True)
    (folder / "deep" / "x").write_bytes(b"x" * 1000)
    told: list[tuple[int, int]] = []
    with Client(stack.url, stack.login("anna", PASSWORD)) as client:
        first = client.put_dataset(name, folder, labels=["a"], progress=lambda done, total: told.append((done, total)))
        assert (first.version, first.is_new, first.file_name, told[-1]) == (1, True, "data.zip", (1000, 1000))
        assert client.put_dataset(name, folder).is_new is False
        assert client.put_dataset(name, folder / "deep" / "x", shared=True).version == 2
        assert client.put_dataset(f"{name}2", f"artifact:{first.artifact_id}").sha256 == first.sha256
        assert [one.name for one in client.datasets(search=name)] == [name, f"{name}2"]
        assert [one.name for one in client.datasets(search=name, limit=1)] == [name]
        got = client.get_dataset(f"{name}@1", tmp_path / "back.zip")
        assert (got.version, (tmp_path / "back.zip").stat().st_size) == (1, first.size)
        with ZipFile(tmp_path / "back.zip") as archive:
            assert archive.read("deep/x") == b"x" * 1000
        changed = client.update_dataset(name, description="New")
        assert (changed.description, changed.labels, changed.visibility) == ("New", ["a"], "shared")
        client.delete_dataset(f"{name}@1")
        assert [one.version for one in client.dataset(name).versions] == [2]
        with pytest.raises(WherryError) as caught:
            client.dataset("../jobs")
        assert caught.value.code == "not_found"
        (tmp_path / "empty").mkdir()
        with pytest.raises(SourceError):
            client.put_dataset(name, tmp_path / "empty")


async def test_the_sdk_for_asyncio_does_the_same(stack: GatewayStack, name: str, tmp_path: Path):
    (tmp_path / "x").write_bytes(b"some bytes")
    async with AsyncClient(stack.url, stack.login("anna", PASSWORD)) as client:
        assert (await client.put_dataset(name, tmp_path / "x", description="Of bytes")).version == 1
        assert [one.description async for one in client.datasets(search=name, owner="me")] == ["Of bytes"]
        assert (await client.get_dataset(name, tmp_path / "back")).version == 1
        assert (tmp_path / "back").read_bytes() == b"some bytes"
        assert (await client.update_dataset(name, shared=True)).visibility == "shared"
        assert (await client.dataset(f"{name}@1")).size == 10
        await client.delete_dataset(name)
