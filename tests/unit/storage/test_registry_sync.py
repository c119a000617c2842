"""Reading a whole registry: one image that cannot be understood does not keep the others from being read."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any, cast

from services.storage.core.registry import ImageFacts
from services.storage.shell.registry_sync import RegistrySync
from shared.catalogue import ModelPut, SyncAsk, SyncQuery, SyncRun

T0 = datetime(2026, 1, 1, tzinfo=UTC)


class Store:
    """Runs, in memory."""

    def __init__(self) -> None:
        self.runs: dict[str, str] = {}

    async def sync(self, run_id: str) -> str | None:
        return self.runs.get(run_id)

    async def forget_syncs(self, before_us: int) -> None:
        del before_us

    async def keep_sync(self, run_id: str, body: str, at_us: int) -> None:
        del at_us
        self.runs[run_id] = body


class Images:
    """A registry with these repositories."""

    def __init__(self, *names: str) -> None:
        self.names = names

    async def repositories(self, host: str) -> AsyncIterator[str]:
        del host
        for name in self.names:
            yield name

    async def tags(self, host: str, repository: str) -> list[str]:
        del host, repository
        return ["1"]

    async def image(self, reference: Any) -> ImageFacts:
        return ImageFacts("sha256:" + "0" * 64, 1, {"org.opencontainers.image.description": reference.repository})


class Catalogue:
    """Takes everything but what is about `bad`."""

    async def put(self, put: ModelPut, facts: ImageFacts) -> Any:
        del facts
        if put.name == "bad":
            raise OverflowError("MongoDB can only handle up to 8-byte ints")
        return SimpleNamespace(is_new=True, version=1)


async def run_of(*names: str) -> SyncRun:
    sync = RegistrySync(cast("Any", Store()), cast("Any", Images(*names)), cast("Any", Catalogue()))
    run = await sync.begin(SyncAsk(run_id="r1", registry="images.example:5000", owner_id="u1", owner_name="ann"))
    async with asyncio.timeout(60):
        while run.ended_at is None:
            run = await sync.get(SyncQuery(run_id="r1"))
    return run


async def test_an_image_that_cannot_be_kept_is_named_and_the_others_are_registered():
    run = await run_of("good", "bad", "better", "half\ud800")
    assert set(run.added) == {"good@1", "better@1"}
    assert run.failures == 2
    assert {note.repository for note in run.failed} == {"bad", "half?"}
    assert not run.error
