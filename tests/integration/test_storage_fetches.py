"""Inputs that are one file: artifacts, datasets, and what storage fetches from the web, from a real server."""

import asyncio
import hashlib
import os
import signal
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
from pymongo.database import Database

from infra.local.servers import NatsServer
from services.storage.shell import fetches
from shared.blobs import BlobClient
from shared.channels import ARTIFACT_DELETE, Service
from shared.errors import WherryError
from shared.job import Attempt, GangPlace
from shared.manifest import Entry
from shared.requests.artifacts import ArtifactQuery
from shared.requests.blobs import BlobRead, BlobScope, InputQuery
from shared.spec import Input, JobSpec
from shared.states import AttemptState, JobState
from tests.integration.conftest import NOW, StorageProcess, StorageStack, running
from tests.integration.web_server import Web

BODY = os.urandom(3 * 1024 * 1024 + 7)
SETTINGS = {"WHERRY_FETCH_BYTES_MAX": str(8 * 1024 * 1024), "WHERRY_FETCH_IDLE_S": "30"}


@pytest.fixture
def web() -> Iterator[Web]:
    with Web() as server:
        server.files["/data/train.csv"] = BODY
        yield server


def stack_of(
    kind: type[StorageStack], web: Web, nats: NatsServer, mongo: str, database: Database[dict[str, Any]], folder: Path
) -> StorageStack:
    extra = SETTINGS | {"WHERRY_FETCH_ALLOW": web.place}
    return kind(nats, mongo, database, folder / "log", extra)


