"""Removing what is kept no longer: by itself once a day, and when an administrator asks."""

import asyncio
from datetime import datetime, timedelta
from typing import Literal

from prometheus_client import Counter

from services.storage.adapters.mongo import PyMongoError
from services.storage.adapters.retention_store import BATCH, RetentionStore
from services.storage.core import retention as r
from services.storage.core.projections import moment_of
from services.storage.shell.artifacts import Artifacts
from services.storage.shell.jobs import ALL_JOBS, Jobs
from shared import observe
from shared.bus import Bus
from shared.channels import JOBS
from shared.clock import monotonic, utc_now
from shared.errors import NotFound, Unavailable, WherryError
from shared.ids import new_id
from shared.job import Job
from shared.requests.administration import RetentionAsk, RetentionItem, RetentionQuery, RetentionRun

REMOVED = Counter("wherry_storage_retired_total", "Things that retention has removed.", ["kind"])

NAMED_MOST = 1000
_LOCK_LENGTH = timedelta(minutes=30)
_WAIT_S, _LOOK_AGAIN_S, _PUT_OFF_S = 1.5, 0.05, 60.0
_RUNS_KEPT = timedelta(days=90)

log = observe.logger("storage.retention")


class Retention:
    """Runs by a policy. At most one run is at work, whichever storage it is asked of.

    Args:
        bus: to ask how far back the log goes.
        store: what is looked at and removed.
        jobs: to wait for what the log already has.
        artifacts: for those to be removed, and the bytes that nothing refers to.
        policy: how long what is kept.
    """

    def __init__(self, bus: Bus, store: RetentionStore, jobs: Jobs, artifacts: Artifacts, policy: r.Policy) -> None:
        self._bus = bus
        self._store = store
        self._jobs = jobs
        self._artifacts = artifacts
        self._policy = policy
        self._tasks: set[asyncio.Task[None]] = set()

    async def begin(self, ask: RetentionAsk) -> RetentionRun:
        """Begin a run and return it, ended if it was quick; asking again with its id begins nothing.

        Raises:
            WherryError: ``conflict``: another run is at work.
        """
        if await self._store.run(ask.run_id) is None:
            if not await self._store.lock(ask.run_id, utc_now(), _LOCK_LENGTH):
                raise WherryError("conflict", "Another retention run is at work; look at it, or wait for its end.")
            begun = RetentionRun(run_id=ask.run_id, dry_run=ask.dry_run, started_at=utc_now())
            await self._store.keep_run(begun)
            task = asyncio.create_task(self._run_and_tell(begun, ask))
            self._tasks.add(task)
            task.add_done_callback(self._tasks.discard)
        return await self.get(RetentionQuery(run_id=ask.run_id))

    async def get(self, query: RetentionQuery) -> RetentionRun:
        """Return a run, after a moment if it is still at work.

        Raises:
            NotFound: there is none of this id, or no more.
        """
        give_up_at = monotonic() + _WAIT_S
        while True:
            run = await self._store.run(query.run_id)
            if run is None:
                raise NotFound(f"There is no retention run {query.run_id!r}.")
            if run.ended_at is not None or monotonic() > give_up_at:
                return run
            await asyncio.sleep(_LOOK_AGAIN_S)

    async def repeat(self, interval: timedelta) -> None:
        """Run *interval* after the last run, for ever, whichever storage that was of and however often it restarts.

        Nothing is at work any more when it ends.
        """
        try:
            while True:
                try:
                    last = await self._store.last_begun()
                    await asyncio.sleep(r.wait_s(last, interval, utc_now()))
                    if await self._store.last_begun() == last:
                        await self.begin(RetentionAsk(run_id=new_id("r"), limit=0, by="storage"))
                except (WherryError, PyMongoError) as error:
                    log.warning("retention_put_off", error=str(error))
                    await asyncio.sleep(_PUT_OFF_S)
        finally:
            for task in self._tasks:  # the next run goes on with what this one has left
                task.cancel()
            await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _run_and_tell(self, run: RetentionRun, ask: RetentionAsk) -> None:
        report, error = r.Report(max(0, min(ask.limit, NAMED_MOST))), ""
        try:
            await _Pass(self._bus, self._store, self._jobs, self._artifacts, self._policy, run, report).go()
        except (WherryError, PyMongoError) as problem:
            error = str(problem)
        except asyncio.CancelledError:
            error = "Storage was stopped."
            raise
        finally:
            ended = run.model_copy(
                update={
                    "ended_at": utc_now(), "removed": report.removed, "hidden": report.hidden,
                    "items": tuple(report.items), "more": report.more, "error": error,
                }
            )  # fmt: skip
            say = log.warning if error else log.info
            say("retention_run", by=ask.by, **ended.model_dump(mode="json", exclude={"items", "more"}))
            if not run.dry_run:
                for kind, total in report.removed.items():
                    REMOVED.labels(kind).inc(total.count)
            await self._store.unlock(run.run_id)  # first: whoever sees that this one has ended may begin the next
            await self._store.keep_run(ended)


