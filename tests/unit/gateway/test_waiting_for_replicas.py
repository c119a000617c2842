"""Whoever asks a service without replicas waits for one, unless to wait is in vain."""

import asyncio
from datetime import timedelta
from typing import Any, cast

import pytest

from services.gateway.adapters.replica import Wish
from services.gateway.shell.serving import Serving
from shared.bus import Bus
from shared.channels import JOB_GET, Channel
from shared.clock import utc_now
from shared.errors import WherryError
from shared.job import Attempt, Job, Owner
from shared.requests.jobs import JobList, JobView
from shared.spec import JobSpec
from shared.states import AttemptState, JobState

SPEC = {"kind": "service", "image": "i", "service": {"port": 80}}
ASK = Wish("GET", "/", (), b"")


def job(job_id: str, **more: Any) -> Job:
    now = utc_now()
    owner = Owner(id="u1", name="anna")
    fields: dict[str, Any] = {"state": JobState.QUEUED, **more}
    return Job(id=job_id, owner=owner, spec=JobSpec.model_validate(SPEC), created_at=now, updated_at=now, **fields)


class OneService:
    """A bus that knows one service, and which of its replicas has failed last."""

    reconnects = 0

    def __init__(self, service: Job, failed: Job | None) -> None:
        self.service, self.failed = service, failed
        self.looks = 0

    async def listen(self, *_: object, **__: object) -> Any:
        """Nothing is ever heard."""
        return self

    async def stop(self) -> None:
        """As a handle."""

    async def ask(self, channel: Channel[Any, Any], _: object) -> Any:
        """Answer as storage does."""
        if channel is JOB_GET:
            self.looks += 1
            return JobView(job=self.service, seq=self.looks)
        return JobList(jobs=() if self.failed is None else (JobView(job=self.failed, seq=1),))


def failed(*, was_ready: bool) -> Job:
    now = utc_now()
    attempt = Attempt(
        number=1, node="n1", state=AttemptState.FAILED, placed_at=now, running_at=now if was_ready else None
    )
    return job("jreplica", state=JobState.FAILED, attempts=(attempt,))


async def refusal(bus: OneService, wait_s: float) -> WherryError:
    serving = Serving(cast("Bus", bus), cast("Bus", bus), wait_s, 1024)
    try:
        with pytest.raises(WherryError) as refused:
            await serving.ask("jservice", ASK, by="u1")
    finally:
        await serving.close()
    return refused.value


async def test_nobody_waits_for_a_model_whose_replicas_fail_before_they_are_ready() -> None:
    service = job("jservice", tries=2, not_before=utc_now() + timedelta(minutes=1))
    async with asyncio.timeout(30):
        refused = await refusal(OneService(service, failed(was_ready=False)), wait_s=3600)
    assert refused.code == "replicas_fail"


@pytest.mark.parametrize("last", [failed(was_ready=True), None])
async def test_what_was_ready_once_is_waited_for_as_long_as_any(last: Job | None) -> None:
    service = job("jservice", tries=2, not_before=utc_now() + timedelta(minutes=1))
    bus = OneService(service, last)
    began = asyncio.get_running_loop().time()
    assert (await refusal(bus, wait_s=0.2)).code == "unavailable"
    assert asyncio.get_running_loop().time() - began >= 0.19
