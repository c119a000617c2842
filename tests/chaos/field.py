"""The real stack under test and all that looks at it: REST, the log as the operator reads it, the engine, the inbox."""

import asyncio
import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections import Counter
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
from pydantic import SecretStr

from infra.local.engine import STACK_LABEL, engine
from shared.bus import Bus
from shared.channels import DLQ, JOBS, Service
from shared.clock import utc_now
from shared.permissions import OPERATOR
from shared.settings import ServiceSettings
from shared.streams import DURABLES
from tests.chaos.checks import ENDS, Evidence, Hook, Logged
from tests.chaos.mix import OUT, Plan
from tests.e2e.stack import Stack

IMAGE = "wherry/busybox:latest"
_RETRY_S = 0.3
_AT_ONCE = 8  # requests of ours under way
#: So that failures under test are retried soon, and a service that is killed all the time is up for most of it.
SETTINGS = {
    "WHERRY_SCHEDULER_BACKOFF_FAILURE_S": "1",
    "WHERRY_RESTART_DELAY_MAX_S": "0.5",
    "WHERRY_SCHEDULER_LEADER_LEASE_S": "2",
    "WHERRY_SCHEDULER_LEADER_RENEW_S": "0.5",
    "WHERRY_MONGO_CACHE_GB": "0.25",
    "WHERRY_MONGO_OPLOG_MB": "64",
    "WHERRY_LOG_LEVEL": "info",
}