class _Pass:
    """One run."""

    def __init__(
        self, bus: Bus, store: RetentionStore, jobs: Jobs, artifacts: Artifacts, policy: r.Policy,
        run: RetentionRun, report: r.Report,
    ) -> None:  # fmt: skip
        self._bus = bus
        self._store = store
        self._projected = jobs
        self._removes = artifacts
        self._policy = policy
        self._run = run
        self._dry = run.dry_run
        self._report = report
        self._now = run.started_at
        self._first_seq = 0
        self._needed: set[str] = set()
        self._going_jobs: set[str] = set()  # removed now, and on a dry run those that would be hidden too
        self._going_artifacts: set[str] = set()

    async def go(self) -> None:
        """Remove and hide, each thing before what it has refers to."""
        info = await self._bus.api(f"STREAM.INFO.{JOBS}", {})
        self._first_seq = int(info["state"]["first_seq"])
        await self._see_all_jobs()
        services: list[str] = []
        async for job in self._store.unfinished():
            self._needed |= r.needed_by(job)
            if job.spec.kind == "service":
                services.append(job.id)
        await self._jobs()
        await self._replicas(services)
        await self._artifacts()
        await self._snapshots()
        await self._bytes()
        if not self._dry:
            await self._store.forget_runs(self._now - _RUNS_KEPT)

    async def _see_all_jobs(self) -> None:
        """Return when all jobs are known that the log has now: one of them may need what was hidden after it came.

        Raises:
            Unavailable: the projection is far behind.
        """
        last = await self._bus.last(JOBS, ALL_JOBS)
        await self._projected.catch_up()
        if last is not None and not await self._store.is_projected(last.seq):
            raise Unavailable("Storage is behind the log of jobs: nothing is removed until it has read it.")

    # --- jobs and their lines --------------------------------------------------------------------------------------

    async def _jobs(self) -> None:
        due: dict[str, RetentionItem] = {}
        batch: list[r.Ended] = []
        async for one in self._store.ended():
            if r.is_looked_at(one, self._policy, self._now):
                batch.append(one)
            if len(batch) >= BATCH:
                await self._judge(batch, due)
                batch = []
        await self._judge(batch, due)
        for item in await self._step("jobs", due, await self._store.hidden("jobs")):
            members = [one for one, _, _ in await self._store.members(item.id)]
            self._going_jobs |= {item.id, *members}
            if not self._dry:
                for job_id in (*members, item.id):  # the gang last: it is what leads to its members
                    await self._store.remove_job(job_id)

    async def _judge(self, batch: list[r.Ended], due: dict[str, RetentionItem]) -> None:
        await self._store.lock(self._run.run_id, utc_now(), _LOCK_LENGTH)
        found = await self._store.jobs([one.id for one in batch])
        for one in batch:
            job = found.get(one.id)
            if job is None:
                continue
            ended_at = job.ended_at or job.updated_at
            why = r.why_job(one, ended_at, self._policy, self._first_seq, self._now)
            if why and one.id not in self._needed and await self._may_go(one):
                due[one.id] = _item("jobs", job, job.outputs.bytes if job.outputs else 0, why)
            elif why := r.why_logs(one, ended_at, self._policy, self._now):
                await self._logs(_item("logs", job, 0, why))

    async def _may_go(self, job: r.Ended) -> bool:
        """Return whether all members of a gang may go with it."""
        members = await self._store.members(job.id) if job.is_gang else []
        return all(ended and seq < self._first_seq and member not in self._needed for member, seq, ended in members)

    async def _replicas(self, services: list[str]) -> None:
        """Hide, then remove, replicas that ended long ago: their service may go on for years, and so would they."""
        due, hidden = dict[str, RetentionItem](), dict[str, datetime]()
        async for job, seq, hidden_at in self._store.ended_members(services):
            if hidden_at is not None:
                hidden[job.id] = hidden_at
            why = r.why_replica(job.ended_at or job.updated_at, seq, self._policy, self._first_seq, self._now)
            if why and job.id not in self._needed:
                due[job.id] = _item("jobs", job, job.outputs.bytes if job.outputs else 0, why)
        for item in await self._step("jobs", due, hidden):
            self._going_jobs.add(item.id)
            if not self._dry:
                await self._store.remove_job(item.id)

    async def _logs(self, item: RetentionItem) -> None:
        self._report.remove(item)
        if not self._dry:
            for member, _, _ in await self._store.members(item.id):
                await self._store.remove_logs(member)
            await self._store.remove_logs(item.id)

    # --- artifacts -------------------------------------------------------------------------------------------------

    async def _artifacts(self) -> None:
        old = [one async for one in self._store.old_artifacts(self._now - self._policy.artifacts)]
        if not old:
            return
        used, due = await self._store.used_artifacts(self._going_jobs), dict[str, RetentionItem]()
        for one in old:
            why = r.why_artifact(moment_of(one["created_us"]), self._policy, self._now)
            if why and one["_id"] not in used:
                due[one["_id"]] = RetentionItem(
                    kind="artifacts", id=one["_id"], owner_id=one["owner_id"], bytes=one["size"], reason=why
                )
        for item in await self._step("artifacts", due, await self._store.hidden("artifacts")):
            self._going_artifacts.add(item.id)
            if not self._dry:
                await self._removes.remove(item.id)

    async def _step(
        self, kind: Literal["jobs", "artifacts"], due: dict[str, RetentionItem], hidden: dict[str, datetime]
    ) -> list[RetentionItem]:
        """Hide what is newly due, show what of *hidden* no longer is, and return what has been hidden for the grace.

        On a dry run what would be hidden is returned too: its bytes are what will be won.
        """
        ripe = {one for one, since in hidden.items() if one in due and self._now - since >= self._policy.grace}
        fresh = due.keys() - hidden.keys()
        at_once = fresh if not self._policy.grace else set[str]()
        for one, item in due.items():
            if one in ripe or one in at_once:
                self._report.remove(item)
            elif one in fresh:
                self._report.hide(item)
        if self._dry:
            return [item for one, item in due.items() if one in ripe or one in fresh]
        await self._store.hide(kind, fresh, self._now)
        await self._store.show(kind, hidden.keys() - due.keys())
        return [due[one] for one in due if one in ripe or one in at_once]

    # --- looks at running jobs, and bytes --------------------------------------------------------------------------

    async def _snapshots(self) -> None:
        for snapshot_id, job_id in await self._store.old_snapshots(self._now - self._policy.live):
            reason = "a look at a running job, kept for a while"
            self._report.remove(RetentionItem(kind="live", id=snapshot_id, reason=reason))
            if not self._dry:
                await self._store.remove_snapshots(job_id=job_id, snapshot_id=snapshot_id)

    async def _bytes(self) -> None:
        """Count the bytes that nobody has any more, then have them collected."""
        before = self._now - self._policy.settle
        async for sizes in self._store.files(before):
            held = {
                digest
                async for digest, scope in self._store.refs(sizes)
                if not (self._dry and r.is_gone(scope, self._going_jobs, self._going_artifacts))
            }
            loose = sizes.keys() - held
            if loose:
                self._report.count("bytes", len(loose), sum(sizes[one] for one in loose))
        if not self._dry:
            await self._removes.collect(before)


def _item(kind: Literal["jobs", "logs"], job: Job, size: int, reason: str) -> RetentionItem:
    return RetentionItem(kind=kind, id=job.id, owner_id=job.owner.id, bytes=size, reason=reason)
