"""Trainings over HTTP on real servers; scheduler and node are played by the tests."""

import asyncio
import io
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.wherry import AsyncClient, Client, SourceError, WherryError
from shared.blobs import BlobClient
from shared.bus import Bus
from shared.channels import OUTPUT, Service
from shared.events import MetricPoint, OutputBatch, Progress
from shared.job import BlobRef, Failure, GangMember, OutputsRef
from shared.manifest import Entry, Manifest
from shared.permissions import node_user
from shared.requests.blobs import BlobScope
from shared.states import EndReason, JobState
from tests.integration.gateway_stack import NODE, GatewayStack, Scheduler, eventually, new_id

TRAIN = "def train(data, params):\n    return {'accuracy': 0.5}\n"


@pytest.fixture(scope="module")
def stack(folder: Path, mongo_server: str) -> Iterator[GatewayStack]:
    with GatewayStack(
        folder, mongo_url=mongo_server, WHERRY_TRAINING_IMAGE="our/training:1", WHERRY_FETCH_ALLOW="127.0.0.1:8099"
    ) as running:
        yield running


@pytest.fixture
async def node(stack: GatewayStack) -> AsyncIterator[Bus]:
    async with stack.bus(Service.NODE_AGENT, node_user(NODE), peer=NODE) as bus:
        yield bus


def begun(http: httpx.Client, **fields: Any) -> str:
    answer = http.post("/trainings", json={"algorithm": TRAIN, **fields})
    assert answer.status_code == 202, answer.text
    assert answer.json()["status"] == "initializing"
    assert answer.headers["location"] == f"/v1/trainings/{answer.json()['training_id']}"
    return answer.json()["training_id"]


def shown(http: httpx.Client, training_id: str) -> dict[str, Any]:
    answer = http.get(f"/trainings/{training_id}")
    assert answer.status_code == 200, answer.text
    return answer.json()


async def left(node: Bus, scheduler: Scheduler, job_id: str, stderr: bytes = b"", **files: bytes) -> OutputsRef:
    """Store *files* and what the job said, as its node does; return the outputs that its end names."""
    blobs = BlobClient(node, "node", NODE)
    await scheduler.run(job_id)
    scope = BlobScope(job_id=job_id, attempt=1)

    async def store(content: bytes) -> BlobRef:
        async def whole() -> AsyncIterator[bytes]:
            yield content

        return (await blobs.upload(whole(), scope)).blob

    entries = [Entry(path=name, blob=await store(content)) for name, content in files.items()]
    said = await store(stderr) if stderr else None
    manifest = Manifest(job_id=job_id, attempt=1, entries=tuple(entries), stderr=said).to_bytes()
    return OutputsRef(manifest=await store(manifest), files=len(files), bytes=sum(map(len, files.values())))


async def test_a_training_is_a_job_with_its_modules_as_source_and_its_data_as_input(anna: httpx.Client) -> None:
    name = new_id("set")
    made = anna.post("/datasets", data={"name": name}, files={"file": ("d.csv", b"1,2\n")}).json()
    training_id = begun(
        anna, name="digits", helpers="x = 1\n", dataset=name, params={"epochs": 3}, resources={"memory": "2GiB"},
        labels=["lab"], timeouts={"run": "1h"},
    )  # fmt: skip
    job = anna.get(f"/jobs/{training_id}").json()
    spec = job["spec"]
    assert (spec["view"], spec["kind"], spec["image"]) == ("training", "run", "our/training:1")
    assert spec["command"] == ["python3", "-u", "train.py"]
    assert spec["inputs"]["dataset"]["source"] == f"dataset:{name}@1"
    assert spec["inputs"]["dataset"]["sha256"] == made["sha256"]
    with zipfile.ZipFile(io.BytesIO(anna.get(f"/artifacts/{spec['source']}").content)) as source:
        assert source.read("algorithm.py").decode() == TRAIN
        assert source.read("helpers.py").decode() == "x = 1\n"
        assert "train.py" in source.namelist()
    found = shown(anna, training_id)
    assert (found["status"], found["name"], found["dataset"], found["params"]) == (
        "initializing", "digits", f"{name}@1", {"epochs": 3},
    )  # fmt: skip
    assert (found["download_url"], found["progress"], found["source"]) == (None, None, spec["source"])