@dataclass
class Field:
    """A stack in which jobs are handed in and looked after. Use `laid_out`."""

    stack: Stack
    http: httpx.AsyncClient
    bus: Bus
    stack_id: str
    webhook_url: str
    starts_file: Path
    ended_at: dict[str, float] = field(default_factory=dict)  # by job, as the log says, in seconds since 1970
    changed: asyncio.Event = field(default_factory=asyncio.Event)
    gate: asyncio.Semaphore = field(default_factory=lambda: asyncio.Semaphore(_AT_ONCE))

    @property
    def run_file(self) -> Path:
        return self.stack.home / "run.json"

    @property
    def on_docker(self) -> bool:
        return self.stack.runtime == "docker"

    # --- jobs --------------------------------------------------------------------------------------------------

    async def submit(self, plan: Plan) -> str:
        """Hand in a job, as often as it takes to be answered with 202; return its id."""
        starts = None if self.on_docker else str(self.starts_file)
        spec = plan.spec(self.stack.runtime, self.stack.image, self.webhook_url, starts)
        form = {
            "spec": (None, json.dumps(spec), "application/json"),
            "source": ("source.zip", plan.source, "application/zip"),
        }
        body: dict[str, Any] = {"files": form} if plan.source else {"json": spec}
        answer = await self.ask("POST", "/jobs", headers={"Idempotency-Key": plan.key}, **body)
        assert answer.status_code == 202, answer.text
        return str(answer.json()["job_id"])

    async def cancel(self, job_id: str) -> None:
        answer = await self.ask("POST", f"/jobs/{job_id}/cancel")
        assert answer.status_code == 202, answer.text

    async def ask(self, method: str, path: str, **more: Any) -> httpx.Response:
        """Send a request until it is answered otherwise than by a fault (no connection, 429, 5xx)."""
        while True:
            with contextlib.suppress(httpx.TransportError):
                async with self.gate:
                    answer = await self.http.request(method, path, **more)
                if answer.status_code < 500 and answer.status_code != 429:
                    return answer
            await asyncio.sleep(_RETRY_S)

    async def until_ended(self, jobs: Iterable[str], timeout_s: float) -> bool:
        """Wait until the log has an end of each of *jobs*; return whether it has."""
        wanted = set(jobs)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while not wanted <= self.ended_at.keys():
                    self.changed.clear()
                    await self.changed.wait()
        return wanted <= self.ended_at.keys()

    async def follow(self) -> None:
        """Keep `ended_at`, for ever."""
        async for batch in self.bus.follow(JOBS, ["wherry.job.>"], start_seq=1):
            for message in batch:
                if message.params.get("event") in ENDS and message.event:
                    self.ended_at.setdefault(message.params["job_id"], message.event.time.timestamp())
            self.changed.set()

    # --- evidence ----------------------------------------------------------------------------------------------

    async def download(self, evidence: Evidence) -> None:
        """Fetch outputs and views of all jobs as a user would."""

        async def one(job_id: str, plan: Plan) -> None:
            shown = await self.ask("GET", f"/jobs/{job_id}")
            evidence.views[job_id] = shown.json()["state"] if shown.status_code == 200 else str(shown.status_code)
            if plan.size:
                got = await self.ask("GET", f"/jobs/{job_id}/outputs/{OUT}")
                evidence.outputs[job_id] = got.content if got.status_code == 200 else None

        await asyncio.gather(*(one(job_id, plan) for job_id, plan in evidence.accepted.items()))

    async def look(self, evidence: Evidence) -> None:
        """Take in what log, engine, broker and inbox show now."""
        await self._read_log(evidence)
        evidence.orphans = await asyncio.to_thread(self.orphans)
        evidence.pending = await self.pending()
        info = await self.bus.api(f"STREAM.INFO.{DLQ}", {})
        evidence.dead_letters = info["state"]["messages"]
        evidence.hooks = self.hooks()
        evidence.starts = self.starts()

    async def _read_log(self, evidence: Evidence) -> None:
        evidence.log.clear()
        async for batch in self.bus.follow(JOBS, ["wherry.job.>"], start_seq=1):
            if not batch:
                return
            for message in batch:
                if message.event is None:
                    continue  # planted
                job_id, name = message.subject.split(".")[-2:]
                job = json.loads(message.body)["data"]["job"]
                evidence.log[job_id].append(Logged(message.seq, name, message.event.time.timestamp(), job))

    async def pending(self) -> dict[str, int]:
        """Return what each durable consumer has not done, by its name."""
        found: dict[str, int] = {}
        for durable in DURABLES:
            info = await self.bus.api(f"CONSUMER.INFO.{durable.stream}.{durable.name}", {})
            found[durable.name] = info["num_pending"] + info["num_ack_pending"]
        return found

    def orphans(self) -> list[str]:
        """Return what is left of attempts: containers and volumes, or processes."""
        if not self.on_docker:
            return [f"process {pid} of {job}" for pid, job in _job_processes(self.stack.home)]
        docker = engine()
        assert docker, "the engine was there at the start"
        mine: dict[str, str | list[str] | bool] = {"label": f"{STACK_LABEL}={self.stack_id}"}
        containers = docker.containers.list(all=True, filters=mine, ignore_removed=True)
        volumes = docker.volumes.list(filters=mine)
        found = [f"container {one.name} ({one.status})" for one in containers]
        found += [f"volume {one.name}" for one in volumes]
        docker.close()
        return found

    def hooks(self) -> list[Hook]:
        """Return the webhooks that the stack's own receiver took."""
        found: list[Hook] = []
        for file in sorted((self.stack.home / "inbox").glob("*.json")):
            kept = json.loads(file.read_text())
            headers = {name.lower(): value for name, value in kept["headers"].items()}
            event = json.loads(kept["body"])
            name = event["type"].removeprefix("io.wherry.job.").partition(".")[0]
            found.append(Hook(kept["path"].lstrip("/"), headers["webhook-id"], event["subject"], name))
        return found

    def starts(self) -> Counter[tuple[str, int]]:
        """Return how often each attempt's program was started."""
        found: Counter[tuple[str, int]] = Counter()
        for line in self.starts_file.read_text().splitlines():
            job, _, attempt = line.partition(" ")
            found[job, int(attempt)] += 1
        return found

    async def settle(self, evidence: Evidence, timeout_s: float) -> float:
        """Wait until nothing is left to be done, or *timeout_s*; return how long that was, in seconds."""
        began = time.monotonic()
        expected = {plan.hook_path for plan in evidence.accepted.values() if plan.notify}
        while (spent := time.monotonic() - began) < timeout_s:
            left = await asyncio.to_thread(self.orphans)
            told = expected <= {hook.path for hook in self.hooks()}
            if not left and told and not any((await self.pending()).values()):
                break
            await asyncio.sleep(1)
        return spent


