# ruff: noqa: FAST003 - the server does not look at whose things it gives
"""The client against a real HTTP server that does what networks and restarts do: refuse, cut, stall, go on."""

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import uvicorn
from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse

from client.wherry import AsyncClient, Client, Corrupt, End, LogLine, Unreachable, WaitTimeout, WherryError

BODY = bytes(range(256)) * 4096


@dataclass
class Trouble:
    """The server, and what it shall do to the next requests. Each list is used up from its front."""

    url: str = ""
    refuse: list[int] = field(default_factory=list)  # statuses
    cut_after: list[int] = field(default_factory=list)  # bytes of a download, or events of a stream
    damage: list[bool] = field(default_factory=list)
    no_streams: bool = False
    state: str = "running"
    ends_in_view: bool = False  # while its events are listened to, after the first answer about it
    answered: int = 0
    seen: list[tuple[str, str, dict[str, str]]] = field(default_factory=list)
    received: list[int] = field(default_factory=list)

    def headers_of(self, method: str, path: str) -> list[dict[str, str]]:
        return [headers for seen, where, headers in self.seen if (seen, where) == (method, path)]


def make_app(trouble: Trouble) -> FastAPI:
    app = FastAPI()

    @app.middleware("http")
    async def note(request: Request, call_next: Any) -> Response:
        trouble.seen.append((request.method, request.url.path, dict(request.headers)))
        if trouble.refuse:
            status = trouble.refuse.pop(0)
            document = {"code": "unavailable", "detail": f"refused with {status}", "status": status}
            return JSONResponse(document, status, media_type="application/problem+json")
        return await call_next(request)

    @app.post("/v1/jobs", status_code=202)
    async def submit(request: Request) -> dict[str, str]:
        count = 0
        async for chunk in request.stream():
            count += len(chunk)
        trouble.received.append(count)
        return {"job_id": "j1", "state": "queued"}

    @app.get("/v1/jobs")
    async def jobs(limit: int, cursor: int = 0) -> dict[str, Any]:
        page = [{"job_id": f"j{n}", "state": "failed"} for n in range(cursor, min(cursor + limit, 450))]
        end = cursor + len(page)
        return {"jobs": page, "cursor": str(end) if end < 450 else None}

    @app.get("/v1/jobs/{job_id}")
    async def job(job_id: str) -> dict[str, str]:
        trouble.answered += 1
        return {"job_id": job_id, "state": trouble.state}

    @app.get("/v1/jobs/{job_id}/events")
    async def events(request: Request) -> Response:
        if trouble.no_streams:
            return JSONResponse({"events": []})

        async def told() -> AsyncIterator[bytes]:
            yield b": hello\n\n"
            while trouble.state == "running" and not await request.is_disconnected():
                await asyncio.sleep(0.02)
                yield b'data: {"type": "io.wherry.job.running.v1"}\n\n'
                if trouble.ends_in_view and trouble.answered:
                    trouble.state = "succeeded"
            yield b'data: {"type": "io.wherry.job.succeeded.v1"}\n\n'

        return StreamingResponse(told(), media_type="text/event-stream")

    @app.get("/v1/jobs/{job_id}/logs")
    async def logs(request: Request, *, follow: bool = False) -> Response:
        if not follow:
            return Response("one\ntwo\n\ngröße", media_type="text/plain; charset=utf-8")
        start = int(request.headers.get("last-event-id", "0"))
        count = trouble.cut_after.pop(0) if trouble.cut_after else 100

        async def lines() -> AsyncIterator[bytes]:
            for n in range(start + 1, min(start + count, 10) + 1):
                yield f'id: {n}\nevent: log\ndata: {{"n": {n}, "stream": "stdout", "text": "line {n}"}}\n\n'.encode()
            if start + count < 10:
                raise ConnectionError
            yield b'event: end\ndata: {"state": "succeeded"}\n\n'

        return StreamingResponse(lines(), media_type="text/event-stream")

    @app.get("/v1/jobs/{job_id}/outputs")
    async def outputs(cursor: str | None = None) -> dict[str, Any]:
        whole, empty = hashlib.sha256(BODY).hexdigest(), hashlib.sha256(b"").hexdigest()
        if cursor:
            file = {"path": "empty.txt", "mode": 0o600, "mtime": 1.0, "size": 0, "sha256": empty}
            return {"entries": [file], "cursor": None}
        folder = {"path": "a b", "kind": "dir", "mode": 0o750, "mtime": 86400.0}
        file = {"path": "a b/größe?.bin", "mode": 0o755, "mtime": 1234.5, "size": len(BODY), "sha256": whole}
        return {"entries": [folder, file], "cursor": "next"}

    def ranged(request: Request) -> Response:
        start = int(request.headers.get("range", "bytes=0-")[6:-1])
        body = BODY[start:]
        if trouble.damage and trouble.damage.pop(0):
            body = b"\xff" + body[1:] if body[:1] != b"\xff" else b"\x00" + body[1:]
        cut = trouble.cut_after.pop(0) if trouble.cut_after else len(body)

        async def chunks() -> AsyncIterator[bytes]:
            for at in range(0, min(cut, len(body)), 65536):
                yield body[at : min(at + 65536, cut)]
            if cut < len(body):
                raise ConnectionError

        headers = {"Content-Length": str(len(body))}
        return StreamingResponse(chunks(), 206 if start else 200, headers, "application/octet-stream")

    @app.get("/v1/jobs/{job_id}/outputs/{path:path}")
    async def output(request: Request, path: str) -> Response:
        return Response(b"") if path == "empty.txt" else ranged(request)

    @app.get("/v1/artifacts/{artifact_id}")
    async def artifact(request: Request) -> Response:
        return ranged(request)

    return app


