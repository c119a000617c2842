"""Inputs from the web: fetched once for each job and address, by one storage at a time, as long as somebody waits."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import Counter
from yarl import URL

from services.storage.adapters.fetch import Web
from services.storage.adapters.fetch_store import FetchStore
from services.storage.adapters.mongo import PyMongoError
from services.storage.core import fetching as f
from services.storage.core.access import OwnerScope
from services.storage.core.projections import Document, microseconds
from services.storage.shell.inflow import Inflow, drop
from services.storage.shell.uploads import Uploads
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import Unavailable, WherryError
from shared.ids import new_id
from shared.job import BlobRef, Job
from shared.manifest import Entry

FETCHED = Counter("wherry_storage_fetches_total", "Files from the web that jobs have as inputs.", ["outcome"])

#: Seconds for which a fetch belongs to its holder without a word, between two words, and without anybody asking for
#: what is fetched after which it is given up. Nodes ask every few seconds.
LEASE_S, RENEW_S, ABANDON_S = 15.0, 2.0, 120.0

log = observe.logger("storage")


@dataclass(slots=True)
class _Work:
    key: str
    url: str
    owner_id: str
    asked: float
    inflow: Inflow | None = None
    task: asyncio.Task[None] | None = None
    upload_id: str | None = field(default=None)

    @property
    def got(self) -> int:
        return self.inflow.size if self.inflow else 0


class Fetches:
    """Brings files from the web.

    Args:
        web: the way out.
        store: what is known about fetches.
        uploads: where bytes go.
        bytes_max: the most that one file may have.
        total_s: the longest that one fetch may take, in seconds.
        at_once: fetches of this process under way; others wait.
    """

    def __init__(
        self, web: Web, store: FetchStore, uploads: Uploads, *, bytes_max: int, total_s: float, at_once: int
    ) -> None:
        self._web = web
        self._store = store
        self._uploads = uploads
        self._bytes_max = bytes_max
        self._total_s = total_s
        self._places = asyncio.Semaphore(at_once)
        self._holder = new_id("s")
        self._running: dict[str, _Work] = {}

    async def entry(self, job: Job, url: str) -> Entry:
        """Return the file at *url* as *job* has it: the same for all its attempts.

        Raises:
            Unavailable: it is being fetched; its message tells how far that is.
            WherryError: ``input_missing`` or ``stage_in_failed``: it cannot be had.
        """
        key = fetch_key(job, url)
        if (work := self._running.get(key)) is not None:
            work.asked = monotonic()
            raise _under_way(url, work.got)
        document = await self._store.get(key)
        if document is not None and document["state"] == "done":
            return _entry(document)
        if document is not None and document["state"] == "failed" and document["attempt"] >= job.attempt:
            raise WherryError(document["code"], document["message"])
        now_us = microseconds(utc_now())
        fresh: Document = {
            "state": "fetching", "attempt": job.attempt, "holder": self._holder, "asked_us": now_us, "bytes": 0,
            "lease_us": now_us + int(LEASE_S * 1e6), "upload_id": None,
        }  # fmt: skip
        if document is None:
            facts = {"_id": key, "job_id": key.partition("/")[0], "owner_id": job.owner.id, "url": url}
            mine = await self._store.begin(facts | {"created_us": now_us} | fresh)
        elif document["state"] == "failed" or document["lease_us"] < now_us:
            mine = await self._store.take_over(document, fresh)
        else:
            mine = False
            await self._store.ask(key, now_us)
        if mine:
            self._start(_Work(key, url, job.owner.id, monotonic(), upload_id=(document or {}).get("upload_id")))
        raise _under_way(url, document["bytes"] if document and not mine else 0)

    async def stop(self) -> None:
        """Give up what is under way, so that another storage may begin at once."""
        tasks = [work.task for work in self._running.values() if work.task]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    # --- one fetch -----------------------------------------------------------------------------------------------

    def _start(self, work: _Work) -> None:
        self._running[work.key] = work
        work.task = asyncio.create_task(self._run(work))

    async def _run(self, work: _Work) -> None:
        pulling = asyncio.create_task(self._pull(work))
        try:
            while not (await asyncio.wait({pulling}, timeout=RENEW_S))[0]:
                if not await self._is_wanted(work):
                    FETCHED.labels("abandoned").inc()
                    return
            await self._note(work, pulling.result)
        except PyMongoError as error:  # its lease ends, and somebody begins again
            log.warning("fetch_not_noted", error=str(error))
        finally:
            pulling.cancel()
            await asyncio.wait({pulling})
            self._running.pop(work.key, None)
            with suppress(PyMongoError):
                await self._store.release(work.key, self._holder)

    async def _is_wanted(self, work: _Work) -> bool:
        try:
            until_us = microseconds(utc_now()) + int(LEASE_S * 1e6)
            asked_us = await self._store.renew(work.key, self._holder, until_us, work.got)
        except PyMongoError:
            return True
        if asked_us is None:
            return False
        elsewhere_s = (microseconds(utc_now()) - asked_us) / 1e6
        return min(monotonic() - work.asked, elsewhere_s) < ABANDON_S

    async def _note(self, work: _Work, result: Callable[[], dict[str, Any]]) -> None:
        try:
            fields = result() | {"state": "done"}
        except WherryError as error:
            fields = {"state": "failed", "code": error.code, "message": error.message}
        await self._store.end(work.key, self._holder, fields)
        FETCHED.labels(fields["state"]).inc()
        log.info("fetch_ended", job_id=work.key.partition("/")[0], state=fields["state"], bytes=work.got)

    async def _pull(self, work: _Work) -> dict[str, Any]:
        """Return the stored file's facts, trying again as long as that may help."""
        async with self._places:
            if work.upload_id:  # of a storage that is no more
                await drop(self._uploads, work.upload_id)
            try:
                async with asyncio.timeout(self._total_s):
                    return await self._persist(work)
            except TimeoutError:
                raise f.failed(work.url, f"that takes longer than {self._total_s:g} s") from None
            except (Unavailable, PyMongoError) as error:
                raise f.failed(work.url, "storage could not take it in") from error
            finally:
                if work.inflow is not None:
                    await asyncio.shield(work.inflow.drop())

    async def _persist(self, work: _Work) -> dict[str, Any]:
        failures, reached, validator = 0, -1, None
        while True:
            try:
                validator, fields = await self._once(work, validator)
                return fields
            except f.FetchBroke as broke:
                failures = 1 if work.got > reached else failures + 1
                reached = max(reached, work.got)
                if failures >= f.TRIES:
                    raise f.failed(work.url, f"{broke}, {failures} times in a row") from broke
            await asyncio.sleep(f.pause_s(failures))
