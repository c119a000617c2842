"""Inputs from the web: fetched once for each job and address, by one storage at a time, as long as somebody waits."""

import asyncio
import hashlib
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from prometheus_client import Counter
from yarl import URL

from services.storage.adapters.fetch import Web
from services.storage.adapters.fetch_store import FetchStore
from services.storage.adapters.mongo import PyMongoError
from services.storage.core import fetching as f
from services.storage.core.access import OwnerScope
from services.storage.core.projections import Document, microseconds
from services.storage.shell.inflow import Inflow
from services.storage.shell.uploads import Uploads
from shared import observe
from shared.clock import monotonic, utc_now
from shared.errors import Unavailable, WherryError
from shared.ids import new_id
from shared.job import BlobRef, Job
from shared.manifest import Entry
from shared.requests.artifacts import Artifact, WebFetch
from shared.requests.blobs import Committed

FETCHED = Counter("wherry_storage_fetches_total", "Files from the web that jobs have as inputs.", ["outcome"])

#: Seconds for which a fetch belongs to its holder without a word, between two words, and without anybody asking for
#: what is fetched after which it is given up. Nodes ask every few seconds.
LEASE_S, RENEW_S, ABANDON_S = 8.0, 2.0, 120.0
#: Seconds for a file that somebody waits for.
NOW_S = 20.0

log = observe.logger("storage")


@dataclass(slots=True)
class _Work:
    key: str
    url: str
    owner_id: str
    asked: float
    inflow: Inflow | None = None
    validator: str | None = None
    task: asyncio.Task[None] | None = None

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
        attempt = _try_of(job)
        if (work := self._running.get(key)) is not None:
            work.asked = monotonic()
            raise _under_way(url, work.got)
        document = await self._store.get(key)
        if document is not None and document["state"] == "done":
            return _entry(document)
        if document is not None and document["state"] == "failed" and document["attempt"] >= attempt:
            raise WherryError(document["code"], document["message"])
        now_us = microseconds(utc_now())
        fresh: Document = {
            "state": "fetching", "attempt": attempt, "holder": self._holder, "asked_us": now_us, "bytes": 0,
            "lease_us": now_us + int(LEASE_S * 1e6),
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
            self._start(_Work(key, url, job.owner.id, monotonic()))
        raise _under_way(url, document["bytes"] if document and not mine else 0)

    async def now(self, wish: WebFetch) -> Committed:
        """Return what is at an address, stored as an artifact of the owner's: for somebody who waits.

        Raises:
            WherryError: ``input_missing`` or ``stage_in_failed``: it cannot be had.
        """
        async with self._places:
            try:
                async with asyncio.timeout(NOW_S):
                    return await self._at_once(wish)
            except TimeoutError:
                raise f.failed(wish.url, f"that takes longer than {NOW_S:g} s") from None
            except f.FetchBroke as broke:
                raise f.failed(wish.url, str(broke)) from broke

    async def _at_once(self, wish: WebFetch) -> Committed:
        async with self._web.get(wish.url) as answer:
            f.judge(wish.url, answer.head, 0)
            inflow = Inflow(self._uploads, OwnerScope(wish.owner_id, _name(wish.url), answer.head.media_type))
            stored: Committed | None = None
            try:
                async for piece in answer.pieces:
                    await inflow.take(piece)
                    if inflow.size > wish.bytes_max:
                        raise f.too_large(wish.url, wish.bytes_max)
                stored = await inflow.commit()
                return stored
            finally:
                if stored is None:
                    await asyncio.shield(inflow.drop())

    async def with_artifact(self, artifact: Artifact) -> str | None:
        """Return the job that has an artifact from the web and may still want it, as a sentence's subject, or None."""
        job_id = await self._store.unfinished_with(artifact.id)
        return None if job_id is None else f"Job {job_id}"

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
        failures, reached = 0, -1
        while True:
            try:
                return await self._once(work)
            except f.FetchBroke as broke:
                failures = 1 if work.got > reached else failures + 1
                reached = max(reached, work.got)
                if failures >= f.TRIES:
                    raise f.failed(work.url, f"{broke}, {failures} times in a row") from broke
            await asyncio.sleep(f.pause_s(failures))

    async def _once(self, work: _Work) -> dict[str, Any]:
        """Ask once, for what is still missing if the server can tell that it is the same file."""
        start = work.got if work.validator else 0
        async with self._web.get(work.url, start, work.validator) as answer:
            head = answer.head
            try:
                part = f.judge(work.url, head, start)
            except f.FetchBroke:
                work.validator = work.validator if f.is_passing(head.status) else None
                raise
            if part is f.Part.WHOLE or work.inflow is None:
                await self._begin(work, head)
            inflow = work.inflow
            if inflow is None or inflow.size + (head.length or 0) > self._bytes_max:
                raise f.too_large(work.url, self._bytes_max)
            async for piece in answer.pieces:
                await inflow.take(piece)
                if inflow.size > self._bytes_max:
                    raise f.too_large(work.url, self._bytes_max)
        done = await inflow.commit()
        return {
            "artifact_id": done.artifact_id, "sha256": done.blob.sha256, "size": done.blob.size,
            "bytes": done.blob.size, "name": _name(work.url), "ended_us": microseconds(utc_now()),
        }  # fmt: skip

    async def _begin(self, work: _Work, head: f.Head) -> None:
        if work.inflow is not None:
            await work.inflow.drop()
        work.inflow = Inflow(self._uploads, OwnerScope(work.owner_id, _name(work.url), head.media_type))
        work.validator = head.validator


def fetch_key(job: Job, url: str) -> str:
    """Return the name of a fetch: one for a job and an address, and one for all members of a gang."""
    job_id = job.member_of.gang_id if job.member_of else job.id
    return f"{job_id}/{hashlib.sha256(url.encode()).hexdigest()[:32]}"


def _try_of(job: Job) -> int:
    """Return a number that a later try has a higher one than: a fetch that failed is tried again by that."""
    if job.member_of is None:
        return job.attempt
    # Workers and replicas (of no size: they come and go) are made one after the other.
    return job.member_of.round if job.member_of.size else int(job.created_at.timestamp())


def _under_way(url: str, got: int) -> Unavailable:
    return Unavailable(f"{url} is being fetched: {got} bytes so far.")


def _name(url: str) -> str:
    return f.file_name(URL(url).path, "download")


def _entry(document: Document) -> Entry:
    blob = BlobRef(sha256=document["sha256"], size=document["size"])
    return Entry(path=document["name"], blob=blob, mtime=document["ended_us"] / 1e6)