@contextlib.asynccontextmanager
async def laid_out(runtime: str, nodes: int) -> AsyncGenerator[Field]:
    """Start a stack in a folder of its own, which stays, with what looks at it; end all of it.

    Args:
        runtime: docker or process.
        nodes: how many agents, at least 1.
    """
    home = Path(tempfile.mkdtemp(prefix="wherry-chaos-"))
    more = ",".join(f"n{number}" for number in range(2, nodes + 1))
    env = SETTINGS | {"WHERRY_MORE_NODES": more}
    stack = await asyncio.to_thread(
        Stack.start, home, runtime=runtime, image=IMAGE if runtime == "docker" else None, env=env
    )
    try:
        async with contextlib.AsyncExitStack() as inside:
            yield await _field(stack, inside)
    finally:
        await asyncio.to_thread(_end, stack)


async def _field(stack: Stack, inside: contextlib.AsyncExitStack) -> Field:
    run = json.loads((stack.home / "run.json").read_text())
    http = await inside.enter_async_context(
        httpx.AsyncClient(base_url=stack.http.base_url, headers=stack.http.headers, timeout=httpx.Timeout(20))
    )
    bus = await inside.enter_async_context(operator(stack.home))
    starts = stack.home / "starts.txt"
    starts.touch()
    made = Field(stack, http, bus, run["stack_id"], run["sinks"]["webhook_url"], starts)
    if made.on_docker:
        inside.callback(_count_starts(made.stack_id, starts))
    following = asyncio.create_task(made.follow())
    inside.push_async_callback(_cancel, following)
    return made


def operator(home: Path) -> contextlib.AbstractAsyncContextManager[Bus]:
    """Connect to the stack's broker as the one that may do everything."""
    ports = json.loads((home / "ports.json").read_text())
    passwords = json.loads((home / "nats" / "passwords.json").read_text())
    settings = ServiceSettings(
        nats_url=f"nats://127.0.0.1:{ports['nats']}", nats_user=OPERATOR, nats_password=SecretStr(passwords[OPERATOR])
    )
    return Bus.connect(settings, Service.STORAGE, peer="chaos")


def _count_starts(stack_id: str, file: Path) -> Callable[[], None]:
    """Write a line for each start of a job's container, from now on; return how to stop that."""
    since = f"{utc_now().timestamp():.6f}"  # the engine keeps the last 256: none is missed while the command starts
    command = ["docker", "events", "--since", since]
    command += ["--filter", f"label={STACK_LABEL}={stack_id}", "--filter", "label=wherry.role=job"]
    names = '{{index .Actor.Attributes "wherry.job"}} {{index .Actor.Attributes "wherry.attempt"}}'
    with file.open("ab") as out:
        watching = subprocess.Popen([*command, "--filter", "event=start", "--format", names], stdout=out)

    def stop() -> None:
        watching.terminate()
        watching.wait(10)

    return stop


async def _cancel(task: asyncio.Task[None]) -> None:
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


def _end(stack: Stack) -> None:
    with contextlib.suppress(OSError, ValueError):
        for pid in json.loads((stack.home / "run.json").read_text())["pids"].values():
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)
    stack.stop()


def _job_processes(home: Path) -> list[tuple[int, str]]:
    """Return processes of jobs whose files are under *home*."""
    found: list[tuple[int, str]] = []
    for process in psutil.process_iter():
        with contextlib.suppress(psutil.Error):
            env = process.environ()
            if "WHERRY_JOB_ID" in env and str(home) in env.get("WHERRY_WORKSPACE", ""):
                found.append((process.pid, env["WHERRY_JOB_ID"]))
    return found


async def gather_limited(work: Iterable[Awaitable[Any]]) -> None:
    """Await all of *work*; the first exception ends it."""
    async with asyncio.TaskGroup() as group:
        for one in work:
            group.create_task(_await(one))


async def _await(one: Awaitable[Any]) -> None:
    await one
