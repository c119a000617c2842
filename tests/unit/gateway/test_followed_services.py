"""Which services a gateway hears of: as many as are asked for, each once, and as they are now."""

import asyncio
from typing import Any, cast

import pytest

from services.gateway.shell.serving import Serving
from shared.bus import Bus
from shared.channels import Channel
from shared.clock import utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.job import GangMember, Job, Owner
from shared.requests.jobs import JobQuery, JobView
from shared.spec import JobSpec
from shared.states import JobState

SPEC = {"kind": "service", "image": "i", "service": {"port": 80}}


class Services:
    """A bus that knows some services; storage answers once it is let."""

    def __init__(self, *job_ids: str) -> None:
        self.reconnects = 0
        self.seqs = dict.fromkeys(job_ids, 1)
        self.asked = self.heard = 0
        self.failure: WherryError | None = None
        self.lets_answer = asyncio.Event()
        self.lets_answer.set()

    async def listen(self, *_: object, **__: object) -> Any:
        """Count who is heard."""
        self.heard += 1
        return self

    async def stop(self) -> None:
        """As a handle."""
        self.heard -= 1

    async def ask(self, _: Channel[Any, Any], query: JobQuery) -> JobView:
        """Answer as storage does: the node of a service's replica is called after the event that it was placed by."""
        self.asked += 1
        await self.lets_answer.wait()
        if self.failure is not None:
            raise self.failure
        if query.job_id not in self.seqs:
            raise NotFound("There is no such job.")
        return JobView(job=service(query.job_id, self.seqs[query.job_id]), seq=self.seqs[query.job_id])


def service(job_id: str, seq: int) -> Job:
    now = utc_now()
    replica = GangMember(job_id="jr", role="replica", index=0, node=f"n{seq}", state=JobState.RUNNING, placed_at=now)
    spec = JobSpec.model_validate(SPEC)
    owner = Owner(id="u1", name="anna")
    return Job(id=job_id, owner=owner, spec=spec, members=(replica,), created_at=now, updated_at=now)


def serving(bus: Services) -> Serving:
    return Serving(cast("Bus", bus), cast("Bus", bus), 1.0, 1024)


async def test_a_service_that_several_ask_for_at_once_is_heard_once() -> None:
    bus = Services("j1")
    bus.lets_answer.clear()
    gateway = serving(bus)
    asking = [asyncio.create_task(gateway.job("j1")) for _ in range(5)]
    await asyncio.sleep(0)
    asking[0].cancel()  # whoever asked first goes away
    await asyncio.sleep(0)
    bus.lets_answer.set()
    assert [one.id for one in await asyncio.gather(*asking[1:])] == ["j1"] * 4
    assert (bus.heard, bus.asked) == (1, 1)
    await gateway.close()
    assert bus.heard == 0


async def test_nothing_is_kept_of_services_that_there_are_not() -> None:
    bus = Services()
    gateway = serving(bus)
    for number in range(10):
        with pytest.raises(NotFound):
            await gateway.job(f"j{number}")
    assert bus.heard == 0
    assert not gateway._beginning  # pyright: ignore[reportPrivateUsage]


async def test_who_waits_for_a_storage_that_is_away_waits_no_longer_for_others() -> None:
    bus = Services("j1")
    bus.failure = Unavailable("Storage is away.")
    gateway = serving(bus)
    outcomes = await asyncio.gather(*(gateway.job("j1") for _ in range(5)), return_exceptions=True)
    assert [type(one) for one in outcomes] == [Unavailable] * 5
    assert (bus.heard, bus.asked) == (0, 1)


async def test_after_a_lost_connection_a_service_is_looked_at_until_storage_answers() -> None:
    bus = Services("j1")
    gateway = serving(bus)
    assert (await gateway.job("j1")).members[0].node == "n1"
    bus.reconnects, bus.seqs["j1"], bus.failure = 1, 2, Unavailable("Storage is away.")
    with pytest.raises(Unavailable):
        await gateway.job("j1")
    bus.failure = None
    assert (await gateway.job("j1")).members[0].node == "n2"
    asked = bus.asked
    await gateway.job("j1")
    assert bus.asked == asked


async def test_those_asked_for_longest_ago_are_forgotten(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("services.gateway.shell.serving._FOLLOWED_MAX", 2)
    bus = Services("j1", "j2", "j3")
    gateway = serving(bus)
    for job_id in ("j1", "j2", "j1", "j3"):
        await gateway.job(job_id)
    assert bus.heard == 2
    asked = bus.asked
    await gateway.job("j1")
    assert bus.asked == asked
    await gateway.job("j2")
    assert bus.asked == asked + 1
