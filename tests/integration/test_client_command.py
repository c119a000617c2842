"""The `wherry` command and the SDK on a real gateway, storage, broker and database; nothing runs the jobs here."""

import asyncio
import json
import os
import secrets
import signal
import socket
import stat
import sys
import zipfile
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from client.wherry import AsyncClient, WherryError

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
async def wherry(storage: Any, tmp_path: Path) -> AsyncIterator[Shell]:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
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
    async with asyncio.timeout(30), httpx.AsyncClient() as http:
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
