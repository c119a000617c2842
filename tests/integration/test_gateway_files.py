"""Bytes in and out through the gateway, on real NATS, MongoDB GridFS and storage."""

import hashlib
import io
import json
import os
import socket
import zipfile
from collections.abc import Iterator
from http.client import HTTPResponse
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.blobs import BlobClient
from shared.channels import Service
from shared.job import BlobRef, OutputsRef
from shared.manifest import Entry, Manifest
from shared.requests.blobs import BlobScope
from tests.integration.gateway_stack import ADMIN, NODE, SPEC, GatewayStack, Scheduler, until
from tests.zips.good import GOOD
from tests.zips.hostile import HOSTILE

PASSWORD = "correct horse battery 9"
MIB = 1024 * 1024


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(folder, mongo_url=mongo_server, WHERRY_UPLOAD_IDLE_S="10") as running:
        yield running


@pytest.fixture(scope="module")
def http(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        client.post("/users", json={"name": "anna", "password": PASSWORD}).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, http: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("anna", PASSWORD)) as client:
        yield client


def zipped(**files: str | bytes) -> bytes:
    out = io.BytesIO()
    with zipfile.ZipFile(out, "w") as archive:
        for name, content in files.items():
            archive.writestr(name.replace("__", "/"), content)
    return out.getvalue()


def post_form(client: httpx.Client, *parts: tuple[str, Any], **headers: str) -> httpx.Response:
    return client.post("/jobs", files=list(parts), headers=headers)


def spec_part(**fields: Any) -> tuple[str, Any]:
    return "spec", (None, json.dumps({**SPEC, **fields}), "application/json")


def source_part(content: Any) -> tuple[str, Any]:
    return "source", ("source.zip", content, "application/zip")


def problem(answer: httpx.Response, status: int, code: str) -> dict:
    assert (answer.status_code, answer.json().get("code")) == (status, code), answer.text
    return answer.json()


# --- artifacts -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 512 * 1024, 512 * 1024 + 1, 3 * MIB + 17])
def test_what_goes_in_comes_out(http: httpx.Client, size: int) -> None:
    body = os.urandom(size)
    answer = http.put("/artifacts", content=body, params={"name": "naïve.bin"}, headers={"Content-Type": "text/html"})
    assert answer.status_code == 201, answer.text
    told = answer.json()
    assert (told["sha256"], told["size"]) == (hashlib.sha256(body).hexdigest(), size)
    got = http.get(f"/artifacts/{told['artifact_id']}")
    assert (got.status_code, got.content) == (200, body)
    assert got.headers["content-length"] == str(size)
    assert got.headers["content-type"].startswith("text/html")
    assert got.headers["etag"] == f'"{told["sha256"]}"'
    assert got.headers["content-disposition"] == "attachment; filename=\"na_ve.bin\"; filename*=UTF-8''na%C3%AFve.bin"
    assert got.headers["content-security-policy"] == "sandbox"
    head = http.head(f"/artifacts/{told['artifact_id']}")
    assert (head.status_code, head.content, head.headers["content-length"]) == (200, b"", str(size))


def test_a_range_is_those_bytes(http: httpx.Client) -> None:
    body = os.urandom(2 * MIB)
    artifact = http.put("/artifacts", content=body).json()["artifact_id"]
    url = f"/artifacts/{artifact}"
    for header, start, end in (("0-9", 0, 10), ("500000-600000", 500_000, 600_001), ("-5", len(body) - 5, len(body))):
        part = http.get(url, headers={"Range": f"bytes={header}"})
        assert (part.status_code, part.content) == (206, body[start:end])
        assert part.headers["content-range"] == f"bytes {start}-{end - 1}/{len(body)}"
    beyond = http.get(url, headers={"Range": f"bytes={len(body)}-"})
    problem(beyond, 416, "range_not_satisfiable")
    assert beyond.headers["content-range"].startswith("bytes */")
    etag = http.head(url).headers["etag"]
    assert http.get(url, headers={"If-None-Match": etag}).status_code == 304
    assert http.get(url, headers={"Range": "bytes=0-1", "If-Range": etag}).status_code == 206
    assert http.get(url, headers={"Range": "bytes=0-1", "If-Range": '"old"'}).status_code == 200


