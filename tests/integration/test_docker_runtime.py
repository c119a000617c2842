"""The Docker runtime on a real engine: walls seen from inside, hostile images, hardly a trace, speed."""

import asyncio
import gzip
import hashlib
import io
import itertools
import json
import os
import shutil
import tarfile
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from services.node_agent.adapters.docker_endpoint import Endpoint, endpoints
from services.node_agent.adapters.docker_runtime import DockerRuntime
from services.node_agent.core.container import Key, Place
from services.node_agent.core.ending import Outcome
from services.node_agent.ports import Chunk
from shared.errors import NotFound, Unavailable, WherryError
from shared.fleet import Order
from shared.ids import new_id
from shared.spec import JobSpec
from tests.integration.agent_stack import IMAGE, busybox, clean_up, docker, zip_of

pytestmark = pytest.mark.docker
MANIFEST = "application/vnd.docker.distribution.manifest.v2+json"


@pytest.fixture(scope="module", autouse=True)
def _image() -> None:
    busybox()


@pytest.fixture
async def runtime() -> AsyncIterator[DockerRuntime]:
    place = Place(new_id("t"), "n1")
    runtime = DockerRuntime(place, endpoints(os.environ, Path.home(), os.getuid()))
    await runtime.describe()
    yield runtime
    await runtime.close()
    clean_up(place.stack)


def order(**spec: Any) -> Order:
    return Order(job_id=new_id("j"), owner_id="u1", attempt=1, spec=JobSpec(**{"image": IMAGE, **spec}), seq=1)


async def nothing() -> Path | None:
    return None


def _drop(_: Chunk) -> None:
    """Take output and forget it."""


async def start(
    runtime: DockerRuntime, what: Order, source: Callable[[], Awaitable[Path | None]] = nothing
) -> tuple[Key, str]:
    image = await runtime.find_image(what)
    assert image
    key = Key(what.job_id, what.attempt)
    handle = await runtime.stage(what, image, source)
    await runtime.start(key, handle)
    return key, handle


async def run(
    runtime: DockerRuntime, what: Order, source: Callable[[], Awaitable[Path | None]] = nothing
) -> tuple[Outcome, str]:
    """Run to the end; return the outcome and all that was printed."""
    key, handle = await start(runtime, what, source)
    chunks: list[Chunk] = []
    await runtime.follow(key, handle, None, chunks.append).wait()
    while (outcome := await runtime.outcome(key, handle)) is None:
        await asyncio.sleep(0.01)
    await runtime.clear(key)
    return outcome, b"".join(chunk.data for chunk in chunks).decode()


PROBE = r"""
grep -E '^(CapInh|CapPrm|CapEff|CapBnd|CapAmb|NoNewPrivs|Seccomp|Uid|Gid):' /proc/self/status | tr '\t' ' '
cd /sys/fs/cgroup
echo "cpu $(cat cpu/cpu.cfs_quota_us cpu/cpu.cfs_period_us cpu.max 2>/dev/null | tr '\n' ' ')"
echo "memory $(cat /sys/fs/cgroup/memory/memory.limit_in_bytes /sys/fs/cgroup/memory.max 2>/dev/null)"
echo "swap $(cat /sys/fs/cgroup/memory/memory.memsw.limit_in_bytes /sys/fs/cgroup/memory.swap.max 2>/dev/null)"
echo "pids $(cat /sys/fs/cgroup/pids/pids.max /sys/fs/cgroup/pids.max 2>/dev/null)"
echo "nofile $(ulimit -n) core $(ulimit -c)"
echo "interfaces $(ls /sys/class/net | tr '\n' ' ')"
echo "init $(cat /proc/1/comm)"
echo "oom $(cat /proc/self/oom_score_adj)"
for path in /x /etc/x /bin/x /run/wherry/x /dev/x; do touch $path 2>/dev/null && echo "WROTE $path"; done
for path in /workspace/x /outputs/x /tmp/x /dev/shm/x; do touch $path && echo "wrote $path"; done
printf '#!/bin/sh\necho RAN' > /tmp/a; chmod +x /tmp/a; /tmp/a 2>/dev/null || echo "tmp noexec"
dd if=/dev/zero of=/tmp/fill bs=1M count=40 2>/dev/null || echo "tmp full at $(wc -c < /tmp/fill)"
ls /var/run/docker.sock 2>/dev/null && echo "SOCKET"
unshare -U true 2>/dev/null && echo "UNSHARED"
mount -t tmpfs x /workspace 2>/dev/null && echo "MOUNTED"
cat /proc/kcore 2>/dev/null | head -c1 | wc -c
"""


