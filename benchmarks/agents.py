"""Nodes that do nothing, quickly: they speak the real protocol on real credentials, and every job succeeds at once.

Run as ``python -m benchmarks.agents N URL PASSWORD…``; it heartbeats for N nodes ``sim-0`` … until it is killed.
"""

import asyncio
import json
import os
import sys
from contextlib import AsyncExitStack, suppress

from pydantic import SecretStr

from shared import channels, clock
from shared.bus import Bus, Record
from shared.channels import Service
from shared.events import AttemptFinished
from shared.fleet import Assignment, Capacity, Heartbeat, HeldAttempt, NodeInfo, Usage
from shared.settings import ServiceSettings
from shared.states import AttemptState

GIB = 1024**3


class SimulatedNode:
    """One node: heartbeats when woken, reports each attempt as succeeded, forgets it when told."""

    def __init__(self, node_id: str, bus: Bus) -> None:
        self._id = node_id
        self._bus = bus
        self._info = NodeInfo(id=node_id, name=node_id, runtimes=("docker", "process"))
        self._held: dict[tuple[str, int], str] = {}
        self._wake = asyncio.Event()
        self._seq = 0
        self._tasks: set[asyncio.Task[None]] = set()

    async def run(self) -> None:
        """Heartbeat for ever."""

        async def woken(_: object) -> None:
            self._wake.set()

        await self._bus.listen(channels.WAKE, woken, node_id=self._id)
        while True:
            answer = await self._bus.ask(channels.HEARTBEAT, self._heartbeat(), node_id=self._id, timeout_s=10)
            for assignment in answer.assignments:
                self._take(assignment)
            if not answer.more:
                with suppress(TimeoutError):
                    async with asyncio.timeout(answer.interval_s):
                        await self._wake.wait()
            self._wake.clear()

    def _heartbeat(self) -> Heartbeat:
        self._seq += 1
        held = tuple(HeldAttempt(job_id=job, attempt=n, state=state) for (job, n), state in self._held.items())
        return Heartbeat(
            node=self._info,
            session="sim",
            boot_id="sim",
            seq=self._seq,
            attempts=held,
            at=clock.utc_now(),
            capacity=Capacity(cpus=64, memory=256 * GIB, disk=4096 * GIB),
            usage=Usage(memory_available=256 * GIB, disk_free=4096 * GIB),
        )

    def _take(self, assignment: Assignment) -> None:
        key = (assignment.job_id, assignment.attempt)
        if assignment.action == "forget":
            self._held.pop(key, None)
        elif assignment.action == "start" and key not in self._held:
            self._held[key] = "running"
            task = asyncio.create_task(self._finish(*key))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)

    async def _finish(self, job_id: str, attempt: int) -> None:
        now = clock.utc_now()
        data = AttemptFinished(attempt=attempt, at=now, running_at=now, state=AttemptState.SUCCEEDED, exit_code=0)
        params = {"node_id": self._id, "job_id": job_id}
        event = self._bus.event(channels.ATTEMPT_FINISHED, data, subject=job_id, **params)
        await self._bus.record_grouped(Record(channels.ATTEMPT_FINISHED, params, event))
        self._held[job_id, attempt] = "succeeded"


async def main() -> None:
    """Connect and run every node."""
    url, passwords = os.environ["WHERRY_NATS_URL"], json.loads(os.environ["BENCH_PASSWORDS"])
    async with AsyncExitStack() as stack, asyncio.TaskGroup() as group:
        for node_id in sys.argv[1:]:
            settings = ServiceSettings(
                nats_url=url, nats_user=f"node-{node_id}", nats_password=SecretStr(passwords[f"node-{node_id}"])
            )
            bus = await stack.enter_async_context(Bus.connect(settings, Service.NODE_AGENT, peer=node_id))
            group.create_task(SimulatedNode(node_id, bus).run())


if __name__ == "__main__":
    asyncio.run(main())