def test_artifacts_of_others_do_not_exist_even_with_the_same_bytes(http: httpx.Client, anna: httpx.Client) -> None:
    body = os.urandom(1000)
    mine = http.put("/artifacts", content=body).json()["artifact_id"]
    problem(anna.get(f"/artifacts/{mine}"), 404, "not_found")
    hers = anna.put("/artifacts", content=body).json()["artifact_id"]
    assert hers != mine
    assert anna.get(f"/artifacts/{hers}").content == body
    problem(anna.get("/artifacts/a" + "a" * 25), 404, "not_found")
    problem(anna.post("/jobs", json={**SPEC, "source": mine}), 404, "not_found")


def test_a_name_or_a_media_type_that_is_none_is_refused(http: httpx.Client) -> None:
    problem(http.put("/artifacts", content=b"x", params={"name": "a\nb"}), 422, "invalid")
    problem(http.put("/artifacts", content=b"x", headers={"Content-Type": "nonsense"}), 422, "invalid")


# --- sources ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [10, 2 * MIB])
@pytest.mark.parametrize("spec_first", [True, False])
def test_a_form_with_spec_and_source_in_any_order_is_a_job(http: httpx.Client, size: int, *, spec_first: bool) -> None:
    body = zipped(run="echo", lib__data=os.urandom(size))
    both = [spec_part(name="with source"), source_part(body)]
    answer = post_form(http, *(both if spec_first else both[::-1]))
    assert answer.status_code == 202, answer.text
    source = http.get(f"/jobs/{answer.json()['job_id']}").json()["spec"]["source"]
    assert http.get(f"/artifacts/{source}").content == body


def test_a_form_repeated_under_a_key_is_the_same_job_and_another_source_is_a_conflict(http: httpx.Client) -> None:
    parts = spec_part(), source_part(zipped(run="1"))
    first, again = (post_form(http, *parts, **{"Idempotency-Key": "form"}).json()["job_id"] for _ in range(2))
    assert first == again
    other = post_form(http, spec_part(), source_part(zipped(run="2")), **{"Idempotency-Key": "form"})
    problem(other, 409, "idempotency_conflict")


