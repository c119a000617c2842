"""Network ``api``: a program fetches what is its own and sends what it has made, and reaches nothing else."""

import asyncio
import contextlib
import hashlib
import random
import signal
import socket
from collections.abc import AsyncGenerator, AsyncIterator, Generator
from pathlib import Path
from typing import Any, cast

import pytest
import pytest_asyncio

from shared.clock import utc_now
from shared.fleet import Order
from shared.manifest import Manifest
from tests.integration.agent_stack import AgentProcess, Head, agent_of, docker, head_of, storage_of, zip_of

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
    order, finished = await head.run(**spec, timeout_s=120)
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


WALLS = """
import select
def reaches(host, port):
    try:
        socket.create_connection((host, port), timeout=3).close()
        return True
    except OSError:
        return False
host, port = os.environ["HOST_ADDRESS"], int(os.environ["HOST_PORT"])
assert reaches("127.0.0.1", 8081), "its own door"
for address in (host, "127.0.0.1", "169.254.169.254", "10.0.0.1", "1.1.1.1", os.environ["OTHER"]):
    for number in (port, 80, 53, 4222):
        assert not reaches(address, number), (address, number)
try:
    socket.getaddrinfo("example.com", 80)
except OSError:
    pass
else:
    raise AssertionError("names are resolved")
interfaces = [line.split(":")[0].strip() for line in open("/proc/net/dev") if ":" in line]
assert interfaces == ["lo"], interfaces
assert not open("/proc/net/route").read().splitlines()[1:]
said("stolen", ask("GET", "/v1/job", token=os.environ["STOLEN"])[0])
said("none", ask("GET", "/v1/job", token="")[0])
said("nearly", ask("GET", "/v1/job", token=TOKEN[:-1])[0])
for path in ("/", "/v1/jobs", "/v1/job/../jobs", "/v1/nodes", "/metrics", "/v1/job/inputs/other", "/v1/job/inputs/x/y"):
    said(path, ask("GET", path)[0])
said("source", ask("GET", "/v1/job/source")[0])
assert oct(os.stat(os.environ["WHERRY_TOKEN_FILE"]).st_mode & 0o777) == "0o400"
"""
WAITS = """
import time
said("token", TOKEN)
while not os.path.exists("go"):
    time.sleep(0.05)
"""


@contextlib.contextmanager
def listening_everywhere() -> Generator[int]:
    """A port of this machine that every container with a network reaches."""
    with socket.create_server(("0.0.0.0", 0), backlog=64) as server:
        yield server.getsockname()[1]


async def test_nothing_else_is_reached_and_no_other_token_opens_the_door(head: Head, agent: AgentProcess) -> None:
    bridge = docker("network", "inspect", "bridge", "--format", "{{(index .IPAM.Config 0).Gateway}}")
    first = await head.place(**program(WAITS, image=PYTHON))
    await head.say(first, "start")
    token = (await head.until(lambda: head.text(first.job_id)))[0].split()[1]
    with listening_everywhere() as port:
        code = f"import socket; socket.create_connection(('{bridge}', {port}), 60)"
        docker("run", "--rm", PYTHON, "python3", "-c", code)  # it is there for others
        env = {"HOST_ADDRESS": bridge, "HOST_PORT": str(port), "STOLEN": token, "OTHER": "172.17.0.2"}
        order, finished = await head.run(**program(WALLS, image=PYTHON, env=env), timeout_s=120)
    text = head.text(order.job_id)
    assert finished["state"] == "succeeded", text
    assert text == [
        "stolen 401", "none 401", "nearly 401", "/ 404", "/v1/jobs 404", "/v1/job/../jobs 404", "/v1/nodes 404",
        "/metrics 404", "/v1/job/inputs/other 404", "/v1/job/inputs/x/y 404", "source 404",
    ]  # fmt: skip
    await let_go(agent, first.job_id, {"image": PYTHON})
    await head.until(lambda: head.told(first.job_id, "finished"))
    assert token not in agent.log()
    for one in (first, order):
        await head.forget(one, agent)


async def let_go(agent: AgentProcess, job_id: str, runtime: dict[str, Any]) -> None:
    """Make the file that a program waits for. Its container may take with it what makes it."""
    if "image" in runtime:
        name = f"wherry-{agent.stack_id}-{job_id}-1"
        await asyncio.to_thread(docker, "exec", name, "python3", "-c", "open('/workspace/go', 'w')", check=False)
    else:
        (agent.data / "processes" / f"{job_id}-1" / "workspace" / "go").touch()


