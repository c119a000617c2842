"""The `wherry` command and the SDK on a real gateway, storage, broker and database; nothing runs the jobs here."""

import asyncio
import json
import os
import secrets
import signal
import stat
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.wherry import AsyncClient, WherryError, __version__
from infra.local.ports import free_port
from shared.bus import Record
from shared.channels import DEAD_LETTER, EXPLAIN, FLEET, NODE_CHANGED, NODE_WISH, PLAN, REPLAY, Service
from shared.clock import utc_now
from shared.events import DeadLetter
from shared.fleet import NodeChange, NodeChanged, NodeRecord
from shared.model import Empty
from shared.requests.explain import ExplainQuery, Explanation, PlanQuery
from shared.states import NodeCondition, NodeDuty

ROOT = Path(__file__).resolve().parents[2]
PASSWORD = "the admin's password"


@dataclass
class Answer:
    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        return json.loads(self.out)


@dataclass
class Shell:
    """Somebody at a shell without a terminal."""

    url: str
    env: dict[str, str]

    async def __call__(self, *args: str, **env: str) -> Answer:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "client.wherry", *args, cwd=ROOT, env=self.env | env,
            stdin=asyncio.subprocess.DEVNULL, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        out, err = await process.communicate()
        assert process.returncode is not None
        assert b"Traceback" not in err, err.decode()
        return Answer(process.returncode, out.decode(), err.decode())


@pytest.fixture
async def wherry(storage: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Shell]:
    monkeypatch.setattr("services.storage.shell.jobs.WAIT_S", 60.0)  # lists have what was handed in, however busy it is
    port = free_port()
    settings = storage.settings("gateway")
    env = os.environ | {
        "WHERRY_NATS_URL": settings.nats_url,
        "WHERRY_NATS_USER": "gateway",
        "WHERRY_NATS_PASSWORD": settings.nats_password.get_secret_value(),
        "WHERRY_GATEWAY_KEY": secrets.token_hex(32),
        "WHERRY_PORT": str(port),
    }
    with (tmp_path / "gateway.log").open("wb") as log:
        gateway = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "services.gateway", cwd=ROOT, env=env, stderr=log
        )
    url = f"http://127.0.0.1:{port}"
    try:
        await _until_ready(url, gateway, tmp_path / "gateway.log")
        clean = {key: value for key, value in os.environ.items() if not key.startswith("WHERRY_")}
        yield Shell(url, clean | {"XDG_CONFIG_HOME": str(tmp_path / "config"), "PYTHONWARNINGS": "default"})
    finally:
        if gateway.returncode is None:
            gateway.send_signal(signal.SIGTERM)
        await gateway.wait()


async def _until_ready(url: str, gateway: asyncio.subprocess.Process, log: Path) -> None:
    async with asyncio.timeout(120), httpx.AsyncClient() as http:
        while gateway.returncode is None:
            try:
                if (await http.get(f"{url}/readyz")).status_code == 200:
                    return
            except httpx.TransportError:
                await asyncio.sleep(0.05)
        raise AssertionError(await asyncio.to_thread(log.read_text))


async def test_a_user_logs_in_hands_in_looks_around_and_logs_out(wherry: Shell, tmp_path: Path):
    refused = await wherry("jobs")
    assert refused.code == 3
    assert "wherry login" in refused.err

    wrong = await wherry("login", wherry.url, "--user", "admin", WHERRY_PASSWORD="wrong")
    assert wrong.code == 3
    done = await wherry("login", wherry.url, "--user", "admin", WHERRY_PASSWORD=PASSWORD)
    assert done.code == 0, done.err
    kept = tmp_path / "config/wherry/config.json"
    assert stat.S_IMODE(kept.stat().st_mode) == 0o600
    assert (await wherry("whoami", "--json")).json["user"] == "admin"
    assert (await wherry("--json", "status")).json["system_name"] == "wherry"
    assert (await wherry("--json", "nodes")).json == {"nodes": []}

    folder = tmp_path / "job"
    (folder / "lib").mkdir(parents=True)
    (folder / "run.sh").write_text("echo hello\n")
    (folder / "lib/größe.py").write_text("x = 1\n")
    sent = await wherry(
        "submit", str(folder), "--image", "busybox", "--command", "sh ./run.sh", "--label", "mine", "--param", "n=3"
    )
    assert sent.code == 0, sent.err
    job_id = sent.out.strip()
    shown = (await wherry("show", job_id, "--json")).json
    assert (shown["name"], shown["state"], shown["labels"]) == ("job", "queued", ["mine"])
    assert shown["spec"]["params"] == {"n": 3}
    assert job_id in (await wherry("show", job_id)).out

    again = await wherry("--json", "rerun", job_id)
    listed = (await wherry("jobs", "--json", "--label", "mine")).json["jobs"]
    assert {job["job_id"] for job in listed} == {job_id, again.json["job_id"]}
    assert (await wherry("jobs", "--json", "--label", "other")).json == {"jobs": []}
    assert "job" in (await wherry("jobs")).out
    cancelled = await wherry("--json", "cancel", job_id)
    assert cancelled.json["job_id"] == job_id

    assert (await wherry("logout")).code == 0
    assert (await wherry("jobs")).code == 3
    assert PASSWORD not in kept.read_text()


