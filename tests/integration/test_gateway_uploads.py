"""Uploads that resume, by the tus 1.0 protocol, through gateway, NATS, storage and MongoDB as they are."""

import base64
import concurrent.futures
import hashlib
import itertools
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest

from client.wherry import AsyncClient, Client
from shared.requests.blobs import CHUNK_BYTES
from tests.integration.gateway_stack import ADMIN, ROOT, SPEC, GatewayStack, until

PASSWORD = "correct horse battery 9"
TUS = {"Tus-Resumable": "1.0.0"}
OCTETS = "application/offset+octet-stream"


@pytest.fixture(scope="module")
def stack(folder: Path) -> Iterator[GatewayStack]:
    with GatewayStack(folder, WHERRY_UPLOAD_IDLE_S="8", WHERRY_UPLOAD_BYTES_MAX=str(2**40)) as running:
        yield running


@pytest.fixture(scope="module")
def http(stack: GatewayStack) -> Iterator[httpx.Client]:
    with stack.client(stack.login(*ADMIN)) as client:
        client.post("/users", json={"name": "anna", "password": PASSWORD}).raise_for_status()
        client.post("/users", json={"name": "bert", "password": PASSWORD}).raise_for_status()
        yield client


@pytest.fixture(scope="module")
def anna(stack: GatewayStack, http: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("anna", PASSWORD)) as client:
        yield client


@pytest.fixture(scope="module")
def bert(stack: GatewayStack, http: httpx.Client) -> Iterator[httpx.Client]:
    with stack.client(stack.login("bert", PASSWORD)) as client:
        yield client


def b64(text: str | bytes) -> str:
    return base64.b64encode(text.encode() if isinstance(text, str) else text).decode()


def named(headers: dict[str, str]) -> dict[str, str]:
    return {name.replace("_", "-"): value for name, value in headers.items()}


def sha1(data: bytes) -> str:
    return f"sha1 {b64(hashlib.sha1(data).digest())}"


def create(client: httpx.Client, length: int | None, **headers: str) -> str:
    """Begin an upload and return its path below /v1."""
    told = {"Upload-Defer-Length": "1"} if length is None else {"Upload-Length": str(length)}
    answer = client.post("/uploads", headers=TUS | told | named(headers))
    assert answer.status_code == 201, answer.text
    assert answer.headers["tus-resumable"] == "1.0.0"
    return answer.headers["location"].removeprefix("/v1")


def patch(client: httpx.Client, path: str, offset: int, data: bytes, **headers: str) -> httpx.Response:
    told = TUS | {"Upload-Offset": str(offset), "Content-Type": OCTETS}
    return client.patch(path, content=data, headers=told | named(headers))


def head(client: httpx.Client, path: str) -> httpx.Response:
    return client.head(path, headers=TUS)


def offset_of(client: httpx.Client, path: str) -> int:
    return int(head(client, path).headers["upload-offset"])


def send_part(
    stack: GatewayStack, client: httpx.Client, path: str, offset: int, length: int, data: bytes
) -> socket.socket:
    """Send the head of a PATCH of *length* bytes, and of the bytes only *data*."""
    link = socket.create_connection(("127.0.0.1", stack.port))
    lines = [
        f"PATCH /v1{path} HTTP/1.1", "Host: x", f"Authorization: {client.headers['authorization']}",
        "Tus-Resumable: 1.0.0", f"Upload-Offset: {offset}", f"Content-Type: {OCTETS}", f"Content-Length: {length}",
    ]  # fmt: skip
    link.sendall("\r\n".join(lines).encode() + b"\r\n\r\n" + data)
    return link


def test_what_the_server_can_do_is_told(anna: httpx.Client):
    answer = anna.options("/uploads")
    assert answer.status_code == 204
    assert answer.headers["tus-version"] == "1.0.0"
    assert answer.headers["tus-max-size"] == str(2**40)
    assert set(answer.headers["tus-extension"].split(",")) == {
        "creation", "creation-with-upload", "creation-defer-length", "termination", "checksum", "expiration",
    }  # fmt: skip
    assert answer.headers["tus-checksum-algorithm"] == "sha1,sha256"


