"""Job events as they are kept and as they happen: one stream without gap or duplicate."""

import asyncio
import json
from collections.abc import AsyncGenerator
from contextlib import aclosing, suppress
from dataclasses import dataclass

from services.gateway.core import sse
from services.gateway.shell.gateway import Gateway
from shared.channels import JOB_EVENTS, JOB_FEED, JOB_GET
from shared.clock import monotonic
from shared.errors import Unavailable, WherryError
from shared.requests.jobs import EventQuery, JobQuery, StoredEvent
from shared.states import JOB_TERMINAL

_PAGE = 500
#: How long storage may lag behind what was already heard live.
_CATCH_UP_S = 10.0
_CATCH_UP_PAUSE_S = 0.05
#: Seconds for an answer when nothing was heard for a while: where storage is away, what is heard must not wait long.
_LOOK_S = 3.0


@dataclass(frozen=True, slots=True)
class Scope:
    """Whose events: of one job, of one owner, or (both None) of everybody."""

    job_id: str | None = None
    owner_id: str | None = None

    @property
    def params(self) -> dict[str, str]:
        """Return what narrows the feed."""
        named = {"job_id": self.job_id, "owner": self.owner_id}
        return {key: value for key, value in named.items() if value is not None}


@dataclass(frozen=True, slots=True)
class _Told:
    """One event: its place in the log, its CloudEvents type, and its JSON."""

    seq: int
    kind: str
    body: bytes

    @property
    def is_end(self) -> bool:
        return self.kind.split(".")[-2] in JOB_TERMINAL

    @property
    def frame(self) -> bytes:
        return sse.frame(self.body, event=self.kind, event_id=self.seq)


async def follow(gateway: Gateway, scope: Scope, after_seq: int) -> AsyncGenerator[bytes, None]:
    """Give the server-sent events after *after_seq*, stored ones first, then live; one job's end with its last."""
    async with aclosing(_Reader(gateway, scope, after_seq).run()) as reading:
        async for told in reading:
            yield told.frame if told else sse.HEARTBEAT
            if told and scope.job_id and told.is_end:
                return


class _Reader:
    """Listens first, then reads what is kept, then goes over to what is heard.

    What was published before the listening began may not be kept yet when it is read. So the first event that is heard
    (and the first after every lost connection) is a reason to read on in the store until it has been reached there:
    the store fills in order of the log.
    """

    def __init__(self, gateway: Gateway, scope: Scope, after_seq: int) -> None:
        self._gateway = gateway
        self._scope = scope
        self._last = after_seq
        self._finished = False
        self._in_step_since: int | None = None  # count of reconnects for which nothing can have been missed

    async def run(self) -> AsyncGenerator[_Told | None, None]:
        """Give events in order, None where nothing happened for a while."""
        gateway = self._gateway
        async with gateway.live((JOB_FEED, self._scope.params)) as inbox:
            async for told in self._begin():
                yield told
            while not self._finished and not gateway.stopping.is_set():
                heard = await inbox.get(gateway.settings.heartbeat_s)
                if heard is None:
                    yield None
                    async for told in self._look():
                        yield told
                elif heard.seq > self._last and heard.event is not None:
                    async for told in self._reach(heard.seq):
                        yield told
                    if heard.seq > self._last:
                        self._last = heard.seq
                        yield _Told(heard.seq, heard.event.type, heard.body)

    async def _begin(self) -> AsyncGenerator[_Told, None]:
        if self._scope.job_id is None:
            async for told in self._stored():
                yield told
            return
        reconnects = self._gateway.bus.reconnects
        view = await self._gateway.ask(JOB_GET, JobQuery(job_id=self._scope.job_id))
        async for told in self._stored(until=view.seq):
            yield told
        self._in_step_since = reconnects
        self._finished = view.job.is_terminal

    async def _reach(self, seq: int) -> AsyncGenerator[_Told, None]:
        reconnects = self._gateway.bus.reconnects
        if self._in_step_since != reconnects:
            async for told in self._stored(until=seq):
                yield told
            self._in_step_since = reconnects

    async def _look(self) -> AsyncGenerator[_Told, None]:
        """Give what is kept and was not heard; where storage is away there is another look after the next silence."""
        with suppress(Unavailable):
            async for told in self._stored(timeout_s=_LOOK_S, retry_s=0):
                yield told

    async def _stored(
        self, until: int = 0, *, timeout_s: float | None = None, retry_s: float = 10
    ) -> AsyncGenerator[_Told, None]:
        """Give what is kept after the last one given; wait for it to be kept up to *until*."""
        give_up_at = monotonic() + _CATCH_UP_S
        while True:
            page = await self._gateway.bus.ask(
                JOB_EVENTS,
                EventQuery(job_id=self._scope.job_id, owner_id=self._scope.owner_id, after_seq=self._last, limit=_PAGE),
                timeout_s=timeout_s,
                retry_s=retry_s,
            )
            for stored in page.events:
                self._last = stored.seq
                yield _told(stored)
            if self._last >= until and len(page.events) < _PAGE:
                return
            if not page.events:
                if monotonic() > give_up_at:
                    raise WherryError("unavailable", f"The log is not kept up to {until} yet.", retryable=True)
                await asyncio.sleep(_CATCH_UP_PAUSE_S)


def _told(stored: StoredEvent) -> _Told:
    return _Told(stored.seq, str(json.loads(stored.event)["type"]), stored.event.encode())