async def test_every_wall_stands_as_seen_from_inside(runtime: DockerRuntime) -> None:
    resources = {"cpus": 0.5, "memory": "64MiB", "tmp": "16MiB"}
    outcome, text = await run(runtime, order(command=PROBE, resources=resources))
    assert outcome == Outcome(0)
    lines = [" ".join(line.split()) for line in text.splitlines()]
    for name in ("CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"):
        assert f"{name}: 0000000000000000" in lines
    for expected in (
        "NoNewPrivs: 1", "Seccomp: 2", "Uid: 65534 65534 65534 65534", "Gid: 65534 65534 65534 65534",
        "cpu 50000 100000", f"memory {64 * 2**20}", "pids 256", "nofile 8192 core 0", "interfaces lo",
        "oom 500", "wrote /workspace/x", "wrote /outputs/x", "wrote /tmp/x", "wrote /dev/shm/x",
        "tmp noexec", "0",
    ):  # fmt: skip
        assert expected in lines, text
    said = dict(line.partition(" ")[::2] for line in lines)
    assert said["init"] in ("docker-init", "tini")
    assert said["swap"] in (str(64 * 2**20), "0", "")  # version 1 counts memory in
    assert 0 < int(said["tmp"].removeprefix("full at ")) < 16 * 2**20
    for word in ("WROTE", "RAN", "SOCKET", "UNSHARED", "MOUNTED"):
        assert word not in text


async def test_tmp_is_executable_only_where_it_is_asked_for(runtime: DockerRuntime) -> None:
    command = "printf '#!/bin/sh\\necho RAN' > /tmp/a; chmod +x /tmp/a; /tmp/a"
    assert (await run(runtime, order(command=command, tmp_exec=True)))[1] == "RAN\n"


async def test_a_fork_bomb_stays_in_its_container(runtime: DockerRuntime) -> None:
    command = "i=0; while [ $i -lt 400 ]; do sleep 300 & i=$((i+1)); done; echo all"
    outcome, text = await run(runtime, order(command=command))
    assert "can't fork" in text
    assert outcome.exit_code != 0


async def test_memory_beyond_the_promise_ends_in_oom(runtime: DockerRuntime) -> None:
    outcome, _ = await run(runtime, order(command="x=a; while true; do x=$x$x; done", resources={"memory": "8MiB"}))
    assert outcome.is_oom


def image_from(folder: Path, changes: list[str]) -> str:
    """Make an image of busybox with *changes*, through a real import."""
    name = f"wherry-test-{new_id('i')}"
    container = docker("create", IMAGE, "true")
    try:
        docker("export", "-o", str(folder / "root.tar"), container)
    finally:
        docker("rm", container)
    with tarfile.open(folder / "root.tar", "a") as tar:
        (folder / "file").write_text("of the image")
        for path in ("workspace/image-file", "outputs/image-file", "data/image-file"):
            tar.add(folder / "file", path)
    docker("import", *(part for change in changes for part in ("--change", change)), str(folder / "root.tar"), name)
    return name


