"""Network ``api``: a program fetches what is its own and sends what it has made, and reaches nothing else."""

import asyncio
import contextlib
import hashlib
import json
import random
import socket
import zipfile
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.manifest import Manifest
from tests.integration.agent_stack import (
    AgentProcess,
    Head,
    agent_of,
    docker,
    head_of,
    storage_of,
    zip_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]
MIB = 1024 * 1024
PYTHON = "wherry/python-base"
SMALL = {"memory": "256MiB", "disk": "64MiB"}
#: In front of every program here: `ask` gives status and body of an answer.
CLIENT = """
import io, json, os, socket, sys, urllib.error, urllib.request, zipfile
API, TOKEN = os.environ["WHERRY_API"], open(os.environ["WHERRY_TOKEN_FILE"]).read()
def ask(method, path, body=None, token=TOKEN, **headers):
    headers = {"Authorization": "Bearer " + token} | headers
    request = urllib.request.Request(API + path, data=body, method=method, headers=headers)
    try:
        with urllib.request.urlopen(request, timeout=60) as answer:
            return answer.status, answer.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()
def said(*words):
    print(*words, flush=True)
"""


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(mongo_server: str, folder: Path) -> AsyncIterator[Head]:
    async with storage_of(mongo_server, folder / "storage") as storage, head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(head.stack, head, folder / "agent") as agent:
        yield agent


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": PYTHON} if request.param == "docker" else {"runtime": "process"}


def program(text: str, **spec: Any) -> dict[str, Any]:
    return {"command": ["python3", "-c", CLIENT + text], "network": "api", "resources": SMALL} | spec


async def given(head: Head, body: bytes, **more: Any) -> dict[str, Any]:
    """Return an input as the gateway completes it."""
    artifact = await head.upload(body)
    digest = hashlib.sha256(body).hexdigest()
    return {"source": f"artifact:{artifact}", "artifact": artifact, "sha256": digest, "size": len(body)} | more


async def files_of(head: Head, manifest: Manifest) -> dict[str, bytes]:
    return {entry.path: await head.read(entry.blob) for entry in manifest.entries if entry.blob is not None}


SEED = """
status, about = ask("GET", "/v1/job")
about = json.loads(about)
assert (status, about["id"], about["params"]) == (200, os.environ["WHERRY_JOB_ID"], {"factor": 3}), about
assert [one["name"] for one in about["inputs"]] == ["numbers"], about
status, source = ask("GET", "/v1/job/source")
zipfile.ZipFile(io.BytesIO(source)).extractall("fetched")
assert open("fetched/lib/words.txt").read() == "from the source"
status, numbers = ask("GET", "/v1/job/inputs/numbers")
inputs = zipfile.ZipFile(io.BytesIO(numbers))
results = io.BytesIO()
with zipfile.ZipFile(results, "w") as made:
    for name in inputs.namelist():
        made.writestr("times/" + name, str(int(inputs.read(name)) * about["params"]["factor"]))
    made.writestr("empty/", "")
said("post", *ask("POST", "/v1/job/outputs?unpack=true&path=all/of", results.getvalue()))
said("put", *ask("PUT", "/v1/job/outputs/log/one%20file.txt", "größe".encode()))
said("progress", ask("POST", "/v1/job/progress", b'{"fraction": 0.5, "message": "half"}')[0])
said("metrics", ask("POST", "/v1/job/metrics", b'{"values": {"loss": 0.25}, "step": 3}')[0])
said("remark", ask("POST", "/v1/job/remarks", b"two numbers\\nwere odd")[0])
"""


async def test_a_program_fetches_its_source_and_input_unpacks_them_itself_and_posts_a_zip(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of({"lib/words.txt": "from the source"}))
    numbers = await given(head, zip_of({"a.txt": "1", "deep/b.txt": "20"}))
    spec = program(SEED, source=source, params={"factor": 3}, inputs={"numbers": numbers}, **runtime)
    order, finished = await head.run(**spec, timeout_s=60)
    text = head.text(order.job_id)
    assert finished["state"] == "succeeded", text
    assert text[0] == """post 201 b'{"path": "all/of", "files": 2}'"""
    assert text[1].startswith("put 201") and text[2:] == ["progress 204", "metrics 204", "remark 204"]
    assert finished["remarks"] == ["two numbers were odd"]
    files = await files_of(head, await head.manifest(finished))
    assert files == {
        "all/of/times/a.txt": b"3", "all/of/times/deep/b.txt": b"60", "log/one file.txt": "größe".encode()
    }  # fmt: skip
    batches = [batch for job_id, batch in head.batches if job_id == order.job_id]
    assert [(one.progress.fraction, one.progress.message) for one in batches if one.progress] == [(0.5, "half")]
    points = [point for batch in batches if not batch.final for point in batch.metrics]
    assert [(one.value, one.step) for one in points if one.name == "loss"] == [(0.25, 3)]
    await head.forget(order, agent)
