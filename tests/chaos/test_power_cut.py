"""The power fails while jobs are handed in and artifacts are put: nothing that was acknowledged is lost.

Asked for with WHERRY_TEST_POWER=1, as root: servers write to disks in files, are stopped, and are started again on a
copy of what had reached the disk.
"""

import contextlib
import hashlib
import os
import signal
import threading
import time
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import pytest

from infra.local.servers import NatsServer
from shared.channels import JOBS, Service
from shared.permissions import OPERATOR
from tests.chaos.disk import MIB, LoopDisk, loop_disk, why_not
from tests.integration.gateway_stack import ADMIN, SPEC, GatewayStack

REASON = "set WHERRY_TEST_POWER=1 to cut the power" if not os.environ.get("WHERRY_TEST_POWER") else why_not()
pytestmark = [
    pytest.mark.power,
    pytest.mark.alone,
    pytest.mark.slow,
    pytest.mark.timeout(240),
    pytest.mark.skipif(REASON is not None, reason=REASON or ""),
]
#: The streams may grow to more than 8 GiB together, and the server wants to see that room. It is not used.
NATS_DISK = 16 * 1024 * MIB
WRITE_S, WRITERS = 6.0, 4
ARTIFACT_BYTES = 700_000  # more than one chunk


@dataclass
class Acknowledged:
    """What was answered with 202 and 201: job ids, and artifact ids with their SHA-256."""

    jobs: list[str] = field(default_factory=list)
    artifacts: dict[str, str] = field(default_factory=dict)


@dataclass
class Machine:
    """Servers on two disks, and the services that need none."""

    stack: GatewayStack
    nats: LoopDisk
    mongo: LoopDisk
    token: str = ""

    def client(self) -> httpx.Client:
        return httpx.Client(
            base_url=f"{self.stack.url}/v1", headers={"Authorization": f"Bearer {self.token}"}, timeout=30
        )

    def cut_power(self) -> None:
        """Lose what has not reached the disks, and start again from what has."""
        servers = (self.stack.nats, self.stack.mongo)
        for server in servers:
            assert server.pid
            os.kill(server.pid, signal.SIGSTOP)
        disks = {disk: disk.copy() for disk in (self.nats, self.mongo)}
        for server in servers:
            server.kill()
        for name in ("services.gateway", "services.storage"):
            self.stack.processes[name].kill()
            self.stack.processes[name].wait()
        for disk, copied in disks.items():
            disk.replace(copied)
        for server in servers:
            server.start(60)
        self.stack.start_storage()
        self.stack.start_gateway()


@contextlib.contextmanager
def machine(home: Path, *, sync_always: bool = True) -> Generator[Machine]:
    with contextlib.ExitStack() as inside:
        nats = inside.enter_context(loop_disk(home / "nats.img", home / "nats", NATS_DISK))
        mongo = inside.enter_context(loop_disk(home / "mongo.img", home / "mongo", 768 * MIB))
        stack = GatewayStack(home)
        if not sync_always:
            stack.nats = NatsServer(home / "nats", stack.nats.accounts, sync_always=False)
        inside.enter_context(stack)
        made = Machine(stack, nats, mongo)
        login = httpx.post(f"{stack.url}/v1/login", auth=ADMIN, timeout=30)
        made.token = login.json()["token"]
        os.sync()  # the streams and the set-up of MongoDB are older than the cut
        yield made


def write_until(machine: Machine, stop: threading.Event, acknowledged: Acknowledged, number: int) -> None:
    """Hand in jobs and put artifacts, until the power is gone."""
    with machine.client() as http, contextlib.suppress(httpx.TransportError):
        while not stop.is_set():
            for _ in range(10):
                answer = http.post("/jobs", json=SPEC)
                if answer.status_code != 202:
                    return
                acknowledged.jobs.append(answer.json()["job_id"])
            if number % 2:
                body = os.urandom(ARTIFACT_BYTES)
                answer = http.put("/artifacts", content=body, headers={"Content-Type": "application/octet-stream"})
                if answer.status_code == 201:
                    acknowledged.artifacts[answer.json()["artifact_id"]] = hashlib.sha256(body).hexdigest()


def write_and_cut(machine: Machine) -> Acknowledged:
    acknowledged, stop = Acknowledged(), threading.Event()
    writers = [
        threading.Thread(target=write_until, args=(machine, stop, acknowledged, number)) for number in range(WRITERS)
    ]
    for writer in writers:
        writer.start()
    time.sleep(WRITE_S)
    try:
        machine.cut_power()
    finally:
        stop.set()
        for writer in writers:
            writer.join()
    return acknowledged


async def kept_jobs(machine: Machine) -> set[str]:
    """Return the ids of all jobs that the stream has."""
    found: set[str] = set()
    async with machine.stack.bus(Service.STORAGE, OPERATOR) as bus:
        async for batch in bus.follow(JOBS, ["wherry.job.*.*.created"], start_seq=1):
            if not batch:
                break
            found |= {message.subject.split(".")[3] for message in batch if message.event}
    return found


async def test_no_acknowledged_job_and_no_listed_artifact_is_lost(tmp_path: Path) -> None:
    with machine(tmp_path) as cut:
        acknowledged = write_and_cut(cut)
        print(f"acknowledged: {len(acknowledged.jobs)} jobs, {len(acknowledged.artifacts)} artifacts")
        assert len(acknowledged.jobs) > 50
        assert len(acknowledged.artifacts) > 5
        assert set(acknowledged.jobs) <= await kept_jobs(cut)
        with cut.client() as http:
            for job_id in acknowledged.jobs[-50:]:
                assert http.get(f"/jobs/{job_id}").status_code == 200
            for artifact_id, sha256 in acknowledged.artifacts.items():
                got = http.get(f"/artifacts/{artifact_id}")
                assert got.status_code == 200, got.text
                assert hashlib.sha256(got.content).hexdigest() == sha256


async def test_a_broker_that_syncs_later_loses_acknowledged_jobs(tmp_path: Path) -> None:
    """What shows that the cut is one: with the server's own default the same test finds jobs missing."""
    with machine(tmp_path, sync_always=False) as cut:
        acknowledged = write_and_cut(cut)
        assert set(acknowledged.jobs) - await kept_jobs(cut)