async def test_a_hostile_image_gets_nothing_more(runtime: DockerRuntime, tmp_path: Path) -> None:
    """Root, an entry point, volumes, a health check, files where the job's folders are."""
    image = image_from(
        tmp_path,
        ["USER root", 'ENTRYPOINT ["sh", "-c", "echo HIJACKED"]', "VOLUME /data /workspace /tmp", "WORKDIR /data",
         "HEALTHCHECK --interval=1s CMD touch /outputs/health", "ENV PATH=/bin NVIDIA_VISIBLE_DEVICES=all"],
    )  # fmt: skip
    try:
        command = "id -u; pwd; ls -A /workspace /outputs; echo $NVIDIA_VISIBLE_DEVICES; sleep 2.5; ls -A /outputs"
        outcome, text = await run(runtime, order(image=image, command=command))
        assert outcome == Outcome(0)
        assert text.split() == ["65534", "/workspace", "/outputs:", "/workspace:", "void"]
        key, handle = await start(runtime, order(image=image))
        mounts = json.loads(docker("inspect", "--format", "{{json .Mounts}}", handle))
        (own,) = (mount["Name"] for mount in mounts if mount["Destination"] == "/data")
        await runtime.clear(key)
        assert own not in docker("volume", "ls", "-q").split(), "an image's own volume was left behind"
        assert (await run(runtime, order(image=image)))[1] == "HIJACKED\n", "its own command runs where none is given"
    finally:
        docker("rmi", "-f", image)


