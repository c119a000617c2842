"""Waiting for what a job has said: however many wait, the broker is asked as often as for one."""

import asyncio
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

from services.storage.shell import arrivals
from services.storage.shell.arrivals import Arrivals
from services.storage.shell.jobs import ProjectionMark
from shared.clock import monotonic
from shared.job import Job, Owner
from shared.spec import JobSpec
from shared.states import JobState

NOW = datetime(2026, 1, 1, tzinfo=UTC)
ENDED = Job(
    id="j1", owner=Owner(id="u1", name="ann"), spec=JobSpec(image="busybox"), state=JobState.SUCCEEDED, attempt=1,
    created_at=NOW, updated_at=NOW, ended_at=NOW,
)  # fmt: skip


class Broker:
    """Has output of which the consumer has acknowledged what lies up to `floor`."""

    def __init__(self) -> None:
        self.asked = self.floor = 0

    async def last(self, *_: Any) -> Any:
        return SimpleNamespace(seq=7)

    async def api(self, *_: Any) -> dict[str, Any]:
        self.asked += 1
        await asyncio.sleep(0)
        return {"ack_floor": {"stream_seq": self.floor}}


async def test_many_who_wait_look_as_often_as_one(monkeypatch):
    monkeypatch.setattr(arrivals, "WAIT_S", 0.3)
    broker, began = Broker(), monotonic()
    waiting = Arrivals(broker, ProjectionMark())  # type: ignore[arg-type]
    await asyncio.gather(*(waiting.catch_up(ENDED) for _ in range(20)))
    assert broker.asked <= 1 + (monotonic() - began) / arrivals._LOOK_AGAIN_S


async def test_what_another_process_has_written_lets_all_of_them_go_on(monkeypatch):
    monkeypatch.setattr(arrivals, "WAIT_S", 60)
    broker = Broker()
    waiting = Arrivals(broker, ProjectionMark())  # type: ignore[arg-type]
    readers = [asyncio.create_task(waiting.catch_up(ENDED)) for _ in range(20)]
    await asyncio.sleep(0)
    assert not any(reader.done() for reader in readers)
    broker.floor = 7
    began = monotonic()
    await asyncio.gather(*readers)
    assert monotonic() - began < arrivals.WAIT_S