async def test_a_training_goes_through_its_words_and_its_model_is_downloaded_by_its_url(
    anna: httpx.Client, scheduler: Scheduler, node: Bus
) -> None:
    training_id = begun(anna)
    await scheduler.run(training_id)
    now = (await scheduler.last(training_id))[1].created_at
    points = [("loss", 2.5, 1), ("loss", 1.5, 2), ("system.cpu", 1.0, None)]
    batch = OutputBatch(
        progress=Progress(fraction=0.25, message="epoch 1 of 4", at=now),
        metrics=tuple(MetricPoint(name=name, value=value, step=step, at=now) for name, value, step in points),
    )
    said = OUTPUT.subject(node_id=NODE, job_id=training_id, attempt="1")
    await node.put(said, batch.to_bytes(), deadline_s=60)

    async def told() -> dict[str, Any] | None:
        found = await asyncio.to_thread(shown, anna, training_id)
        return found if found["progress"] and found["metrics"] else None

    found = await eventually(told, "progress and metrics are shown")
    assert (found["status"], found["progress"]["fraction"], found["metrics"]) == ("training", 0.25, {"loss": 1.5})
    [listed] = [one for one in anna.get("/trainings").json()["trainings"] if one["training_id"] == training_id]
    assert listed["progress"]["message"] == "epoch 1 of 4"