def test_an_upload_in_odd_pieces_becomes_an_artifact_bit_for_bit(anna: httpx.Client):
    data = os.urandom(3 * CHUNK_BYTES + 12_345)
    path = create(anna, len(data), Upload_Metadata=f"filename {b64('größe.bin')},filetype {b64('image/png')},secret")
    borders = [0, 1, 1000, CHUNK_BYTES - 1, CHUNK_BYTES, CHUNK_BYTES + 5, 3 * CHUNK_BYTES + 2, len(data)]
    answer = head(anna, path)
    for start, end in itertools.pairwise(borders):
        answer = patch(anna, path, start, data[start:end])
        assert (answer.status_code, answer.headers["upload-offset"]) == (204, str(end)), answer.text
    digest = hashlib.sha256(data).hexdigest()
    assert answer.headers["wherry-sha256"] == digest
    told = head(anna, path).headers
    assert (told["upload-length"], told["upload-offset"]) == (str(len(data)), str(len(data)))
    assert told["wherry-artifact"] == answer.headers["wherry-artifact"]
    assert told["cache-control"] == "no-store"
    assert "secret" in told["upload-metadata"]
    got = anna.get(f"/artifacts/{answer.headers['wherry-artifact']}")
    assert got.content == data
    assert got.headers["content-type"] == "image/png"
    assert "gr%C3%B6%C3%9Fe.bin" in got.headers["content-disposition"]
    shown = anna.get(path).json()
    assert (shown["artifact_id"], shown["sha256"], shown["offset"]) == (told["wherry-artifact"], digest, len(data))


def test_an_upload_may_begin_with_its_bytes_and_learn_its_length_later(anna: httpx.Client):
    data = os.urandom(CHUNK_BYTES + 7)
    answer = anna.post(
        "/uploads", content=data[:10], headers=TUS | {"Upload-Defer-Length": "1", "Content-Type": OCTETS}
    )
    assert (answer.status_code, answer.headers["upload-offset"]) == (201, "10")
    path = answer.headers["location"].removeprefix("/v1")
    told = head(anna, path).headers
    assert told["upload-defer-length"] == "1"
    assert "upload-length" not in told
    assert "upload-expires" in told
    done = patch(anna, path, 10, data[10:], Upload_Length=str(len(data)))
    assert done.headers["wherry-sha256"] == hashlib.sha256(data).hexdigest()
    whole = anna.post("/uploads", content=b"abc", headers=TUS | {"Upload-Length": "3", "Content-Type": OCTETS})
    assert whole.headers["wherry-sha256"] == hashlib.sha256(b"abc").hexdigest()
    empty = anna.post("/uploads", headers=TUS | {"Upload-Length": "0"})
    assert empty.headers["wherry-sha256"] == hashlib.sha256(b"").hexdigest()


def test_wrong_requests_have_the_statuses_of_the_protocol(anna: httpx.Client):
    path = create(anna, 100)
    assert patch(anna, path, 0, b"x" * 60).status_code == 204
    assert patch(anna, path, 0, b"x" * 60).status_code == 409
    assert patch(anna, path, 61, b"x").status_code == 409
    assert patch(anna, path, 60, b"x" * 41).status_code == 413
    assert patch(anna, path, 60, b"x", Content_Type="application/octet-stream").status_code == 415
    assert anna.patch(path, content=b"x", headers=TUS | {"Content-Type": OCTETS}).status_code == 400
    wrong = anna.patch(path, content=b"x", headers={"Upload-Offset": "60", "Content-Type": OCTETS})
    assert (wrong.status_code, wrong.headers["tus-version"]) == (412, "1.0.0")
    assert anna.head(path, headers={"Tus-Resumable": "0.2.2"}).status_code == 412
    assert anna.post("/uploads", headers=TUS).status_code == 400
    assert anna.post("/uploads", headers=TUS | {"Upload-Length": "-1"}).status_code == 400
    assert anna.post("/uploads", headers=TUS | {"Upload-Length": str(2**40 + 1)}).status_code == 413
    assert anna.post("/uploads", headers=TUS | {"Upload-Length": "1", "Upload-Metadata": "a b!"}).status_code == 400
    assert head(anna, "/uploads/upnone").status_code == 404
    assert offset_of(anna, path) == 60


