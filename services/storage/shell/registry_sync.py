"""Registering what a registry has: every repository one model, each image that is new a version of it."""

import asyncio
from datetime import timedelta

from services.storage.adapters.model_store import ModelStore
from services.storage.adapters.mongo import PyMongoError
from services.storage.adapters.registry import Registry
from services.storage.core import registry as r
from services.storage.core.projections import microseconds
from services.storage.shell.catalogue import Catalogue
from shared import observe
from shared.catalogue import ModelPut, SyncAsk, SyncNote, SyncQuery, SyncRun
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, WherryError

#: Repositories that are read at once, and the most that one run looks at.
AT_ONCE, REPOSITORIES_MAX = 16, 20_000
FAILURES_NAMED = 200
_WAIT_S, _LOOK_AGAIN_S = 1.5, 0.05
_TELL_EVERY_S = 1.0
_RUNS_KEPT = timedelta(days=30)

log = observe.logger("storage.registry")


class RegistrySync:
    """Runs, each a task of its own. A run of a storage that ends in the middle can simply be asked for again."""

    def __init__(self, store: ModelStore, registry: Registry, catalogue: Catalogue) -> None:
        self._store = store
        self._registry = registry
        self._catalogue = catalogue
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, ask: SyncAsk) -> SyncRun:
        """Begin a run and return it, ended if it was quick; asking again with its id begins nothing.

        Raises:
            WherryError: ``invalid``: there cannot be such a registry.
        """
        r.check_host(ask.registry)
        if await self._store.sync(ask.run_id) is None:
            await self._store.forget_syncs(microseconds(utc_now() - _RUNS_KEPT))
            run = _Run(self._store, self._registry, self._catalogue, ask)
            await run.tell()
            task = asyncio.create_task(run.go())
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await self.get(SyncQuery(run_id=ask.run_id))

    async def get(self, query: SyncQuery) -> SyncRun:
        """Return a run, after a moment if it is still at work.

        Raises:
            NotFound: there is none of this id, or no more.
        """
        give_up_at = monotonic() + _WAIT_S
        while True:
            body = await self._store.sync(query.run_id)
            if body is None:
                raise NotFound(f"There is no run {query.run_id!r}.")
            run = SyncRun.from_bytes(body.encode())
            if run.ended_at is not None or monotonic() > give_up_at:
                return run
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def stop(self) -> None:
        """End what is at work; what is registered stays."""
        for task in tuple(self._tasks):
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)


class _Run:
    def __init__(self, store: ModelStore, registry: Registry, catalogue: Catalogue, ask: SyncAsk) -> None:
        self._store = store
        self._registry = registry
        self._catalogue = catalogue
        self._ask = ask
        self._run = SyncRun(run_id=ask.run_id, registry=ask.registry, started_at=utc_now())
        self._told = monotonic()
        self._added: list[str] = []
        self._failed: list[SyncNote] = []
        self._names: dict[str, str] = {}  # model -> repository

    async def tell(self) -> None:
        """Write down how far it is."""
        self._run = self._run.model_copy(update={"added": tuple(self._added), "failed": tuple(self._failed)})
        await self._store.keep_sync(self._ask.run_id, self._run.to_bytes().decode(), microseconds(self._run.started_at))

    async def go(self) -> None:
        """Look at every repository."""
        error = ""
        try:
            await self._look()
        except* WherryError as group:
            error = str(group.exceptions[0])
        except* PyMongoError as group:
            error = f"Storage's database did not answer: {group.exceptions[0]}"
        except* asyncio.CancelledError:
            error = "Storage was stopped: ask for it again."
        self._run = self._run.model_copy(update={"ended_at": utc_now(), "error": error})
        log.info("registry_read", registry=self._ask.registry, repositories=self._run.repositories, error=error)
        await self.tell()

    async def _look(self) -> None:
        places = asyncio.Semaphore(AT_ONCE)
        async with asyncio.TaskGroup() as tasks:
            async for repository in self._registry.repositories(self._ask.registry):
                if not repository.startswith(self._ask.prefix):
                    continue
                if self._run.repositories >= REPOSITORIES_MAX:
                    message = f"It has more than {REPOSITORIES_MAX} repositories: give a prefix."
                    raise WherryError("registry_failed", message)
                await places.acquire()
                self._run = self._run.model_copy(update={"repositories": self._run.repositories + 1})
                tasks.create_task(self._one(repository)).add_done_callback(lambda _: places.release())

    async def _one(self, repository: str) -> None:
        try:
            await self._register(repository)
        except PyMongoError:
            raise
        except WherryError as error:
            self._fail(repository, error.message)
        except Exception as error:  # noqa: BLE001 - an image may say anything of itself: the others are read all the same
            log.warning("repository_not_understood", repository=repository[:300], error=repr(error)[:500])
            self._fail(repository, "What its image says of itself cannot be kept.")
        if monotonic() - self._told > _TELL_EVERY_S:
            self._told = monotonic()
            await self.tell()

    def _fail(self, repository: str, why: str) -> None:
        self._run = self._run.model_copy(update={"failures": self._run.failures + 1})
        if len(self._failed) < FAILURES_NAMED:
            name = repository[:300].encode(errors="replace").decode()
            self._failed.append(SyncNote(repository=name, text=why[:500].encode(errors="replace").decode()))

    async def _register(self, repository: str) -> None:
        ask = self._ask
        tag = r.chosen_tag(await self._registry.tags(ask.registry, repository), ask.tag)
        if tag is None:
            raise NotFound("It has no tags.")
        reference = f"{ask.registry}/{repository}:{tag}"
        where = r.parse(reference)
        facts = await self._registry.image(where)
        name = r.describe(facts.labels).name or r.model_name(repository)
        if (other := self._names.setdefault(name, repository)) != repository:
            raise WherryError("name_taken", f"Its name {name!r} is that of {other} too: label one of them otherwise.")
        put = ModelPut(
            name=name, owner_id=ask.owner_id, owner_name=ask.owner_name, anybodys=ask.anybodys, reference=reference
        )
        stored = await self._catalogue.put(put, facts)
        if stored.is_new:
            self._added.append(f"{name}@{stored.version}")
        else:
            self._run = self._run.model_copy(update={"unchanged": self._run.unchanged + 1})
