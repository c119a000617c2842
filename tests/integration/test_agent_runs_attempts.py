"""What an agent makes of orders: outputs, logs, reports, typed errors, limits; with containers and plain processes."""

import asyncio
import hashlib
import random
import time
import zipfile
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from shared.events import SeriesPart
from shared.ids import new_id
from shared.requests.blobs import BlobScope
from tests.integration.agent_stack import (
    IMAGE,
    AgentProcess,
    Head,
    agent_of,
    busybox,
    docker,
    head_of,
    storage_of,
    zip_of,
)

pytestmark = [pytest.mark.docker, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def storage(mongo_server: str, folder: Path) -> AsyncIterator[Any]:
    busybox()
    async with storage_of(mongo_server, folder / "storage") as storage:
        yield storage


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def head(storage: Any) -> AsyncIterator[Head]:
    async with head_of(storage) as head:
        yield head


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def agent(storage: Any, head: Head, folder: Path) -> AsyncIterator[AgentProcess]:
    async with agent_of(storage, head, folder / "agent") as agent:
        yield agent


SCRIPT = """
echo "::progress 0.5::half way"
echo "::metric loss=0.25 step=3"
cat data/größe.txt
sh lib/tool.sh
cat "$WHERRY_PARAMS"; echo
echo "to stderr" >&2
mkdir -p "$WHERRY_OUTPUTS/deep/er/empty"
printf 'a\\0b' > "$WHERRY_OUTPUTS/deep/bytes.bin"
: > "$WHERRY_OUTPUTS/nothing"
printf x > "$WHERRY_OUTPUTS/größe"
chmod 750 "$WHERRY_OUTPUTS/größe"
cp data/big.bin "$WHERRY_OUTPUTS/big.bin"
ln -s /etc/passwd "$WHERRY_OUTPUTS/link"
"""
BIG = random.Random(1).randbytes(3_000_001)
FILES = {
    "run.sh": SCRIPT, "lib/tool.sh": "echo tool; printf 'no line end'; exit 0", "data/größe.txt": "ünï\n",
    "data/big.bin": BIG,
}  # fmt: skip


@pytest.fixture(params=["docker", "process"])
def runtime(request: pytest.FixtureRequest) -> dict[str, Any]:
    return {"image": IMAGE} if request.param == "docker" else {"runtime": "process"}


async def test_the_main_job_gives_its_outputs_bit_for_bit_its_logs_and_its_reports(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of(FILES))
    order, finished = await head.run(command="sh ./run.sh", source=source, params={"x": [1, "ü"]}, **runtime)

    assert finished["state"] == "succeeded", finished
    assert finished["exit_code"] == 0
    names = [name for job, name, _ in head.reports if job == order.job_id]
    assert names == ["starting", "running", "finishing", "finished"]
    manifest = await head.manifest(finished)
    entries = {entry.path: entry for entry in manifest.entries}
    assert sorted(entries) == [
        "big.bin", "deep", "deep/bytes.bin", "deep/er", "deep/er/empty", "größe", "nothing",
    ]  # fmt: skip
    assert finished["outputs"]["files"] == 4
    assert finished["outputs"]["bytes"] == len(BIG) + 4
    big = entries["big.bin"].blob
    assert big
    assert big.sha256 == hashlib.sha256(BIG).hexdigest()
    assert await head.read(big) == BIG
    assert entries["größe"].mode == 0o750
    assert entries["deep/er/empty"].kind == "dir"
    assert any("link" in remark for remark in manifest.skipped)
    assert manifest.stdout
    assert manifest.stderr
    stdout = (await head.read(manifest.stdout)).decode()
    assert stdout.endswith('ünï\ntool\nno line end{"x": [1, "\\u00fc"]}\n')
    assert await head.read(manifest.stderr) == b"to stderr\n"
    await head.until(lambda: len(head.text(order.job_id)) == 6)
    assert sorted(head.text(order.job_id)) == sorted([*stdout.splitlines(), "to stderr"])
    assert [line.n for line in head.lines[order.job_id]] == [1, 2, 3, 4, 5, 6]
    batches = [batch for job, batch in head.batches if job == order.job_id]
    assert [(b.progress.fraction, b.progress.message) for b in batches if b.progress] == [(0.5, "half way")]
    own = [(p.name, p.value, p.step, b.final) for b in batches for p in b.metrics if p.name == "loss"]
    assert own == [("loss", 0.25, 3, None), ("loss", 0.25, 3, SeriesPart(index=0, count=1))], "live, and at the end"

    await head.forget(order, agent)


async def test_a_name_that_is_not_utf8_costs_that_file_and_no_other(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    command = (
        """cd "$WHERRY_OUTPUTS"; echo fine > fine; echo odd > "$(printf 'caf\\351')"; mkdir "$(printf '\\377')" """
    )
    order, finished = await head.run(command=command, **runtime)
    assert finished["state"] == "succeeded", finished
    manifest = await head.manifest(finished)
    assert [entry.path for entry in manifest.entries] == ["fine"]
    assert sorted(manifest.skipped) == [
        "caf\ufffd: its name is not UTF-8, left out", "\ufffd: its name is not UTF-8, left out",
    ]  # fmt: skip
    await head.forget(order, agent)


async def test_the_heartbeat_says_what_the_node_is_and_has(head: Head, agent: AgentProcess) -> None:
    # The first ones may be sent before a busy engine has answered.
    beat = await head.until(lambda: next((one for one in head.beats if one.seq >= 2 and one.node.engine), None))
    assert (beat.node.id, beat.node.name, beat.node.tags) == ("n1", "first", ("here", "there"))
    assert beat.node.runtimes == ("docker", "process")
    assert beat.node.engine.startswith("docker 2")
    assert beat.capacity.cpus == 1.5
    assert beat.capacity.memory > 2**30
    assert beat.usage.memory_available > 0
    assert beat.usage.disk_free > 0
    assert beat.boot_id


async def test_a_failing_job_keeps_its_outputs_and_says_its_exit_code(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    command = 'echo kept > "$WHERRY_OUTPUTS/partial"; echo last words >&2; exit 3'
    _, finished = await head.run(command=command, **runtime)
    assert (finished["state"], finished["exit_code"], finished["error"]["reason"]) == ("failed", 3, "exit_code")
    manifest = await head.manifest(finished)
    assert [entry.path for entry in manifest.entries] == ["partial"]
    assert manifest.stderr
    assert await head.read(manifest.stderr) == b"last words\n"


@pytest.mark.parametrize(
    ("spec", "reason", "words"),
    [
        ({"image": IMAGE, "command": ["no-such-program"]}, "command_not_found", "no-such-program"),
        ({"runtime": "process", "command": ["no-such-program"]}, "command_not_found", "no-such-program"),
        ({"image": IMAGE, "command": "no-such-program -x"}, "command_not_found", "no-such-program -x"),
        ({"image": IMAGE, "command": ["/etc/passwd"]}, "command_not_found", "cannot be executed"),
        # There is time for one more try, however long that takes, and not for the pause before the one after it.
        (
            {"image": "localhost:1/no/image:1", "command": "true", "timeouts": {"pull": 24}},
            "image_pull_failed",
            "localhost:1/no/image:1",
        ),
        ({"image": IMAGE, "command": "x=aaaaaaaaaa; while true; do x=$x$x; done",
          "resources": {"memory": "16MiB"}}, "oom", "memory"),
        ({"image": IMAGE, "command": "sleep 60", "timeouts": {"run": 1}}, "run_timeout", "1 s"),
        ({"runtime": "process", "command": "sleep 60", "timeouts": {"run": 1}}, "run_timeout", "1 s"),
        ({"image": IMAGE, "command": "true", "source": "a" * 26}, "input_missing", "could not be fetched"),
        ({"image": IMAGE, "command": "true", "resources": {"cpus": 4000}}, "runtime_error", "CPUs"),
    ],
)  # fmt: skip
async def test_what_goes_wrong_is_a_typed_error(
    head: Head, agent: AgentProcess, spec: dict[str, Any], reason: str, words: str
) -> None:
    order, finished = await head.run(**spec)
    assert finished["state"] == ("timed_out" if reason == "run_timeout" else "failed")
    assert finished["error"]["reason"] == reason, finished
    assert words in finished["error"]["message"]
    await head.forget(order, agent)


async def test_an_image_without_a_command_is_a_typed_error(head: Head, agent: AgentProcess, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    name = f"wherry-test-{new_id('i')}"
    docker("import", str(_tar(tmp_path)), name)
    try:
        _, finished = await head.run(image=name)
        assert finished["error"]["reason"] == "image_no_command"
    finally:
        docker("rmi", "-f", name)


def _tar(folder: Path) -> Path:
    import tarfile  # noqa: PLC0415

    path = folder / "image.tar"
    with tarfile.open(path, "w") as tar:
        tar.add(folder / "file", "file")
    return path


async def test_a_dangerous_zip_is_refused_and_nothing_is_left(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    source = await head.upload(zip_of({"run.sh": "true", "../escape": "x"}))
    order, finished = await head.run(command="sh run.sh", source=source, **runtime)
    assert finished["error"]["reason"] == "bad_source"
    assert "../escape" in finished["error"]["message"]
    await head.forget(order, agent)
    assert not list(agent.data.rglob("escape"))


async def test_a_stop_ends_the_program_keeps_what_it_left_and_reports_cancelled(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    command = 'echo x > "$WHERRY_OUTPUTS/early"; echo up; sleep 100 & wait'
    order = await head.place(command=command, **runtime)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    await head.say(order, "stop", grace_s=1.0)
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert (finished["state"], finished["error"]["reason"]) == ("cancelled", "cancelled_by_user")
    assert [entry.path for entry in (await head.manifest(finished)).entries] == ["early"]


async def test_a_program_that_ignores_sigterm_is_killed_after_the_grace(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    order = await head.place(command="trap '' TERM; echo up; while true; do sleep 0.1; done", **runtime)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    await head.say(order, "stop", grace_s=0.5)
    finished = await head.until(lambda: head.told(order.job_id, "finished"))
    assert (finished["state"], finished["exit_code"]) == ("cancelled", 137)


async def test_forgetting_a_running_attempt_removes_it_without_a_word(
    head: Head, agent: AgentProcess, runtime: dict[str, Any]
) -> None:
    order = await head.place(command="echo up; sleep 100", **runtime)
    await head.say(order, "start")
    await head.until(lambda: "up" in head.text(order.job_id))
    await head.forget(order, agent)
    assert head.told(order.job_id, "finished") is None


async def test_many_attempts_run_at_once_and_leave_nothing(head: Head, agent: AgentProcess) -> None:
    async def run(number: int) -> None:
        order, finished = await head.run(image=IMAGE, command=f"echo {number} > $WHERRY_OUTPUTS/n; sleep 1")
        assert finished["state"] == "succeeded"
        (entry,) = (await head.manifest(finished)).entries
        assert entry.blob
        assert await head.read(entry.blob) == f"{number}\n".encode()
        await head.forget(order, agent)

    await asyncio.gather(*(run(number) for number in range(12)))


async def test_a_flood_of_output_is_cut_at_the_limit_and_said_so(head: Head, agent: AgentProcess) -> None:
    await agent.stop()
    await agent.start(WHERRY_LOG_BYTES_MAX="100000")
    command = "yes 0123456789 | head -n 40000; echo ::progress 1; echo ::metric loss=0.5; echo the end"
    order, finished = await head.run(command=command, image=IMAGE)
    manifest = await head.manifest(finished)
    assert manifest.stdout
    stdout = await head.read(manifest.stdout)
    assert 100_000 <= len(stdout) <= 100_200
    assert b"bytes are left out here; the first 75000 of the output are kept, and the last]\n" in stdout
    assert stdout.endswith(b"0123456789\n::progress 1\n::metric loss=0.5\nthe end\n")
    await head.until(lambda: any(b.progress and b.progress.fraction == 1 for _, b in head.batches))
    await head.until(lambda: "the end" in head.text(order.job_id))
    assert any("are kept, and" in line for line in head.text(order.job_id))
    lost = [one for job_id, batch in head.batches if job_id == order.job_id for one in batch.lost]
    missing = {n for one in lost for n in range(one.first, one.last + 1)}
    numbers = {line.n for line in head.lines[order.job_id]}
    assert not missing & numbers
    assert len(missing) > 1000
    assert missing | numbers == set(range(1, 40_000 + 3 + 2 + 1)), "each line has a number, two more by the mark"


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("runtime", ["process"], indirect=True)  # of containers tests/e2e/test_memory.py says the same
async def test_the_agent_stays_small_while_twice_as_much_goes_in_and_out(
    head: Head, agent: AgentProcess, runtime: dict[str, Any], tmp_path: Path
) -> None:
    await agent.stop()
    await agent.start()
    path = tmp_path / "source.zip"
    digest = hashlib.sha256()
    piece = random.Random(7).randbytes(1_000_000)
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as archive, archive.open("big.bin", "w") as big:
        for number in range(300):
            part = number.to_bytes(8, "big") + piece[8:]
            digest.update(part)
            big.write(part)

    async def pieces() -> AsyncIterator[bytes]:
        with path.open("rb") as file:
            while part := file.read(2**20):
                yield part

    source = (await head.gateway.upload(pieces(), BlobScope(owner_id="u1", name="source.zip"))).artifact_id
    command = 'cp big.bin "$WHERRY_OUTPUTS/big.bin"'
    order, finished = await head.run(500, command=command, source=source, **runtime)
    assert finished["state"] == "succeeded", finished
    (entry,) = (await head.manifest(finished)).entries
    assert entry.blob
    assert (entry.blob.sha256, entry.blob.size) == (digest.hexdigest(), 300_000_000)
    print(f"peak of the agent: {agent.peak_mb():.0f} MB")
    assert agent.peak_mb() < 150
    await head.forget(order, agent)


async def test_the_first_line_is_published_soon_after_the_order(head: Head, agent: AgentProcess) -> None:
    times: list[float] = []
    for _ in range(6):
        order = await head.place(command="echo hi", image=IMAGE)
        began = time.monotonic()
        await head.say(order, "start")
        await head.until(lambda order=order: head.text(order.job_id))
        times.append(head.output_at[order.job_id] - began)
        await head.until(lambda order=order: head.told(order.job_id, "finished"))
        await head.forget(order, agent)
    print("from wake to the first published line:", [f"{one:.3f}" for one in times])
    assert min(times) < 10.0  # its place is benchmarks; this finds what waits for something that never comes