def test_bytes_that_are_not_their_checksum_change_nothing(anna: httpx.Client):
    data = os.urandom(2 * CHUNK_BYTES)
    path = create(anna, len(data))
    assert patch(anna, path, 0, data[:1000]).status_code == 204
    wrong = patch(anna, path, 1000, os.urandom(CHUNK_BYTES + 5), Upload_Checksum=sha1(b""))
    assert wrong.status_code == 460
    assert offset_of(anna, path) == 1000
    assert patch(anna, path, 1000, b"x", Upload_Checksum=f"md5 {b64(b'x' * 16)}").status_code == 400
    middle = CHUNK_BYTES + 77
    right = patch(anna, path, 1000, data[1000:middle], Upload_Checksum=sha1(data[1000:middle]))
    assert right.headers["upload-offset"] == str(middle)
    rest = data[middle:]
    done = patch(anna, path, middle, rest, Upload_Checksum=f"sha256 {b64(hashlib.sha256(rest).digest())}")
    assert done.headers["wherry-sha256"] == hashlib.sha256(data).hexdigest()


def test_an_upload_is_its_owners_alone(anna: httpx.Client, bert: httpx.Client):
    path = create(anna, 10)
    assert head(bert, path).status_code == 404
    assert patch(bert, path, 0, b"x").status_code == 404
    assert bert.delete(path, headers=TUS).status_code == 404
    assert bert.get(path).status_code == 404
    assert offset_of(anna, path) == 0


def test_an_upload_that_was_deleted_is_gone_and_so_are_its_bytes(anna: httpx.Client):
    path = create(anna, 10)
    patch(anna, path, 0, b"x")
    assert anna.delete(path, headers=TUS).status_code == 204
    assert head(anna, path).status_code == 410
    assert patch(anna, path, 1, b"x").status_code == 410
    again = create(anna, 10)
    assert anna.post(again, headers=TUS | {"X-HTTP-Method-Override": "DELETE"}).status_code == 204
    assert head(anna, again).status_code == 410


def test_what_came_before_the_connection_broke_counts(stack: GatewayStack, anna: httpx.Client):
    data = os.urandom(5 * CHUNK_BYTES)
    path, came = create(anna, len(data)), 2 * CHUNK_BYTES + 99
    send_part(stack, anna, path, 0, len(data), data[:came]).close()
    until(lambda: offset_of(anna, path) == came, "all that came is there")
    done = patch(anna, path, came, data[came:])
    assert done.headers["wherry-sha256"] == hashlib.sha256(data).hexdigest()


def test_who_stops_sending_is_sent_away_and_what_came_counts(stack: GatewayStack, anna: httpx.Client):
    data = os.urandom(CHUNK_BYTES)
    path = create(anna, len(data))
    with send_part(stack, anna, path, 0, len(data), data[:99]) as link:
        assert b" 408 " in link.recv(4096).partition(b"\r\n")[0]
    assert offset_of(anna, path) == 99


def test_of_two_that_write_at_once_one_wins_and_the_bytes_are_one_writers(anna: httpx.Client, stack: GatewayStack):
    for _ in range(4):
        size = 12 * CHUNK_BYTES + 5
        path, bodies = create(anna, size), [bytes([n]) * size for n in (1, 2)]
        start = threading.Barrier(2)

        def write(body: bytes, path: str = path, start: threading.Barrier = start) -> httpx.Response:
            with stack.client(anna.headers["authorization"][7:]) as one:
                start.wait()
                return patch(one, path, 0, body)

        with concurrent.futures.ThreadPoolExecutor() as pool:
            answers = list(pool.map(write, bodies))
        statuses = sorted(answer.status_code for answer in answers)
        assert statuses == [204, 409], [answer.text for answer in answers]
        winner = next(answer for answer in answers if answer.status_code == 204)
        got = anna.get(f"/artifacts/{winner.headers['wherry-artifact']}").content
        assert got in bodies
        assert hashlib.sha256(got).hexdigest() == winner.headers["wherry-sha256"]