async def test_a_source_is_unpacked_with_modes_for_the_job_s_user(runtime: DockerRuntime, tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    script = "stat -c '%u %a %s' a a/b a/b/*; echo > a/new"
    path.write_bytes(zip_of({"a/b/ü.txt": "x" * 100_000, "run.sh": script}))

    async def source() -> Path:
        return path

    outcome, text = await run(runtime, order(command="sh run.sh", source="a" * 26), source)
    assert outcome == Outcome(0), text
    assert [line.split()[:2] for line in text.splitlines()] == [["65534", "755"], ["65534", "755"], ["65534", "600"]]
    assert text.endswith(" 100000\n")


async def test_a_zip_that_holds_more_than_the_job_s_disk_is_refused(runtime: DockerRuntime, tmp_path: Path) -> None:
    path = tmp_path / "source.zip"
    path.write_bytes(zip_of({"big": bytes(3_000_000)}))

    async def source() -> Path:
        return path

    what = order(command="true", source="a" * 26, resources={"disk": 1_000_000})
    with pytest.raises(WherryError, match="more than 1000000") as caught:
        await start(runtime, what, source)
    assert caught.value.code == "bad_source"
    await runtime.clear(Key(what.job_id, 1))
    assert await runtime.found() == []


async def test_staging_again_over_what_was_left_works(runtime: DockerRuntime) -> None:
    what = order(command="echo done")
    image = await runtime.find_image(what)
    assert image
    await runtime.stage(what, image, nothing)
    assert (await run(runtime, what))[1] == "done\n"


async def test_found_names_what_is_there_and_clear_removes_it(runtime: DockerRuntime) -> None:
    what = order(command="sleep 100")
    image = await runtime.find_image(what)
    assert image
    handle = await runtime.stage(what, image, nothing)
    key = Key(what.job_id, 1)
    conditions = {one.handle: one.condition for one in await runtime.found()}
    assert conditions == {handle: "created", "": "created"}
    await runtime.start(key, handle)
    assert {one.condition for one in await runtime.found() if one.handle} == {"started"}
    await runtime.clear(key)
    assert await runtime.found() == []
    await runtime.clear(key)
    with pytest.raises(NotFound):
        await runtime.outcome(key, handle)
    await runtime.kill(key, handle, "SIGKILL")


async def test_removals_at_the_same_time_are_in_nobody_s_way(runtime: DockerRuntime) -> None:
    what = order(command="sleep 100")
    key, _ = await start(runtime, what)
    await asyncio.gather(*(runtime.clear(key) for _ in range(5)))
    assert await runtime.found() == []


async def test_lines_that_the_engine_leaves_out_when_following_are_read_from_its_log(
    runtime: DockerRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    api = runtime._engine.api()
    get = api.get

    def gives_up(url: str, **more: Any) -> Any:
        """As engine 20.10 does now and then: the container ends, and so do the lines."""
        response = get(url, **more)
        if more.get("params", {}).get("follow"):
            pieces = response.iter_content

            def some(size: int | None) -> Iterator[bytes]:
                yield from itertools.islice(pieces(size), 3)
                api.wait(url.split("/")[-2])

            response.iter_content = some
        return response

    monkeypatch.setattr(api, "get", gives_up)
    _, text = await run(runtime, order(command="for i in $(seq 1 5); do echo line $i; sleep 0.1; done; seq 6 2000"))
    assert text.splitlines() == [*(f"line {n}" for n in range(1, 6)), *map(str, range(6, 2001))]


async def test_a_log_is_read_on_from_a_position(runtime: DockerRuntime) -> None:
    command = "for i in $(seq 1 2000); do echo line $i; done; for i in $(seq 1 5); do echo late $i; sleep 0.1; done"
    key, handle = await start(runtime, order(command=command))
    chunks: list[Chunk] = []
    enough = asyncio.Event()
    loop = asyncio.get_running_loop()

    def sink(chunk: Chunk) -> None:
        chunks.append(chunk)
        if len(chunks) == 1000:
            loop.call_soon_threadsafe(enough.set)

    following = runtime.follow(key, handle, None, sink)
    await enough.wait()
    following.close()
    async with asyncio.timeout(60):
        await following.wait()
    rest: list[Chunk] = []
    await runtime.follow(key, handle, json.loads(json.dumps(chunks[-1].position)), rest.append).wait()
    text = b"".join(chunk.data for chunk in [*chunks, *rest]).decode().splitlines()
    assert text == [f"line {n}" for n in range(1, 2001)] + [f"late {n}" for n in range(1, 6)]


async def test_closing_a_silent_log_returns_at_once(runtime: DockerRuntime) -> None:
    key, handle = await start(runtime, order(command="sleep 100"))
    following = runtime.follow(key, handle, None, _drop)
    await asyncio.sleep(0.3)
    following.close()
    async with asyncio.timeout(60):
        await following.wait()


async def test_outputs_that_nobody_reads_to_the_end_block_nothing(runtime: DockerRuntime) -> None:
    command = "for i in $(seq 1 30); do head -c 1000000 /dev/zero > $WHERRY_OUTPUTS/$i; done"
    key, handle = await start(runtime, order(command=command))
    await runtime.follow(key, handle, None, _drop).wait()
    async for output in runtime.outputs(key, handle):
        assert output.kind == "file"
        break
    await runtime.clear(key)


async def test_an_engine_that_is_not_there_is_unavailable_and_says_what_was_tried() -> None:
    runtime = DockerRuntime(
        Place("t", "n"), [Endpoint("unix:///nowhere.sock", "DOCKER_HOST"), Endpoint("", "a context")]
    )
    with pytest.raises(Unavailable, match=r"unix:///nowhere.sock \(DOCKER_HOST\).*a context"):
        await runtime.describe()
    with pytest.raises(Unavailable):
        await runtime.find_image(order())
    await runtime.close()


def _set(loop: asyncio.AbstractEventLoop, first: asyncio.Event, _: Chunk) -> None:
    loop.call_soon_threadsafe(first.set)


class Registry(ThreadingHTTPServer):
    """An image registry that can be read: one image of one layer, under ``served/image:1``."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Registry)
        tar = io.BytesIO()
        with tarfile.open(fileobj=tar, mode="w") as layer:
            busy = tarfile.TarInfo("bin/sh")
            program = Path(shutil.which("busybox") or "/bin/busybox").read_bytes()
            busy.size, busy.mode = len(program), 0o755
            layer.addfile(busy, io.BytesIO(program))
        raw, packed = tar.getvalue(), gzip.compress(tar.getvalue(), 1)
        config = {
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["/bin/sh", "-c", "echo pulled"]},
            "rootfs": {"type": "layers", "diff_ids": [digest(raw)]},
        }  # fmt: skip
        self.blobs = {digest(body): body for body in (packed, json.dumps(config).encode())}
        kinds = ("image.rootfs.diff.tar.gzip", "container.image.v1+json")
        of_layer, of_config = (
            {"mediaType": f"application/vnd.docker.{kind}", "size": len(body), "digest": name}
            for kind, (name, body) in zip(kinds, self.blobs.items(), strict=True)
        )
        manifest = {"schemaVersion": 2, "mediaType": MANIFEST, "config": of_config, "layers": [of_layer]}
        self.manifest = json.dumps(manifest).encode()
        self.is_spoiled = False
        self.asked, self.released = threading.Event(), threading.Event()
        self.released.set()


class _Registry(BaseHTTPRequestHandler):
    server: Registry

    def do_GET(self) -> None:
        name = self.path.rpartition("/")[2]
        if self.path == "/v2/":
            self._answer(b"{}")
        elif self.path.startswith("/v2/served/image/manifests/") and name in ("1", digest(self.server.manifest)):
            self._answer(self.server.manifest, MANIFEST)
        elif name in self.server.blobs:
            self.server.asked.set()
            self.server.released.wait(200)
            body = self.server.blobs[name]
            self._answer(body[::-1] if self.server.is_spoiled else body, "application/octet-stream")
        else:
            self._answer(b'{"errors": [{"code": "MANIFEST_UNKNOWN", "message": "manifest unknown"}]}', status=404)

    do_HEAD = do_GET  # noqa: N815 - the name that http.server looks for

    def _answer(self, body: bytes, kind: str = "application/json", status: int = 200) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("Docker-Content-Digest", digest(body))
        self.end_headers()
        if self.command == "GET":
            with suppress(ConnectionError):
                self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        """Say nothing."""


def digest(body: bytes) -> str:
    return f"sha256:{hashlib.sha256(body).hexdigest()}"


@pytest.fixture
def registry() -> Iterator[Registry]:
    with Registry() as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        yield server
        server.shutdown()
        thread.join()


async def test_a_missing_image_is_pulled_pinned_and_run(runtime: DockerRuntime, registry: Registry) -> None:
    name = f"localhost:{registry.server_port}/served/image"
    what = order(image=f"{name}:1")
    told: list[tuple[float, str]] = []
    assert await runtime.find_image(what) is None
    try:
        image = await runtime.pull_image(what, lambda *words: told.append(words))
        assert image.digest == f"{name}@{digest(registry.manifest)}"
        assert image.config["Cmd"]
        assert all(0 <= fraction <= 1 and name in words for fraction, words in told)
        assert (await run(runtime, what))[1] == "pulled\n"
        docker("rmi", "-f", f"{name}:1")
        pinned = what.model_copy(update={"image_digest": image.digest})
        assert (await runtime.pull_image(pinned, lambda *_: None)).digest == image.digest
    finally:
        docker("rmi", "-f", image.id)


async def test_an_image_that_a_registry_does_not_have_is_not_found(runtime: DockerRuntime, registry: Registry) -> None:
    for name in ("served/image:2", "served/other:1"):
        with pytest.raises(WherryError, match=name) as caught:
            await runtime.pull_image(order(image=f"localhost:{registry.server_port}/{name}"), lambda *_: None)
        assert caught.value.code == "image_not_found"


async def test_a_registry_that_does_not_answer_is_a_failed_pull(runtime: DockerRuntime) -> None:
    with pytest.raises(WherryError, match="localhost:1/no/image:1") as caught:
        await runtime.pull_image(order(image="localhost:1/no/image:1"), lambda *_: None)
    assert (caught.value.code, caught.value.retryable) == ("image_pull_failed", True)


async def test_an_image_that_is_not_what_its_digest_says_is_not_tried_again(
    runtime: DockerRuntime, registry: Registry
) -> None:
    registry.is_spoiled = True
    with pytest.raises(WherryError, match="served/image") as caught:
        await runtime.pull_image(order(image=f"localhost:{registry.server_port}/served/image:1"), lambda *_: None)
    assert (caught.value.code, caught.value.retryable) == ("image_pull_failed", False)


async def test_a_pull_that_nobody_wants_any_more_is_given_up_at_once(
    runtime: DockerRuntime, registry: Registry
) -> None:
    registry.released.clear()
    what = order(image=f"localhost:{registry.server_port}/served/image:1")
    pulling = asyncio.create_task(runtime.pull_image(what, lambda *_: None))
    try:
        assert await asyncio.to_thread(registry.asked.wait, 60)
        pulling.cancel()
        done, _ = await asyncio.wait({pulling}, timeout=30)
        assert done
    finally:
        registry.released.set()
    await asyncio.wait({pulling})
    assert await runtime.find_image(what) is None