async def test_every_mistake_has_its_exit_code_and_a_sentence(wherry: Shell, tmp_path: Path):
    await wherry("login", wherry.url, "-u", "admin", WHERRY_PASSWORD=PASSWORD)
    usage = await wherry("submit", "--env", "nonsense", "--image", "x", "--command", "y")
    assert (usage.code, "NAME=VALUE" in usage.err) == (2, True)
    missing = await wherry("show", "jnothing", "--json")
    assert (missing.code, json.loads(missing.err)["error"]["status"]) == (4, 404)
    refused = await wherry("submit", "--image", "x", "--command", "y", "--cpus", "0")
    assert (refused.code, "cpus" in refused.err) == (4, True)
    empty = tmp_path / "empty"
    empty.mkdir()
    nothing = await wherry("submit", str(empty), "--image", "x", "--command", "y")
    assert (nothing.code, "no files" in nothing.err) == (5, True)
    away = await wherry("jobs", WHERRY_URL="http://127.0.0.1:9", WHERRY_TOKEN="x")
    assert (away.code, "cannot reach http://127.0.0.1:9" in away.err) == (3, True)
    no_password = await wherry("login", wherry.url, "-u", "admin")
    assert (no_password.code, "WHERRY_PASSWORD" in no_password.err) == (2, True)


async def test_the_stack_of_this_folder_is_logged_in_to_by_one_word(wherry: Shell, tmp_path: Path):
    facts = {"url": wherry.url, "user": "admin", "password": PASSWORD}
    (tmp_path / "credentials.json").write_text(json.dumps(facts))
    assert (await wherry("login", "--local", WHERRY_HOME=str(tmp_path))).code == 0
    assert (await wherry("whoami", "--json")).json["role"] == "admin"


async def test_the_sdk_and_the_gateway_mean_the_same(wherry: Shell, tmp_path: Path):
    async with AsyncClient(wherry.url) as client:
        session = await client.login("admin", PASSWORD)
        assert session.user == "admin"
        assert [user.name for user in await client.users()] == ["admin"]

        path = tmp_path / "größe x.zip"
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("run.sh", "echo\n")
            archive.writestr("big.bin", os.urandom(3_000_000))
        artifact = await client.put_artifact(path)
        assert artifact.size == path.stat().st_size
        assert await client.get_artifact(artifact.artifact_id, tmp_path / "back") == artifact.sha256
        assert (tmp_path / "back").read_bytes() == path.read_bytes()

        spec = {"image": "busybox", "command": "sh ./run.sh"}
        first = await client.submit(spec, path, key="once")
        assert await client.submit(spec, path, key="once") == first
        with pytest.raises(WherryError) as caught:
            await client.submit(spec | {"name": "other"}, path, key="once")
        assert caught.value.status == 409
        assert [job.job_id async for job in client.jobs(states=["queued"])] == [first.job_id]
        assert [event["type"] for event in await client.events(first.job_id)] == ["io.wherry.job.created.v1"]
        assert await client.outputs(first.job_id) == []
        assert await client.metrics(first.job_id) == []
        assert await client.notifications(first.job_id) == []
        assert [line async for line in client.logs(first.job_id)] == []
        with pytest.raises(WherryError, match="queued"):
            await client.wait(first.job_id, 0.5)
        with pytest.raises(WherryError) as caught:
            await client.submit({"image": "x", "comand": "typo"})
        assert "comand" in {problem.field for problem in caught.value.fields}
        assert "command" in caught.value.detail
        await client.logout()
        client_again = AsyncClient(wherry.url, session.token)
        with pytest.raises(WherryError) as caught:
            await client_again.whoami()
        assert caught.value.code == "unauthenticated"
        await client_again.close()


async def _said_of(storage: Any, node_id: str, **fields: Any) -> None:
    """Record something of a node, as the scheduler does."""
    whole = {"id": node_id, "name": "box", "since": utc_now()} | fields
    async with storage.bus(Service.SCHEDULER) as bus:
        event = bus.event(NODE_CHANGED, NodeChanged(node=NodeRecord(**whole), epoch=1), subject=node_id)
        await bus.record(Record(NODE_CHANGED, {"node_id": node_id}, event))


