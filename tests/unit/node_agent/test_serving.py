"""Requests to replicas on a node, as they come over the bus: what becomes of them when their replica ends."""

import asyncio
import socket
from collections.abc import AsyncGenerator, Callable, Coroutine, Generator
from contextlib import ExitStack, asynccontextmanager, contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from services.node_agent.core import facts as f
from services.node_agent.core.attempt import Held
from services.node_agent.core.container import Key
from services.node_agent.shell import serving
from services.node_agent.shell.serving import Serving
from shared.bus import Raw
from shared.errors import WherryError
from shared.fleet import HeldAttempt, Order
from shared.requests.serving import SERVE_HEADER, ServeAnswer, ServeStep
from shared.spec import JobSpec, Service
from shared.states import AttemptState

KEY = Key("j1", 1)
BEAT = HeldAttempt(job_id="j1", attempt=1, state=AttemptState.RUNNING)


class Node:
    """A node with one replica at an address, and the way on which a gateway's steps come."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.handler: Callable[[dict[str, str], Raw], Coroutine[Any, Any, Raw]] | None = None
        self.is_ready = asyncio.Event()
        self.serving = Serving(self.connect, "n1", {"docker": cast("Any", self)}, self.hear, 1024)

    @asynccontextmanager
    async def connect(self) -> AsyncGenerator[Any]:
        yield self

    async def until_online(self) -> None:
        pass

    async def serve(self, _: Any, handler: Any, **__: Any) -> None:
        self.handler = handler

    async def address(self, *_: Any) -> tuple[str, int]:
        return "127.0.0.1", self.port

    def hear(self, fact: f.Fact) -> None:
        assert fact == f.Ready(KEY)
        self.is_ready.set()

    async def step(self, **fields: Any) -> ServeAnswer:
        step = ServeStep.model_validate({"request_id": "q1", **fields})
        assert self.handler
        raw = await self.handler({"job_id": KEY.job_id}, Raw(b"", {SERVE_HEADER: step.model_dump_json()}))
        return ServeAnswer.from_bytes((raw.headers or {})[SERVE_HEADER].encode())


def held() -> Held:
    order = Order(
        job_id=KEY.job_id, owner_id="u1", attempt=KEY.attempt, seq=1, parent="jp",
        spec=JobSpec(image="i", command="serve"), service=Service(port=80, concurrency=1),
    )  # fmt: skip
    return Held(order=order, since=datetime(2026, 1, 1, tzinfo=UTC))


@contextmanager
def full(listener: socket.socket) -> Generator[None]:
    """So many connections wait to be accepted that one more is not answered: as at an address that is gone."""
    with ExitStack() as held_open:
        for _ in range(4):
            one = held_open.enter_context(socket.socket())
            one.settimeout(0)
            one.connect_ex(listener.getsockname())
        yield


async def test_a_request_to_a_replica_that_is_gone_is_lost_at_once_and_not_when_its_address_times_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(serving, "HOLD_S", 20.0)  # less than it takes to forget a request
    monkeypatch.setattr(serving, "WAIT_S", 60.0)
    monkeypatch.setattr("services.node_agent.adapters.container_http._CONNECT_S", 60.0)
    with socket.create_server(("127.0.0.1", 0), backlog=0) as listener:
        node = Node(listener.getsockname()[1])
        running = asyncio.create_task(node.serving.run())
        node.serving.attend(held())
        try:
            async with asyncio.timeout(60):
                await node.is_ready.wait()
            with full(listener):
                asked = asyncio.create_task(node.step())
                while not node.serving.counted(BEAT).in_flight:
                    await asyncio.sleep(0)
                waiting = asyncio.create_task(node.step(request_id="q2"))
                for _ in range(10):  # turns of the loop, until it is in the queue for the one place
                    await asyncio.sleep(0)
                node.serving.leave(KEY)
                with pytest.raises(WherryError) as lost:
                    await asked  # else it is answered after seconds that it is still at work
                assert lost.value.code == "replica_lost"
                with pytest.raises(WherryError) as never_sent:
                    await waiting
                assert never_sent.value.code == "replica_gone", "another replica may have it, whatever it is"
            with pytest.raises(WherryError) as gone:
                await node.step(request_id="q3")
            assert gone.value.code == "replica_gone"
        finally:
            running.cancel()
            await node.serving.close()