@pytest.mark.parametrize("killed", ["services.gateway", "services.storage", "nats", "mongo"])
def test_an_upload_goes_on_after_a_kill(stack: GatewayStack, anna: httpx.Client, killed: str):
    data = os.urandom(8 * CHUNK_BYTES + 1)
    path, came = create(anna, len(data)), 5 * CHUNK_BYTES + 10
    with send_part(stack, anna, path, 0, len(data), data[:came]):
        until(lambda: offset_of(anna, path) >= 4 * CHUNK_BYTES, "some of it is stored")
        if killed in ("nats", "mongo"):
            server = stack.nats if killed == "nats" else stack.mongo
            server.kill()
            server.start()
        else:
            stack.stop(killed, signal.SIGKILL)
            stack.start_storage() if killed == "services.storage" else stack.start_gateway()
    until(stack.is_ready, "all are there again")
    client = stack.client(anna.headers["authorization"][7:])
    with client:
        offset, done = until(lambda: gone_on_with(client, path, data), "it goes on where the one before has come to")
        assert 4 * CHUNK_BYTES <= offset <= came
        assert done.status_code == 204, done.text
        assert done.headers["wherry-sha256"] == hashlib.sha256(data).hexdigest()
        assert client.get(f"/artifacts/{done.headers['wherry-artifact']}").content == data


def gone_on_with(client: httpx.Client, path: str, data: bytes) -> tuple[int, httpx.Response] | None:
    """Return from where the rest of *data* was sent, and the answer; None if what was sent before was still coming."""
    there = head(client, path)
    if there.status_code != 200:
        return None
    offset = int(there.headers["upload-offset"])
    done = patch(client, path, offset, data[offset:])
    return None if done.status_code in (409, 503) else (offset, done)


def test_the_client_sends_a_large_file_to_its_end_whatever_breaks(
    stack: GatewayStack, anna: httpx.Client, tmp_path: Path
):
    data = os.urandom(24 * 1024 * 1024 + 3)
    file = tmp_path / "large.bin"
    file.write_bytes(data)
    token, seen, kills = anna.headers["authorization"][7:], [0], iter(("gateway", "nats", "storage", "gateway"))
    reached = iter(range(4_000_000, 24_000_000, 5_000_000))
    border = [next(reached)]

    def progress(done: int, total: int) -> None:
        assert total == len(data)
        seen.append(done)
        if done > border[0]:
            border[0] = next(reached, len(data))
            disturb(stack, next(kills, ""))

    with Client(stack.url, token, patience_s=120) as client:
        stored = client.put_artifact(file, progress=progress)
        assert next(kills, None) is None, "all kills were done while bytes were on their way"
        assert (stored.sha256, stored.size) == (hashlib.sha256(data).hexdigest(), len(data))
        assert client.get_artifact(stored.artifact_id, tmp_path / "back") == stored.sha256
        assert client.artifacts(limit=1)[0].name == "large.bin"


def disturb(stack: GatewayStack, what: str) -> None:
    if what == "nats":
        stack.nats.kill()
        stack.nats.start()
    elif what == "storage":
        stack.stop("services.storage", signal.SIGKILL)
        stack.start_storage()
    elif what == "gateway":
        stack.stop("services.gateway", signal.SIGKILL)
        stack.start_gateway()


async def test_the_asynchronous_client_does_the_same_and_a_zip_goes_up_as_a_source_alike(
    stack: GatewayStack, anna: httpx.Client, tmp_path: Path
):
    file = tmp_path / "source.zip"
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("data.bin", os.urandom(9 * 1024 * 1024))
    async with AsyncClient(stack.url, anna.headers["authorization"][7:]) as client:
        stored = await client.put_artifact(file)
        assert stored.sha256 == hashlib.sha256(file.read_bytes()).hexdigest()
        one = await client.submit(SPEC, file, key="the same")
        assert (await client.submit(SPEC, file, key="the same")).job_id == one.job_id, "the bytes count, not the upload"
        await client.delete_artifact(stored.artifact_id)