BAD = {
    "a script": (b"#!/bin/sh\necho hello\n", "not a zip"),
    "nothing": (b"", "not a zip"),
    "an empty zip": (zipped(), "empty"),
    "a zip that leads out": (zipped(**{"..__..__etc__passwd": "x", "a": "b"}), "../../etc/passwd"),
    "an absolute path": (zipped(__etc__passwd="x"), "/etc/passwd"),
    "a zip that was cut": (zipped(run="x" * 5000)[:-40], "zip"),
    "a large zip that leads out": (zipped(big=os.urandom(6 * MIB), **{"..__x": "y"}), "../x"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_source_is_named_at_post_and_leaves_nothing_behind(
    http: httpx.Client, stack: GatewayStack, name: str
) -> None:
    body, word = BAD[name]
    before = held(stack), http.get("/jobs").json()["jobs"]
    for parts in ((spec_part(), source_part(body)), (source_part(body), spec_part())):
        told = problem(post_form(http, *parts), 422, "bad_source")
        assert word in told["detail"]
    until(lambda: nothing_new(stack, before[0]), "nothing is left")
    assert http.get("/jobs").json()["jobs"] == before[1]


#: One of each way in which a zip is noticed; all of them are in tests/unit/shared/test_hostile_zips.py.
HOSTILE_SAMPLE = [
    "without its end", "upwards", "a NUL", "twice but for accents", "a file under a file", "a link", "encrypted",
    "another checksum", "more than it claims", "all in one place", "two names", "bytes between entries",
    "a zip in the comment", "no 64-bit field", "too many", "a huge directory",
]  # fmt: skip


@pytest.mark.parametrize("name", HOSTILE_SAMPLE)
def test_a_hostile_zip_is_refused_at_post_and_leaves_nothing_behind(
    http: httpx.Client, stack: GatewayStack, name: str
) -> None:
    before = held(stack)
    told = problem(post_form(http, spec_part(), source_part(HOSTILE[name].make())), 422, "bad_source")
    assert HOSTILE[name].named in told["detail"]
    until(lambda: nothing_new(stack, before), "nothing is left")


def test_zips_of_common_tools_are_taken(http: httpx.Client) -> None:
    for name, good in GOOD.items():
        answer = post_form(http, spec_part(), source_part(good.make()))
        assert answer.status_code == 202, (name, answer.text)


@pytest.mark.parametrize("name", ["a script", "an empty zip", "a zip that leads out", "a large zip that leads out"])
def test_a_bad_artifact_is_no_source_either(http: httpx.Client, name: str) -> None:
    body, word = BAD[name]
    artifact = http.put("/artifacts", content=body).json()["artifact_id"]
    told = problem(http.post("/jobs", json={**SPEC, "source": artifact}), 422, "bad_source")
    assert word in told["detail"]


def test_a_good_artifact_is_a_source_again_and_again(http: httpx.Client) -> None:
    artifact = http.put("/artifacts", content=zipped(run="x", big=os.urandom(6 * MIB))).json()["artifact_id"]
    for _ in range(2):
        assert http.post("/jobs", json={**SPEC, "source": artifact}).status_code == 202


def test_a_form_that_is_none_is_refused(http: httpx.Client) -> None:
    good = zipped(run="x")
    assert problem(post_form(http, source_part(good)), 422, "invalid")["errors"][0]["field"] == "spec"
    assert (
        problem(post_form(http, spec_part(), ("extra", (None, "x"))), 422, "invalid")["errors"][0]["field"] == "extra"
    )
    problem(post_form(http, spec_part(source="a" * 26), source_part(good)), 422, "invalid")
    problem(post_form(http, ("spec", (None, "x" * 600_000)), source_part(good)), 413, "too_large")
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    problem(http.post("/jobs", content=b"nonsense", headers=headers), 400, "bad_form")
    assert problem(post_form(http, spec_part(colour="red"), source_part(good)), 422, "invalid")["errors"] == [
        {"field": "colour", "message": "There is no such field"}
    ]


def held(stack: GatewayStack) -> dict[str, set[Any]]:
    """Which chunks, files and artifacts the database holds. (Of an upload that was dropped its id stays a while.)"""
    from pymongo import MongoClient  # noqa: PLC0415

    with MongoClient(stack.mongo_url) as mongo:
        return {
            name: set(mongo[stack.database][name].distinct("_id")) for name in ("fs.chunks", "fs.files", "artifacts")
        }


def new(stack: GatewayStack, before: dict[str, set[Any]]) -> dict[str, set[Any]]:
    """Which came since; what others left may go at any time."""
    return {name: ids - before[name] for name, ids in held(stack).items()}


def nothing_new(stack: GatewayStack, before: dict[str, set[Any]]) -> bool:
    return not any(new(stack, before).values())


@pytest.mark.parametrize("chunked", [True, False])
@pytest.mark.parametrize("path", ["jobs", "artifacts"])
def test_an_upload_cut_in_the_middle_leaves_nothing_behind(
    http: httpx.Client, stack: GatewayStack, path: str, *, chunked: bool
) -> None:
    before = held(stack), http.get("/jobs").json()["jobs"]
    form = (
        b"--cut\r\n"
        b'Content-Disposition: form-data; name="spec"\r\n\r\n' + json.dumps(SPEC).encode() + b"\r\n--cut\r\n"
        b'Content-Disposition: form-data; name="source"; filename="s.zip"\r\n\r\nPK\x03\x04'
    )
    body = (form if path == "jobs" else b"") + os.urandom(5 * MIB)
    head = [
        "POST /v1/jobs HTTP/1.1" if path == "jobs" else "PUT /v1/artifacts HTTP/1.1",
        "Host: x", f"Authorization: {http.headers['Authorization']}",
        "Content-Type: " + ("multipart/form-data; boundary=cut" if path == "jobs" else "application/zip"),
        "Transfer-Encoding: chunked" if chunked else "Content-Length: 50000000",
    ]  # fmt: skip
    with socket.create_connection(("127.0.0.1", stack.port)) as connection:
        connection.sendall(("\r\n".join(head) + "\r\n\r\n").encode())
        connection.sendall((b"%x\r\n%s\r\n" % (len(body), body)) if chunked else body)

        def have_arrived() -> bool:
            connection.sendall(b"1\r\nx\r\n" if chunked else b"x")  # lest it be given up before one has looked
            return len(new(stack, before[0])["fs.chunks"]) == 10

        until(have_arrived, "all chunks have arrived")
    until(lambda: nothing_new(stack, before[0]), "storage has forgotten them")
    assert http.get("/jobs").json()["jobs"] == before[1]


def test_an_upload_of_which_nothing_more_comes_is_given_up(http: httpx.Client, stack: GatewayStack) -> None:
    before = held(stack)
    head = f"PUT /v1/artifacts HTTP/1.1\r\nHost: x\r\nAuthorization: {http.headers['Authorization']}\r\n"
    with socket.create_connection(("127.0.0.1", stack.port), timeout=90) as connection:
        connection.sendall(f"{head}Content-Length: 50000000\r\n\r\n".encode() + b"x" * 3_000_000)
        with HTTPResponse(connection) as answer:
            answer.begin()
            said = json.load(answer)
    assert (answer.status, said["code"]) == (408, "too_slow")
    until(lambda: nothing_new(stack, before), "storage has forgotten the chunks")


def test_a_form_whose_last_boundary_is_missing_is_no_job(http: httpx.Client, stack: GatewayStack) -> None:
    before = held(stack), http.get("/jobs").json()["jobs"]
    headers = {"Content-Type": "multipart/form-data; boundary=x"}
    body = b'--x\r\nContent-Disposition: form-data; name="source"\r\n\r\n' + zipped(run="x", big=os.urandom(2 * MIB))
    problem(http.post("/jobs", content=body, headers=headers), 400, "bad_form")
    until(lambda: nothing_new(stack, before[0]), "nothing is left")
    assert http.get("/jobs").json()["jobs"] == before[1]


# --- outputs ---------------------------------------------------------------------------------------------------------

FILES = {
    "empty.txt": b"",
    "nested/deeper/table.csv": b"a,b\n1,2\n",
    "nested/naïve 日本.txt": b"hello",
    "tool.sh": b"#!/bin/sh\n",
    "big.bin": os.urandom(3 * MIB + 5),
}


async def ended_job(stack: GatewayStack, http: httpx.Client, files: dict[str, bytes]) -> str:
    """Return a job that ended with *files* and a log, as a node and the scheduler leave it."""
    job_id = http.post("/jobs", json=SPEC).json()["job_id"]
    async with (
        stack.bus(Service.SCHEDULER, "scheduler") as bus,
        stack.bus(Service.NODE_AGENT, f"node-{NODE}", NODE) as node,
    ):
        scheduler = Scheduler(bus)
        await scheduler.run(job_id)
        blobs = BlobClient(node, "node", NODE)
        scope = BlobScope(job_id=job_id, attempt=1)

        known: dict[bytes, BlobRef] = {}

        async def stored(content: bytes) -> BlobRef:
            async def chunks():
                yield content

            if content not in known:
                known[content] = (await blobs.upload(chunks(), scope)).blob
            return known[content]

        entries = [
            Entry(
                path=path, mode=0o755 if path == "tool.sh" else 0o644, mtime=1_700_000_000, blob=await stored(content)
            )
            for path, content in files.items()
        ]
        entries.append(Entry(path="hollow/inside", kind="dir", mode=0o755, mtime=1_700_000_000))
        manifest = Manifest(
            job_id=job_id, attempt=1, entries=tuple(sorted(entries, key=lambda entry: entry.path)),
            stdout=await stored(b"printed\n"), skipped=("link: a link",),
        )  # fmt: skip
        outputs = OutputsRef(
            manifest=await stored(manifest.to_bytes()), files=len(files), bytes=sum(map(len, files.values()))
        )
        _, job = await scheduler.last(job_id)
        await scheduler.end(
            job_id, outputs=outputs, attempts=(job.attempts[0].model_copy(update={"outputs": outputs}),)
        )
    return job_id


async def test_outputs_come_back_bit_for_bit(stack: GatewayStack, http: httpx.Client, anna: httpx.Client) -> None:
    job_id = await ended_job(stack, http, FILES)
    assert http.get(f"/jobs/{job_id}").json()["outputs"]["files"] == len(FILES)
    page = http.get(f"/jobs/{job_id}/outputs", params={"list": "true"}).json()
    entries = {entry["path"]: entry for entry in page["entries"]}
    assert set(FILES) | {"hollow/inside", "_stdout.txt"} <= set(entries)
    assert page["skipped"] == ["link: a link"]
    for path, content in FILES.items():
        assert (entries[path]["size"], entries[path]["sha256"]) == (len(content), hashlib.sha256(content).hexdigest())
        answer = http.get(f"/jobs/{job_id}/outputs/{path}")
        assert (answer.status_code, answer.content) == (200, content), path
    assert http.get(f"/jobs/{job_id}/outputs/_stdout.txt").text == "printed\n"
    part = http.get(f"/jobs/{job_id}/outputs/big.bin", headers={"Range": "bytes=1000000-1000009"})
    assert (part.status_code, part.content) == (206, FILES["big.bin"][1_000_000:1_000_010])
    for path in ("nothing", "nested", "../../../etc/passwd", "..%2f..%2fetc%2fpasswd", "nested/../tool.sh%00"):
        problem(http.get(f"/jobs/{job_id}/outputs/{path}"), 404, "not_found")
    problem(anna.get(f"/jobs/{job_id}/outputs/tool.sh"), 404, "not_found")


async def test_all_outputs_are_one_zip_of_announced_length(stack: GatewayStack, http: httpx.Client) -> None:
    job_id = await ended_job(stack, http, FILES)
    answer = http.get(f"/jobs/{job_id}/outputs")
    assert answer.headers["content-type"] == "application/zip"
    assert answer.headers["content-length"] == str(len(answer.content))
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        for path, content in FILES.items():
            assert archive.read(path) == content
        assert archive.getinfo("hollow/inside/").is_dir()
        assert (archive.getinfo("tool.sh").external_attr >> 16) & 0o777 == 0o755


async def test_more_outputs_than_a_page_are_one_zip_too(stack: GatewayStack, http: httpx.Client) -> None:
    files = {f"d{n % 10}/f{n:04}": b"%d" % (n % 7) for n in range(1200)}
    job_id = await ended_job(stack, http, files)
    first = http.get(f"/jobs/{job_id}/outputs", params={"list": "true"}).json()
    rest = http.get(f"/jobs/{job_id}/outputs", params={"list": "true", "cursor": first["cursor"]}).json()
    assert (len(first["entries"]), len(rest["entries"]), rest["cursor"]) == (1000, 202, None)
    answer = http.get(f"/jobs/{job_id}/outputs")
    assert "content-length" not in answer.headers
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert {path: archive.read(path) for path in files} == files


def test_outputs_of_a_job_that_has_not_ended_are_not_there_yet(http: httpx.Client) -> None:
    job_id = http.post("/jobs", json=SPEC).json()["job_id"]
    problem(http.get(f"/jobs/{job_id}/outputs"), 409, "not_ended")
    problem(http.get(f"/jobs/{job_id}/outputs/x"), 409, "not_ended")
    assert http.get(f"/jobs/{job_id}/outputs?list=true").json()["entries"] == []


# --- limits ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_far_more_in_and_out_than_the_gateway_may_have_of_memory_stays_under_150_mb(
    stack: GatewayStack, http: httpx.Client
) -> None:
    """A gigabyte is in tests/e2e/test_memory.py."""
    blocks, block = 300, os.urandom(MIB)
    digest = hashlib.sha256()

    def body() -> Iterator[bytes]:
        for number in range(blocks):
            piece = number.to_bytes(8) + block[8:]
            digest.update(piece)
            yield piece

    told = http.put("/artifacts", content=body(), timeout=200).json()
    assert (told["sha256"], told["size"]) == (digest.hexdigest(), blocks * MIB)
    received = hashlib.sha256()
    with http.stream("GET", f"/artifacts/{told['artifact_id']}", timeout=200) as answer:
        for piece in answer.iter_raw():
            received.update(piece)
    assert received.hexdigest() == digest.hexdigest()
    peak = stack.peak_memory_mb("services.gateway")
    print(f"peak resident memory: {peak:.0f} MB")
    assert peak < 150


def test_a_reader_that_leaves_gives_its_place_back(stack: GatewayStack, http: httpx.Client) -> None:
    artifact = http.put("/artifacts", content=os.urandom(8 * MIB)).json()["artifact_id"]
    for _ in range(20):  # more than there are places
        with http.stream("GET", f"/artifacts/{artifact}") as answer:
            next(answer.iter_raw())
    assert len(http.get(f"/artifacts/{artifact}").content) == 8 * MIB