MISTAKES = """
os.makedirs(os.environ["WHERRY_OUTPUTS"] + "/folder/inner")
os.symlink("/tmp", os.environ["WHERRY_OUTPUTS"] + "/link")
open(os.environ["WHERRY_OUTPUTS"] + "/file", "w").write("first")
def zipped(*names):
    body = io.BytesIO()
    with zipfile.ZipFile(body, "w") as made:
        for name in names:
            made.writestr(name, "x")
    return body.getvalue()
def told(what, answer):
    said(what, answer[0], json.loads(answer[1])["code"])
told("over a folder", ask("PUT", "/v1/job/outputs/folder", b"x"))
told("below a file", ask("PUT", "/v1/job/outputs/file/inner", b"x"))
told("through a link", ask("PUT", "/v1/job/outputs/link/x", b"x"))
told("out of it", ask("PUT", "/v1/job/outputs/..%2Fworkspace%2Fx", b"x"))
told("nowhere", ask("PUT", "/v1/job/outputs/a//b", b"x"))
told("too large", ask("PUT", "/v1/job/outputs/large", bytes(3 * 1024 * 1024)))
told("no zip", ask("POST", "/v1/job/outputs?unpack=true", b"no zip at all"))
told("zip that leads out", ask("POST", "/v1/job/outputs?unpack=true", zipped("ok", "../out")))
told("zip over a folder", ask("POST", "/v1/job/outputs?unpack=true", zipped("folder")))
told("zip through a link", ask("POST", "/v1/job/outputs?unpack=true", zipped("link/x")))
told("not said", ask("POST", "/v1/job/outputs", zipped("x")))
told("wrong way", ask("DELETE", "/v1/job/outputs/file"))
told("progress", ask("POST", "/v1/job/progress", b'{"fraction": 2}'))
told("metrics", ask("POST", "/v1/job/metrics", b'{"values": {"system.cpu": 1}}'))
told("no json", ask("POST", "/v1/job/metrics", b"{"))
told("no remark", ask("POST", "/v1/job/remarks", b"  "))
assert ask("PUT", "/v1/job/outputs/file", b"second")[0] == 201
assert ask("PUT", "/v1/job/outputs/folder/inner/new", b"")[0] == 201
open(os.environ["WHERRY_OUTPUTS"] + "/folder/inner/own", "w").write("the folder is mine still")
"""