@pytest.fixture
def trouble(monkeypatch: pytest.MonkeyPatch) -> Iterator[Trouble]:
    trouble = Trouble()
    config = uvicorn.Config(make_app(trouble), port=0, log_level="critical", lifespan="off", ws="none")
    server = uvicorn.Server(config)
    monkeypatch.setattr(server, "install_signal_handlers", lambda: None, raising=False)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    trouble.url = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    yield trouble
    server.should_exit = True
    server.force_exit = True
    thread.join()


@pytest.fixture
def client(trouble: Trouble) -> Iterator[Client]:
    with Client(trouble.url, "t", patience_s=30) as client:
        yield client


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    root = tmp_path / "job"
    (root / "lib").mkdir(parents=True)
    (root / "run.sh").write_text("echo\n")
    (root / "lib/data.bin").write_bytes(BODY)
    return root


def test_a_submission_that_met_a_restart_is_sent_again_under_the_same_key(
    client: Client, trouble: Trouble, folder: Path
):
    trouble.refuse = [503, 502]
    assert client.submit({"image": "x"}, folder).job_id == "j1"
    keys = {headers["idempotency-key"] for headers in trouble.headers_of("POST", "/v1/jobs")}
    assert len(trouble.headers_of("POST", "/v1/jobs")) == 3
    assert len(keys) == 1
    assert client.submit({"image": "x"}).job_id == "j1"
    assert trouble.headers_of("POST", "/v1/jobs")[-1]["idempotency-key"] not in keys


def test_what_the_server_refuses_for_good_is_not_sent_again(client: Client, trouble: Trouble):
    trouble.refuse = [422]
    with pytest.raises(WherryError) as caught:
        client.submit({"image": "x"})
    assert caught.value.status == 422
    assert len(trouble.seen) == 1


def test_patience_has_an_end_and_nobody_at_home_is_said_plainly(trouble: Trouble):
    trouble.refuse = [503] * 100
    with Client(trouble.url, patience_s=1) as client, pytest.raises(WherryError, match="refused with 503"):
        client.job("j1")
    with Client("http://127.0.0.1:9", patience_s=0) as client, pytest.raises(Unreachable, match="cannot reach"):
        client.job("j1")


def test_every_request_carries_the_token(client: Client, trouble: Trouble):
    client.job("j1")
    assert trouble.seen[0][2]["authorization"] == "Bearer t"


def test_jobs_come_page_by_page_as_they_are_wanted(client: Client, trouble: Trouble):
    assert len(list(client.jobs())) == 450
    trouble.seen.clear()
    assert [job.job_id for job in client.jobs(limit=3)] == ["j0", "j1", "j2"]
    found = client.jobs()
    next(found)
    assert len(trouble.seen) == 2


def test_a_log_that_breaks_goes_on_after_the_last_line(client: Client, trouble: Trouble):
    trouble.cut_after = [3, 0, 4]
    items = list(client.follow("j1"))
    assert [item.text for item in items if isinstance(item, LogLine)] == [f"line {n}" for n in range(1, 11)]
    assert items[-1] == End(state="succeeded")
    given = [headers.get("last-event-id") for headers in trouble.headers_of("GET", "/v1/jobs/j1/logs")]
    assert given == [None, "3", "3", "7"]


def test_following_can_be_left_at_any_time(client: Client):
    with closing(client.follow("j1")) as items:  # type: ignore[type-var]
        assert next(items).model_dump()["text"] == "line 1"
    assert client.job("j1").state == "running"


def test_a_log_as_it_is_comes_line_by_line(client: Client):
    assert list(client.logs("j1")) == ["one", "two", "", "größe"]


def test_waiting_hears_of_the_end(client: Client, trouble: Trouble):
    trouble.ends_in_view = True
    assert client.wait("j1", 60).state == "succeeded"
    assert len(trouble.headers_of("GET", "/v1/jobs/j1")) == 2, "told by the stream, not by asking"