async def _forget_asked(storage: Any, after: int = 0) -> int:
    """Return the sequence of the wish that n1 be forgotten, once there is one behind *after*."""
    async with storage.bus(Service.SCHEDULER) as bus, asyncio.timeout(120):
        while (wish := await bus.last(FLEET, NODE_WISH.subject(node_id="n1", verb="forget"))) is None or (
            wish.seq <= after
        ):
            await asyncio.sleep(0.05)
        return wish.seq


async def _shows(wherry: Shell, text: str, *args: str) -> Answer:
    async with asyncio.timeout(120):
        while text not in (answer := await wherry(*args)).out:
            await asyncio.sleep(0.2)
    return answer


async def test_an_administrator_looks_after_nodes_users_and_dead_letters(wherry: Shell, storage: Any):
    await wherry("login", wherry.url, "-u", "admin", WHERRY_PASSWORD=PASSWORD)
    assert "no machines" in (await wherry("nodes")).err
    await _said_of(storage, "n1", condition=NodeCondition.SUSPECT, reason="silent")
    assert "suspect" in (await _shows(wherry, "box", "nodes")).out
    missing = await wherry("nodes", "drain", "nobody")
    assert (missing.code, "nobody" in missing.err) == (4, True)

    drain = asyncio.create_task(wherry("nodes", "drain", "box", "--deadline", "10m", "--reason", "new disk", "--wait"))
    async with storage.bus(Service.SCHEDULER) as bus, asyncio.timeout(120):
        while (wish := await bus.last(FLEET, NODE_WISH.subject(node_id="n1", verb="drain"))) is None:
            await asyncio.sleep(0.05)
    assert wish.data
    assert (wish.data.deadline_s, wish.data.reason, wish.data.by) == (600, "new disk", "admin")
    assert not drain.done()
    await _said_of(storage, "n1", condition=NodeCondition.LOST, duty=NodeDuty.DRAINED, reason="new disk")
    drained = await drain
    assert (drained.code, "box is drained" in drained.err) == (0, True)
    assert "new disk" in (await wherry("nodes", "show", "n1")).out
    asked = await wherry("nodes", "forget", "n1")
    assert (asked.code, "asked for" in asked.err, "forgotten" in asked.err) == (0, True, False)
    first = await _forget_asked(storage)
    refusing = asyncio.create_task(wherry("nodes", "forget", "n1", "--wait"))
    second = await _forget_asked(storage, first)
    kept = NodeChange(at=utc_now(), what="not_forgotten", reason="an exclusive job may still run there")
    await _said_of(storage, "n1", condition=NodeCondition.LOST, history=(kept,))
    refused = await refusing
    assert (refused.code, "is not forgotten: an exclusive job" in refused.err) == (1, True)
    forgetting = asyncio.create_task(wherry("nodes", "forget", "n1", "--wait", "--force"))
    await _forget_asked(storage, second)
    await _said_of(storage, "n1", condition=NodeCondition.LOST, forgotten=True)
    forgotten = await forgetting
    assert (forgotten.code, "box is forgotten" in forgotten.err) == (0, True)
    wrong = await wherry("nodes", "drain", "n1", "--deadline", "soon")
    assert (wrong.code, "no duration" in wrong.err) == (4, True)

    assert "admin" in (await wherry("users")).out
    assert "none" in (await wherry("users", "quota")).out
    await wherry("users", "quota", "admin", "--cpus", "8", "--memory", "64GiB")
    kept = (await wherry("users", "quota", "admin", "--queued", "0", "--json")).json["quota"]
    assert (kept["cpus"], kept["memory"], kept["queued"], kept["gpus"]) == (8, 64 * 1024**3, 0, None)
    async with asyncio.timeout(120):
        while (refused := await wherry("run", "--image", "x", "--command", "y")).code == 0:
            pass
    assert (refused.code, "quota lets 0 wait" in refused.err) == (4, True)
    assert (await wherry("users", "quota", "admin", "--remove", "--json")).json["quota"] is None
    assert (await wherry("users", "quota", "admin", "--remove", "--cpus", "1")).code == 2

    assert "no dead letters" in (await wherry("dead-letters", "--reader", "notifier")).err
    letter = DeadLetter(
        id="WHERRY_JOBS.7.notifier", stream="WHERRY_JOBS", seq=7, reader="notifier", target="wherry.job.u.j.failed",
        reason="no job in it", body="e30=", at=utc_now(),
    )  # fmt: skip
    async with storage.bus(Service.NOTIFIER) as bus:
        await bus.record(Record(DEAD_LETTER, {"reader": "notifier"}, bus.event(DEAD_LETTER, letter, subject=letter.id)))
        listed = await _shows(wherry, letter.id, "dead-letters")
        assert "no job in it" in listed.out
        heard: asyncio.Queue[Any] = asyncio.Queue()

        async def take(_: dict[str, str], asked: DeadLetter) -> Empty:
            heard.put_nowait(asked)
            return Empty()

        await bus.serve(REPLAY, take, queue=None, reader="notifier")
        assert (await wherry("dead-letters", "replay", letter.id)).code == 0
        async with asyncio.timeout(60):
            assert (await heard.get()).id == letter.id
    assert (await wherry("dead-letters", "replay", "nothing")).code == 4