@pytest.fixture
async def storage(
    web: Web,
    nats_with_accounts: NatsServer,
    mongo_server: str,
    mongo_database: Database[dict[str, Any]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> AsyncIterator[StorageStack]:
    monkeypatch.setattr("services.storage.core.fetching.PAUSE_S", 0.01)
    monkeypatch.setattr("services.storage.shell.jobs.WAIT_S", 60.0)  # what was recorded counts, however busy it is
    stack = stack_of(StorageStack, web, nats_with_accounts, mongo_server, mongo_database, tmp_path)
    async with running(stack):
        yield stack


async def record(storage: StorageStack, given: Any, job_id: str = "j1", **fields: Any) -> None:
    job = storage.job(job_id, spec=JobSpec(image="busybox", inputs={"data": given}), **fields)
    await storage.record(job, "running")


async def listed(storage: StorageStack, job_id: str = "j1", *, node: str = "n1", patience_s: float = 90) -> Entry:
    async with storage.bus(Service.NODE_AGENT, node) as bus:
        page = await BlobClient(bus, "node", node).input_page(
            InputQuery(job_id=job_id, input="data"), patience_s=patience_s
        )
    [entry] = page.entries
    return entry


async def read(storage: StorageStack, entry: Entry, job_id: str = "j1") -> bytes:
    async with storage.bus(Service.NODE_AGENT, "n1") as bus:
        wanted = BlobRead(job_id=job_id, input="data", path=entry.path)
        return b"".join([piece async for piece in BlobClient(bus, "node", "n1").read(wanted)])


async def refusal(storage: StorageStack, job_id: str = "j1") -> WherryError:
    with pytest.raises(WherryError) as caught:
        await listed(storage, job_id)
    assert not caught.value.retryable
    return caught.value


async def test_a_file_from_the_web_is_fetched_once_for_a_job_and_belongs_to_its_owner(storage: StorageStack, web: Web):
    url = web.url("/data/train.csv?key=1")
    await record(storage, url)
    entry = await listed(storage)
    assert entry.path == "train.csv"
    assert entry.blob is not None
    assert (entry.blob.sha256, entry.blob.size) == (hashlib.sha256(BODY).hexdigest(), len(BODY))
    assert await read(storage, entry) == BODY
    second = Attempt(number=2, node="n1", state=AttemptState.RUNNING, placed_at=NOW)
    await record(storage, url, attempt=2, attempts=(second,))
    assert await listed(storage) == entry
    assert web.asked == [("/data/train.csv", None)]
    [kept] = storage.database["artifacts"].find()
    assert (kept["owner_id"], kept["name"], kept["media_type"]) == ("u1", "train.csv", "text/csv")


async def test_what_was_fetched_stays_as_long_as_a_job_may_want_it(storage: StorageStack, web: Web):
    await record(storage, web.url("/data/train.csv"))
    entry = await listed(storage)
    [kept] = storage.database["artifacts"].find()
    removal = ArtifactQuery(artifact_id=kept["_id"])
    async with storage.bus(Service.GATEWAY, "g1") as door:
        with pytest.raises(WherryError) as caught:
            await door.ask(ARTIFACT_DELETE, removal)
        assert (caught.value.code, "Job j1" in caught.value.message) == ("in_use", True)
        assert await read(storage, entry) == BODY
        await record(storage, web.url("/data/train.csv"), state=JobState.SUCCEEDED)
        await door.ask(ARTIFACT_DELETE, removal)


async def test_a_gang_s_next_round_fetches_again_what_failed(storage: StorageStack, web: Web):
    def place(number: int) -> GangPlace:
        return GangPlace(gang_id="g1", round=number, role="w", index=0, rank=0, size=1)

    await record(storage, web.url("/later"), "j1", member_of=place(1))
    assert (await refusal(storage)).code == "input_missing"
    web.files["/later"] = b"it is there"
    await record(storage, web.url("/later"), "j2", member_of=place(2))
    assert await read(storage, await listed(storage, "j2"), "j2") == b"it is there"


async def test_a_small_file_and_an_empty_one_are_fetched(storage: StorageStack, web: Web):
    for number, body in enumerate((b"", b"small", os.urandom(512 * 1024))):
        web.files["/f"] = body
        await record(storage, web.url("/f"), f"j{number}")
        assert await read(storage, await listed(storage, f"j{number}"), f"j{number}") == body


async def test_a_node_gets_only_inputs_of_jobs_that_it_runs(storage: StorageStack, web: Web):
    await record(storage, web.url("/data/train.csv"))
    with pytest.raises(WherryError) as caught:
        await listed(storage, node="n2")
    assert caught.value.code == "not_found"
    assert web.asked == []
    await record(storage, web.url("/data/train.csv"), state=JobState.CANCELLED)
    assert (await refusal(storage)).code == "not_found"


async def test_while_it_is_fetched_the_answer_tells_how_far_it_is(storage: StorageStack, web: Web):
    web.gated.add("/data/train.csv")
    await record(storage, web.url("/data/train.csv"))
    said = ""
    while f" {len(BODY) // 2} bytes so far" not in said:
        with pytest.raises(WherryError) as caught:
            await listed(storage, patience_s=0)
        assert (caught.value.code, caught.value.retryable) == ("unavailable", True)
        said = caught.value.message
        await asyncio.sleep(0.02)
    web.gate.set()
    assert await read(storage, await listed(storage)) == BODY


async def test_what_breaks_goes_on_where_it_was_if_the_server_can(storage: StorageStack, web: Web):
    web.breaks["/data/train.csv"] = [700_001, 1_000_000]
    await record(storage, web.url("/data/train.csv"))
    assert await read(storage, await listed(storage)) == BODY
    ranges = [wanted for _, wanted in web.asked]
    assert ranges[0] is None
    assert len(ranges) == 3
    starts = [int((wanted or "bytes=0-").removeprefix("bytes=").rstrip("-")) for wanted in ranges]
    assert 0 < starts[1] <= 700_001
    assert starts[1] < starts[2] <= starts[1] + 1_000_000


async def test_what_breaks_begins_anew_where_nothing_tells_that_the_file_is_the_same(storage: StorageStack, web: Web):
    web.breaks["/data/train.csv"] = [700_001]
    web.without_etag.add("/data/train.csv")
    await record(storage, web.url("/data/train.csv"))
    assert await read(storage, await listed(storage)) == BODY
    assert web.asked == [("/data/train.csv", None)] * 2


async def test_a_file_that_changed_meanwhile_is_not_glued_together(storage: StorageStack, web: Web):
    web.breaks["/data/train.csv"] = [2_000_000]
    web.gated.add("/data/train.csv")
    other = os.urandom(2 * 1024 * 1024)
    await record(storage, web.url("/data/train.csv"))
    with pytest.raises(WherryError):
        await listed(storage, patience_s=0)
    while not web.asked:
        await asyncio.sleep(0.01)
    web.files["/data/train.csv"] = other
    web.gated.clear()
    web.gate.set()
    assert await read(storage, await listed(storage)) == other


async def test_a_server_that_is_busy_is_asked_again(storage: StorageStack, web: Web):
    web.statuses["/data/train.csv"] = [503, 429]
    await record(storage, web.url("/data/train.csv"))
    assert await read(storage, await listed(storage)) == BODY


async def test_what_is_not_there_ends_at_once_and_names_address_and_status(storage: StorageStack, web: Web):
    url = web.url("/none")
    await record(storage, url)
    error = await refusal(storage)
    assert error.code == "input_missing"
    assert url in error.message
    assert "404" in error.message
    assert (await refusal(storage)).message == error.message
    assert len(web.asked) == 1


async def test_a_later_attempt_asks_again_for_what_was_missing(storage: StorageStack, web: Web):
    await record(storage, web.url("/late"))
    await refusal(storage)
    web.files["/late"] = b"now"
    second = Attempt(number=2, node="n1", state=AttemptState.RUNNING, placed_at=NOW)
    await record(storage, web.url("/late"), attempt=2, attempts=(second,))
    assert await read(storage, await listed(storage)) == b"now"


#: Where no redirect may lead.
AWAY = (
    "http://127.0.0.1:1/x", "https://127.0.0.1/x", "https://169.254.169.254/latest/meta-data", "http://[::1]:443/x",
    "https://localhost/x", "file:///etc/passwd", "https://u:p@example.org/x", "//2130706433:8443/", "https://0x7f.1/",
)  # fmt: skip


async def test_redirects_lead_nowhere_that_could_not_be_asked_for(storage: StorageStack, web: Web):
    for number, target in enumerate(AWAY):
        web.redirects[f"/away/{number}"] = target
        await record(storage, web.url(f"/away/{number}"), f"j{number}")
        error = await refusal(storage, f"j{number}")
        assert (error.code, "may not be fetched" in error.message) == ("input_missing", True), target


async def test_redirects_are_followed_a_few_times(storage: StorageStack, web: Web):
    web.redirects |= {"/a": "/b", "/b": web.url("/data/train.csv"), "/round": "/round"}
    await record(storage, web.url("/a"))
    assert await read(storage, await listed(storage)) == BODY
    await record(storage, web.url("/round"), "j2")
    error = await refusal(storage, "j2")
    assert error.code == "stage_in_failed"
    assert "5 times" in error.message


async def test_a_place_that_nobody_named_is_never_dialled(storage: StorageStack):
    with Web() as other:
        other.files["/x"] = b"secret"
        await record(storage, other.url("/x"))
        assert "only https" in (await refusal(storage)).message
        await record(storage, f"https://localhost:{other.place.partition(':')[2]}/x", "j2")
        assert "port" in (await refusal(storage, "j2")).message
        assert other.asked == []


async def test_too_large_too_long_and_too_slow_bodies_end_with_a_reason(storage: StorageStack, web: Web):
    web.files["/large"] = b"x" * (8 * 1024 * 1024 + 1)
    web.endless.add("/endless")
    web.silent.add("/data/train.csv")
    web.without_etag.add("/data/train.csv")

    async def ends_with(said: str, path: str, job_id: str) -> None:
        await record(storage, web.url(path), job_id)
        error = await refusal(storage, job_id)
        assert error.code == "stage_in_failed"
        assert said in error.message

    await ends_with("larger than", "/large", "j0")
    await ends_with("larger than", "/endless", "j1")
    storage.extra["WHERRY_FETCH_IDLE_S"] = "1"
    await storage.stop()
    await storage.start()
    await storage.ready()
    await ends_with("says nothing any more", "/data/train.csv", "j2")
    assert list(storage.database["artifacts"].find()) == []
    assert storage.database["fs.chunks"].count_documents({}) == 0


async def test_what_nobody_waits_for_is_given_up(storage: StorageStack, web: Web, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(fetches, "ABANDON_S", 1.0)
    monkeypatch.setattr(fetches, "RENEW_S", 0.2)
    web.gated.add("/data/train.csv")
    await record(storage, web.url("/data/train.csv"))
    with pytest.raises(WherryError):
        await listed(storage, patience_s=0)
    while (document := storage.database["fetches"].find_one({})) is None or document["lease_us"]:
        await asyncio.sleep(0.05)
    assert document["state"] == "fetching"
    web.gate.set()
    assert await read(storage, await listed(storage)) == BODY  # whoever asks after all begins anew


@pytest.mark.slow
async def test_a_killed_storage_begins_again_when_it_is_back(
    web: Web,
    nats_with_accounts: NatsServer,
    mongo_server: str,
    mongo_database: Database[dict[str, Any]],
    tmp_path: Path,
):
    stack = stack_of(StorageProcess, web, nats_with_accounts, mongo_server, mongo_database, tmp_path)
    assert isinstance(stack, StorageProcess)
    web.gated.add("/data/train.csv")
    async with running(stack):
        await record(stack, web.url("/data/train.csv"))
        with pytest.raises(WherryError):
            await listed(stack, patience_s=0)
        while not web.asked:
            await asyncio.sleep(0.02)
        await stack.end(signal.SIGKILL)
        web.gate.set()
        await stack.start()
        await stack.ready()
        assert await read(stack, await listed(stack, patience_s=60)) == BODY
        assert len(web.asked) == 2


async def test_an_artifact_is_an_input_of_one_file_under_its_plain_name(storage: StorageStack):
    async def pieces() -> AsyncIterator[bytes]:
        yield BODY

    async with storage.bus(Service.GATEWAY, "g1") as bus:
        scope = BlobScope(owner_id="u1", name="../folder\\we:ird name.bin ")
        stored = await BlobClient(bus, "gateway", "g1").upload(pieces(), scope)
    given = Input(
        source=f"artifact:{stored.artifact_id}", artifact=stored.artifact_id, sha256=stored.blob.sha256, size=len(BODY)
    )
    await record(storage, given)
    entry = await listed(storage)
    assert entry.path == "weird name.bin"
    assert entry.blob == stored.blob
    assert await read(storage, entry) == BODY
    with pytest.raises(WherryError) as caught:
        await read(storage, entry.model_copy(update={"path": "other"}))
    assert caught.value.code == "not_found"