async def test_mistakes_have_their_answers_and_leave_what_is_there_as_it_is(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    small = {"resources": SMALL | {"disk": "2MiB"}}
    order, finished = await head.run(**program(MISTAKES, **small, **runtime), timeout_s=120)
    text = head.text(order.job_id)
    assert finished["state"] == "succeeded", text
    assert text == [
        "over a folder 409 conflict", "below a file 409 conflict", "through a link 409 conflict",
        "out of it 422 invalid", "nowhere 422 invalid", "too large 413 too_large", "no zip 422 bad_source",
        "zip that leads out 422 bad_source", "zip over a folder 409 conflict", "zip through a link 409 conflict",
        "not said 422 invalid", "wrong way 405 method_not_allowed", "progress 422 invalid", "metrics 422 invalid",
        "no json 400 bad_request", "no remark 422 invalid",
    ]  # fmt: skip
    files = await files_of(head, await head.manifest(finished))
    assert files == {"file": b"second", "folder/inner/new": b"", "folder/inner/own": b"the folder is mine still"}
    await head.forget(order, agent)


KEEPS_ASKING = """
import http.client, time
while not os.path.exists("go"):
    began = time.time()
    try:
        said("asked", ask("GET", "/v1/job")[0], began)
    except (OSError, http.client.HTTPException) as error:
        said("broken", type(error).__name__)
    time.sleep(0.05)
while True:
    try:
        said("last", ask("PUT", "/v1/job/outputs/last", b"whole")[0])
        break
    except (OSError, http.client.HTTPException) as error:
        time.sleep(0.1)
"""


async def answered_after(head: Head, order: Order, moment: float) -> None:
    """Return once the program says that what it asked after *moment* was answered."""

    def is_answered() -> bool:
        asked = (line.removeprefix("asked 200 ") for line in head.text(order.job_id) if line.startswith("asked 200 "))
        return any(float(began) > moment for began in asked)

    await head.until(is_answered)


@pytest.mark.parametrize("how", ["SIGTERM", "SIGKILL"])
async def test_an_agent_that_restarts_opens_the_door_again_with_the_same_token(
    head: Head, agent: AgentProcess, runtime: dict[str, Any], how: str
) -> None:
    order = await head.place(**program(KEEPS_ASKING, **runtime))
    await head.say(order, "start")
    await answered_after(head, order, 0)
    await agent.stop(signal.Signals[how])
    moment = utc_now().timestamp()
    await agent.start()
    await answered_after(head, order, moment)
    await let_go(agent, order.job_id, runtime)
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["state"] == "succeeded", head.text(order.job_id)
    assert head.text(order.job_id)[-1] == "last 201"
    assert not [line for line in head.text(order.job_id) if line.startswith("asked 401")]
    assert await files_of(head, await head.manifest(finished)) == {"last": b"whole"}
    await head.forget(order, agent)


async def test_a_relay_that_is_killed_is_replaced_beside_the_program(head: Head, agent: AgentProcess) -> None:
    order = await head.place(**program(KEEPS_ASKING, image=PYTHON))
    await head.say(order, "start")
    await answered_after(head, order, 0)
    for _ in range(2):
        await asyncio.to_thread(docker, "kill", f"wherry-{agent.stack_id}-{order.job_id}-1-relay")
        await answered_after(head, order, utc_now().timestamp())
    await let_go(agent, order.job_id, {"image": PYTHON})
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert finished["state"] == "succeeded", head.text(order.job_id)
    assert await files_of(head, await head.manifest(finished)) == {"last": b"whole"}
    await head.forget(order, agent)


async def test_a_node_without_the_relays_image_says_so(head: Head, agent: AgentProcess) -> None:
    await head.until(lambda: head.beats[-1].node.api == ("docker", "process"))
    await agent.stop()
    await agent.start(WHERRY_RELAY_IMAGE="no/such:image")
    try:
        await head.until(lambda: head.beats[-1].node.api == ("process",))
        order, finished = await head.run(**program("", image=PYTHON))  # a scheduler that does not know better
        assert (finished["state"], finished["error"]["reason"]) == ("failed", "runtime_error")
        assert "no/such:image (WHERRY_RELAY_IMAGE)" in finished["error"]["message"]
        await head.forget(order, agent)
    finally:
        await agent.stop()
        await agent.start()


@contextlib.asynccontextmanager
async def engine_by_tcp() -> AsyncGenerator[str]:
    """The engine of this machine as a remote one is reached."""
    path = docker("context", "inspect", "--format", "{{.Endpoints.docker.Host}}").removeprefix("unix://")

    under_way: set[asyncio.Task[Any]] = set()

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
        writer.write_eof()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        under_way.add(task := cast("asyncio.Task[Any]", asyncio.current_task()))
        far_reader, far_writer = await asyncio.open_unix_connection(path)
        try:
            await asyncio.gather(carry(reader, far_writer), carry(far_reader, writer))
        except (OSError, asyncio.CancelledError):
            pass
        finally:
            for one in (far_writer, writer):
                one.transport.abort()
            under_way.discard(task)

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"tcp://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    finally:
        server.close()
        for task in list(under_way):
            task.cancel()
        while under_way:
            await asyncio.sleep(0.01)


async def test_the_door_of_a_container_on_a_remote_engine_opens_too(head: Head, agent: AgentProcess) -> None:
    async with engine_by_tcp() as url:
        await agent.stop()
        head.beats.clear()
        await agent.start(DOCKER_HOST=url)
        try:
            await head.until(lambda: head.beats and "docker" in head.beats[-1].node.api)
            order, finished = await head.run(**program(SENDS, image=PYTHON))
            assert finished["state"] == "succeeded", head.text(order.job_id)
            files = await files_of(head, await head.manifest(finished))
            assert files == {"much": bytes(3 * MIB)}
            await head.forget(order, agent)
        finally:
            await agent.stop()
            await agent.start()


SENDS = """
assert ask("GET", "/v1/job")[0] == 200
assert ask("PUT", "/v1/job/outputs/much", bytes(3 * 1024 * 1024))[0] == 201
"""
MUCH = """
import hashlib, http.client
connection = http.client.HTTPConnection("127.0.0.1", int(API.rpartition(":")[2]), timeout=120)
connection.request("GET", "/v1/job/inputs/much", headers={"Authorization": "Bearer " + TOKEN})
answer, digest, size = connection.getresponse(), hashlib.sha256(), 0
while piece := answer.read(1 << 20):
    digest.update(piece)
    size += len(piece)
said("down", size, digest.hexdigest())
block = bytes(range(256)) * 4096
def pieces():
    for _ in range(200):
        yield block
connection.request("PUT", "/v1/job/outputs/much", body=pieces(), headers={"Authorization": "Bearer " + TOKEN})
answer = connection.getresponse()
said("up", answer.status, answer.read().decode())
"""


@pytest.mark.slow
@pytest.mark.timeout(400)
async def test_two_hundred_megabytes_go_through_in_bounded_memory(head: Head, agent: AgentProcess) -> None:
    body = random.Random(2).randbytes(MIB) * 200
    much = await given(head, body, unpack=False)
    more = {"inputs": {"much": much}, "resources": SMALL | {"disk": "1GiB"}}
    order, finished = await head.run(**program(MUCH, image=PYTHON, **more), timeout_s=300)
    text = head.text(order.job_id)
    assert finished["state"] == "succeeded", text
    assert text[0] == f"down {len(body)} {hashlib.sha256(body).hexdigest()}"
    assert text[1].startswith("up 201")
    (entry,) = (await head.manifest(finished)).entries
    assert entry.blob is not None
    assert (entry.blob.size, entry.blob.sha256) == (
        200 * MIB, hashlib.sha256(bytes(range(256)) * 4096 * 200).hexdigest()
    )  # fmt: skip
    assert agent.peak_mb() < 200
    await head.forget(order, agent)