async def test_a_job_is_planned_chained_and_explained(wherry: Shell, storage: Any, tmp_path: Path):
    await wherry("login", wherry.url, "-u", "admin", WHERRY_PASSWORD=PASSWORD)
    assert (await wherry("--version")).out == f"wherry {__version__}\n"

    async def plan(_: dict[str, str], query: PlanQuery) -> Explanation:
        return Explanation(state="queued", never=True, text=f"Nobody has {query.spec.resources.cpus:g} cpus.")

    async def explain(_: dict[str, str], query: ExplainQuery) -> Explanation:
        return Explanation(state="queued", ahead=2, queue_length=3, text=f"{query.job_id} waits.")

    async with storage.bus(Service.SCHEDULER) as bus:
        await bus.serve(PLAN, plan, queue="scheduler")
        await bus.serve(EXPLAIN, explain, queue="scheduler")
        (tmp_path / "folder").mkdir()
        spec = ("--image", "x", "--command", "y")
        for command in (("plan",), ("run", "--plan"), ("submit", "--plan")):
            planned = await wherry(*command, str(tmp_path / "folder"), *spec, "--cpus", "99")
            assert (planned.code, "Nobody has 99 cpus." in planned.out, "never" in planned.out) == (0, True, True)
        assert (await wherry("plan", *spec, "--follow")).code == 2
        assert (await wherry("jobs", "--json")).json == {"jobs": []}

        first = (await wherry("run", *spec)).out.strip()
        second = await wherry(
            "run", *spec, "--need", f"{first}:always", "--input", f"data=job:{first}/out", "--on-disconnect", "stop",
            "--replace-after", "10m", "--exclusive",
        )  # fmt: skip
        shown = (await wherry("show", second.out.strip(), "--json")).json
        assert shown["needs"] == [{"job": first, "on": "always"}]
        kept = shown["spec"]
        assert (kept["on_disconnect"], kept["replace_after"], kept["exclusive"]) == ("stop", 600, True)
        assert kept["inputs"] == {"data": f"job:{first}/out"}
        text = (await wherry("show", second.out.strip())).out
        assert ("handed in, waits for what it needs" in text, f"{first} (however)" in text) == (True, True)
        explained = await wherry("explain", first)
        assert explained.code == 0
        assert (f"{first} waits." in explained.out, "2 jobs before it" in explained.out) == (True, True)
        wrong = await wherry("run", *spec, "--need", f"{first}:sometimes")
        assert (wrong.code, "always" in wrong.err) == (4, True)
        lost = await wherry("run", *spec, "--input", "data=job:jaaaaaaaaaaaaaaaaaaaaaaaaa")
        assert (lost.code, "inputs.data" in lost.err) == (4, True)


async def test_the_sdk_knows_the_fleet_and_quotas(wherry: Shell, storage: Any):
    await _said_of(storage, "n1")
    async with AsyncClient(wherry.url) as client:
        await client.login("admin", PASSWORD)
        async with asyncio.timeout(120):
            while not (nodes := await client.nodes()):
                await asyncio.sleep(0.05)
        assert [(node.id, node.condition, node.duty) for node in nodes] == [("n1", "online", "active")]
        assert (await client.clusters())[0].nodes[0].id == "n1"
        for asked in (client.cordon("n1", reason="x"), client.undrain("n1"), client.drain("box", deadline=5)):
            assert (await asked).id == "n1"
        with pytest.raises(WherryError) as caught:
            await client.forget_node("n1")
        assert (caught.value.status, "Drain it" in caught.value.detail) == (409, True)
        set_ = await client.set_quota("admin", {"gpus": 2})
        assert (set_.quota and set_.quota.gpus, (await client.quota()).user) == (2, "admin")
        await client.remove_quota("me")
        assert (await client.quota()).quota is None
        assert await client.dead_letters(reader="nobody") == []
        with pytest.raises(WherryError) as caught:
            await client.replay("x")
        assert caught.value.status == 404