async def test_what_a_completed_training_left_is_at_its_url(
    anna: httpx.Client, bert: httpx.Client, scheduler: Scheduler, node: Bus
) -> None:
    training_id = begun(anna)
    outputs = await left(node, scheduler, training_id, model=b"weights")
    ran = (await scheduler.last(training_id))[1].attempts[-1].model_copy(update={"outputs": outputs})
    await scheduler.end(training_id, outputs=outputs, attempts=(ran,))
    found = shown(anna, training_id)
    assert (found["status"], found["output_job"]) == ("completed", training_id)
    answer = anna.get(found["download_url"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("model") == b"weights"
    assert bert.get(f"/trainings/{training_id}").status_code == 404
    assert bert.get(found["download_url"]).status_code == 404


async def test_why_a_training_failed_is_the_last_line_of_its_program(
    anna: httpx.Client, scheduler: Scheduler, node: Bus
) -> None:
    training_id = begun(anna)
    said = b"Traceback\n" * 5000 + b"training: algorithm.py, line 2: ValueError: no digits\n"
    outputs = await left(node, scheduler, training_id, stderr=said)
    error = Failure(reason=EndReason.EXIT_CODE, message="The program ended with exit code 1.")
    ran = (await scheduler.last(training_id))[1].attempts[-1].model_copy(update={"outputs": outputs, "exit_code": 1})
    await scheduler.end(training_id, "failed", outputs=outputs, attempts=(ran,), error=error)
    found = shown(anna, training_id)
    assert found["status"] == "failed"
    assert found["error"] == {
        "reason": "exit_code",
        "message": "The program ended with exit code 1: algorithm.py, line 2: ValueError: no digits",
    }


async def test_terminating_is_a_cancel_that_may_be_repeated(anna: httpx.Client, scheduler: Scheduler) -> None:
    training_id = begun(anna)
    await scheduler.run(training_id)
    for _ in range(2):
        answer = anna.delete(f"/trainings/{training_id}")
        assert (answer.status_code, answer.json()) == (202, {"training_id": training_id, "status": "training"})
    await scheduler.end(training_id, "cancelled")
    answer = anna.delete(f"/trainings/{training_id}")
    assert (answer.status_code, answer.json()["status"]) == (202, "terminated")
    assert shown(anna, training_id)["status"] == "terminated"


async def test_the_list_has_trainings_alone_by_their_status_and_only_ones_own(
    anna: httpx.Client, bert: httpx.Client, admin: httpx.Client, scheduler: Scheduler
) -> None:
    name = new_id("t")
    ids = [begun(anna, name=name) for _ in range(3)]
    await scheduler.run(ids[0])
    job = anna.post("/jobs", json={"image": "busybox", "name": name}).json()["job_id"]

    def listed(http: httpx.Client, **query: Any) -> list[str]:
        answer = http.get("/trainings", params={"name": name, **query})
        assert answer.status_code == 200, answer.text
        return [one["training_id"] for one in answer.json()["trainings"]]

    assert listed(anna) == ids[::-1]
    assert listed(anna, status="training") == [ids[0]]
    assert listed(anna, status=["training", "initializing"]) == ids[::-1]
    assert listed(bert) == []
    assert listed(admin) == ids[::-1]
    assert listed(admin, owner="me") == []
    first = anna.get("/trainings", params={"name": name, "limit": 2}).json()
    second = anna.get("/trainings", params={"name": name, "limit": 2, "cursor": first["cursor"]}).json()
    assert [one["training_id"] for one in first["trainings"] + second["trainings"]] == ids[::-1]
    wrong = anna.get("/trainings", params={"status": "running"})
    assert (wrong.status_code, wrong.json()["errors"][0]["field"]) == (422, "status")
    for method in ("GET", "DELETE"):
        assert anna.request(method, f"/trainings/{job}").status_code == 404


async def test_a_distributed_training_is_a_gang_whose_first_worker_stands_for_it(
    anna: httpx.Client, scheduler: Scheduler, node: Bus
) -> None:
    training_id = begun(anna, distributed={"parameter_servers": 1, "workers": 2})
    spec = anna.get(f"/jobs/{training_id}").json()["spec"]
    assert (spec["kind"], spec["gang"]["connected"]) == ("gang", True)
    assert {name: role["count"] for name, role in spec["gang"]["roles"].items()} == {"worker": 2, "ps": 1}
    assert list(spec["gang"]["roles"]) == ["worker", "ps"]
    worker = begun(anna, name="stands in for the member")
    outputs = await left(node, scheduler, worker, model=b"of the first worker")
    ran = (await scheduler.last(worker))[1].attempts[-1].model_copy(update={"outputs": outputs})
    await scheduler.end(worker, outputs=outputs, attempts=(ran,))
    at = (await scheduler.last(training_id))[1].created_at
    first = GangMember(job_id=worker, role="worker", index=0, node=NODE, state=JobState.SUCCEEDED, placed_at=at)
    second = first.model_copy(update={"index": 1, "job_id": new_id("j")})
    await scheduler.move(training_id, "placed", members=(first, second))
    await scheduler.end(training_id, members=(first, second))
    found = shown(anna, training_id)
    assert (found["status"], found["output_job"], len(found["members"])) == ("completed", worker, 2)
    assert found["distributed"] == {
        "parameter_servers": 1,
        "workers": 2,
        "chief": False,
        "on_failure": "stop",
        "on_loss": "restart",
        "server_resources": None,
    }
    answer = anna.get(found["download_url"])
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.read("model") == b"of the first worker"


@pytest.mark.parametrize(
    ("fields", "field", "said"),
    [
        ({"algorithm": "def train(:\n"}, "algorithm", "line 1: "),
        ({"helpers": "\n\nx = = 2"}, "helpers", "line 3: invalid syntax: x = = 2"),
        ({"algorithm": "def fit(): pass"}, "algorithm", "It defines no function"),
        ({"algorithm": None}, "algorithm", "Give text here"),
        ({"dataset": "there-is-none"}, "dataset", "There is no dataset 'there-is-none'"),
        ({"dataset": "a" * 26}, "dataset", "There is no artifact"),
        ({"dataset": "http://169.254.169.254/x"}, "dataset", "may not be fetched"),
        ({"dataset": "two words"}, "dataset", ""),
        ({"distributed": {"workers": 0}}, "distributed.workers", ""),
        ({"distributed": {"parameter_servers": 0, "server_resources": {}}}, "distributed", "no parameter servers"),
        ({"distributed": {"on_loss": "wait"}}, "distributed.on_loss", ""),
        ({"distributed": {"workers": 1, "chiefs": 1}}, "distributed.chiefs", "There is no such field"),
        ({"helper": "x"}, "helper", "did you mean helpers?"),
        ({"view": "job"}, "view", "There is no such field"),
        ({"notify": [{"email": "somebody@else.org"}]}, "notify.0.email", ""),
    ],
)
def test_what_is_wrong_is_named_by_field(anna: httpx.Client, fields: dict[str, Any], field: str, said: str) -> None:
    answer = anna.post("/trainings", json={"algorithm": TRAIN, **fields})
    assert answer.status_code in {403, 422}, answer.text
    [problem] = answer.json()["errors"]
    assert problem["field"] == field
    assert said in problem["message"]


def test_a_body_that_is_no_json_or_too_long_is_refused(anna: httpx.Client) -> None:
    assert anna.post("/trainings", content=b"{").json()["code"] == "invalid_json"
    long = anna.post("/trainings", json={"algorithm": TRAIN, "params": {"x": "y" * 2**20}})
    assert (long.status_code, long.json()["code"]) == (413, "too_large")


def test_the_same_key_is_the_same_training_and_another_code_under_it_a_conflict(anna: httpx.Client) -> None:
    headers = {"Idempotency-Key": new_id("k")}
    body = {"algorithm": TRAIN, "params": {"a": 1}}
    one, two = (anna.post("/trainings", json=body, headers=headers).json() for _ in range(2))
    assert one["training_id"] == two["training_id"]
    other = anna.post("/trainings", json={**body, "helpers": "x = 1"}, headers=headers)
    assert (other.status_code, other.json()["code"]) == (409, "idempotency_conflict")


def test_only_who_is_logged_in_trains(stack: GatewayStack) -> None:
    with stack.client(None) as nobody:
        assert nobody.post("/trainings", json={"algorithm": TRAIN}).status_code == 401
        assert nobody.get("/trainings").status_code == 401


# --- client ----------------------------------------------------------------------------------------------------------


async def test_the_clients_train_list_stop_and_download(
    stack: GatewayStack, anna: httpx.Client, scheduler: Scheduler, node: Bus, tmp_path: Path
) -> None:
    token, name = anna.headers["authorization"].removeprefix("Bearer "), new_id("t")
    file = tmp_path / "algorithm.py"
    file.write_text(TRAIN)
    async with AsyncClient(stack.url, token) as client:
        made = await client.train({"algorithm": file, "name": name})
        assert made.status == "initializing"
        assert (await client.training(made.training_id)).params == {}
        with pytest.raises(SourceError):
            await client.train({"algorithm": tmp_path / "none.py"})
        with pytest.raises(WherryError, match="line 1"):
            await client.train({"algorithm": "def train(:"})
        outputs = await left(node, scheduler, made.training_id, model=b"weights")
        ran = (await scheduler.last(made.training_id))[1].attempts[-1].model_copy(update={"outputs": outputs})
        await scheduler.end(made.training_id, outputs=outputs, attempts=(ran,))
        [path] = await client.download_training(made.training_id, tmp_path / "model")
        assert path.read_bytes() == b"weights"
        assert [one.status async for one in client.trainings(name=name)] == ["completed"]

    def blocking() -> None:
        with Client(stack.url, token) as client:
            second = client.train({"algorithm": TRAIN, "name": name, "distributed": {"workers": 2}})
            assert client.terminate_training(second.training_id).status == "initializing"
            assert [one.training_id for one in client.trainings(name=name, limit=1)] == [second.training_id]
            with pytest.raises(WherryError, match="has left nothing yet"):
                client.download_training(second.training_id, tmp_path / "none")

    await asyncio.to_thread(blocking)