def test_waiting_asks_where_no_stream_is_to_be_had(client: Client, trouble: Trouble):
    trouble.no_streams = True
    timer = threading.Timer(0.3, setattr, (trouble, "state", "failed"))
    timer.start()
    assert client.wait("j1", 60).state == "failed"
    timer.join()


@pytest.mark.parametrize("no_streams", [True, False])
def test_waiting_ends_when_the_time_is_over(client: Client, trouble: Trouble, no_streams: bool):  # noqa: FBT001
    trouble.no_streams = no_streams
    with pytest.raises(WaitTimeout, match="running"):
        client.wait("j1", 0.3)


def test_a_download_that_is_cut_goes_on_and_arrives_bit_for_bit(client: Client, trouble: Trouble, tmp_path: Path):
    trouble.cut_after = [300_000, 65_536, 10]
    told: list[tuple[int, int]] = []
    files = client.download("j1", tmp_path / "o", progress=lambda done, total: told.append((done, total)))
    big, empty = tmp_path / "o/a b/größe?.bin", tmp_path / "o/empty.txt"
    assert files == [big, empty]
    assert big.read_bytes() == BODY
    assert (big.stat().st_mode & 0o777, big.stat().st_mtime) == (0o755, 1234.5)
    assert (big.parent.stat().st_mode & 0o777, big.parent.stat().st_mtime) == (0o750, 86400.0)
    assert (empty.read_bytes(), empty.stat().st_mode & 0o777) == (b"", 0o600)
    assert told[-1] == (len(BODY), len(BODY))
    ranges = [h.get("range") for m, path, h in trouble.seen if "bin" in path]
    assert len(ranges) == 4
    assert ranges[0] is None
    assert all(text.startswith("bytes=") for text in ranges[1:] if text)


def test_what_is_there_already_is_not_fetched_again(client: Client, trouble: Trouble, tmp_path: Path):
    client.download("j1", tmp_path)
    trouble.seen.clear()
    client.download("j1", tmp_path, "a b")
    assert not [path for _, path, _ in trouble.seen if "bin" in path]


def test_a_damaged_file_is_fetched_once_more_and_never_kept(client: Client, trouble: Trouble, tmp_path: Path):
    trouble.damage = [True]
    client.download("j1", tmp_path / "once")
    assert (tmp_path / "once/a b/größe?.bin").read_bytes() == BODY
    trouble.damage = [True, True]
    with pytest.raises(Corrupt):
        client.download("j1", tmp_path / "twice")
    assert list((tmp_path / "twice/a b").iterdir()) == []


def test_a_path_that_is_not_among_the_outputs_is_said_to_be_that(client: Client, tmp_path: Path):
    with pytest.raises(WherryError, match="no output 'x'"):
        client.download("j1", tmp_path, "x")


def test_an_artifact_goes_on_where_it_was(client: Client, trouble: Trouble, tmp_path: Path):
    trouble.cut_after = [100_000]
    assert client.get_artifact("a1", tmp_path / "deep/x") == hashlib.sha256(BODY).hexdigest()
    assert (tmp_path / "deep/x").read_bytes() == BODY


async def test_the_asynchronous_client_does_the_same(trouble: Trouble, folder: Path, tmp_path: Path):
    trouble.refuse, trouble.cut_after = [503], [3]
    async with AsyncClient(trouble.url, "t", patience_s=30) as client:
        assert (await client.submit({"image": "x"}, folder)).job_id == "j1"
        items = [item async for item in client.follow("j1")]
        assert [item.text for item in items if isinstance(item, LogLine)] == [f"line {n}" for n in range(1, 11)]
        assert [job.job_id async for job in client.jobs(limit=2)] == ["j0", "j1"]
        trouble.cut_after = [300_000]
        files = await client.download("j1", tmp_path / "o")
        assert files[0].read_bytes() == BODY
        asyncio.get_running_loop().call_later(0.2, setattr, trouble, "state", "succeeded")
        assert (await client.wait("j1", 60)).state == "succeeded"
        with pytest.raises(WherryError, match="no output"):
            await client.download("j1", tmp_path, "x")
    assert trouble.received[-1] > 1000


async def test_many_things_at_once_share_one_asynchronous_client(trouble: Trouble):
    async with AsyncClient(trouble.url, "t") as client:
        found = await asyncio.gather(*(client.job(f"j{n}") for n in range(30)))
    assert [job.job_id for job in found] == [f"j{n}" for n in range(30)]


def test_json_of_models_is_what_the_server_sent(client: Client):
    assert json.loads(client.job("j1").model_dump_json(exclude_unset=True)) == {"job_id": "j1", "state": "running"}