def test_the_command_goes_on_where_an_earlier_one_was_ended(stack: GatewayStack, anna: httpx.Client, tmp_path: Path):
    data = os.urandom(40 * 1024 * 1024)
    file, home = tmp_path / "large.bin", tmp_path / "home"
    file.write_bytes(data)
    env = {"PATH": os.environ["PATH"], "HOME": str(home), "WHERRY_URL": stack.url}
    env["WHERRY_TOKEN"] = anna.headers["authorization"][7:]
    command = [sys.executable, "-m", "client.wherry", "--json", "artifacts", "put", str(file)]

    def noted() -> str | None:
        notes = list((home / ".config/wherry/uploads").glob("*.json"))
        text = notes[0].read_text() if notes else ""
        return f"/uploads/{json.loads(text)['upload']}" if text else None

    with subprocess.Popen(command, cwd=ROOT, env=env, stdout=subprocess.DEVNULL) as first:
        path = until(noted, "the upload has begun")
        first.send_signal(signal.SIGSTOP)  # from here it goes on a moment at a time: it must not come to its end
        while offset_of(anna, path) == 0:
            first.send_signal(signal.SIGCONT)
            time.sleep(0.02)
            first.send_signal(signal.SIGSTOP)
        first.kill()
    came = until(lambda: offset_at_rest(anna, path), "the upload is at rest")
    assert came < len(data), "it was ended in the middle"
    second = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, check=True, timeout=180)
    stored = json.loads(second.stdout)
    assert stored["sha256"] == hashlib.sha256(data).hexdigest()
    assert anna.get(path).json()["artifact_id"] == stored["artifact_id"], "the same upload"
    assert not list((home / ".config/wherry/uploads").iterdir())


def offset_at_rest(client: httpx.Client, path: str) -> int:
    """Return how far an upload has come once that no longer changes; 0 if it still does."""
    before = head(client, path)
    time.sleep(0.5)
    after = head(client, path)
    if before.status_code != 200 or after.status_code != 200:
        return 0
    return (
        int(after.headers["upload-offset"]) if before.headers["upload-offset"] == after.headers["upload-offset"] else 0
    )


def test_artifacts_are_listed_page_by_page_and_only_to_their_owner(bert: httpx.Client, anna: httpx.Client):
    made = [bert.put("/artifacts", params={"name": f"f{n}"}, content=os.urandom(10)).json() for n in range(3)]
    first = bert.get("/artifacts", params={"limit": 2}).json()
    rest = bert.get("/artifacts", params={"limit": 2, "cursor": first["cursor"]}).json()
    assert [one["name"] for one in first["artifacts"] + rest["artifacts"]] == ["f2", "f1", "f0"]
    assert [one["artifact_id"] for one in first["artifacts"]] == [made[2]["artifact_id"], made[1]["artifact_id"]]
    assert rest["cursor"] is None
    theirs = {one["artifact_id"] for one in anna.get("/artifacts", params={"limit": 1000}).json()["artifacts"]}
    assert not theirs & {one["artifact_id"] for one in made}
    assert bert.get("/artifacts", params={"cursor": "x"}).status_code == 422


def test_a_removed_artifact_takes_its_bytes_along_unless_somebody_has_the_same(
    anna: httpx.Client, bert: httpx.Client, stack: GatewayStack
):
    data = os.urandom(2 * CHUNK_BYTES)
    one = anna.put("/artifacts", content=data).json()["artifact_id"]
    two = bert.put("/artifacts", content=data).json()["artifact_id"]
    assert bert.delete(f"/artifacts/{one}").status_code == 404
    assert anna.delete(f"/artifacts/{one}").status_code == 204
    assert anna.get(f"/artifacts/{one}").status_code == 404
    assert bert.get(f"/artifacts/{two}").content == data
    assert bert.delete(f"/artifacts/{two}").status_code == 204
    three = bert.put("/artifacts", content=data).json()["artifact_id"]
    assert bert.get(f"/artifacts/{three}").content == data, "a new file of the same bytes, though the old one was known"


def test_an_artifact_that_a_job_still_needs_stays(anna: httpx.Client):
    source = anna.put("/artifacts", content=b"PK\x03\x04 not read here").json()["artifact_id"]
    job = anna.post("/jobs", json=SPEC | {"inputs": {"a": f"artifact:{source}"}})
    assert job.status_code == 202, job.text
    refused = anna.delete(f"/artifacts/{source}")
    assert (refused.status_code, refused.json()["code"]) == (409, "in_use")
    assert job.json()["job_id"] in refused.json()["detail"]
