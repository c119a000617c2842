"""What retention looks at and removes, over all collections; and the record of its runs."""

from collections.abc import AsyncGenerator, Collection, Sequence
from datetime import datetime, timedelta

from services.storage.adapters.mongo import DuplicateKeyError, Mongo
from services.storage.core.access import live_ref
from services.storage.core.projections import Document, microseconds, moment_of
from services.storage.core.retention import Ended, artifacts_named
from shared.job import Job
from shared.requests.administration import RetentionRun
from shared.states import JOB_TERMINAL

#: Documents that are looked at together.
BATCH = 1000
_TERMINAL = [state.value for state in sorted(JOB_TERMINAL)]
_LOCK = "retention"


class RetentionStore:
    """Collections of jobs and everything that hangs on them, ``artifacts``, ``blob_refs``, ``snapshots`` and more."""

    def __init__(self, mongo: Mongo) -> None:
        self._mongo = mongo
        self._meta = mongo["meta"]
        self._runs = mongo["retention_runs"]

    # --- one run at a time ---------------------------------------------------------------------------------------

    async def lock(self, holder: str, now: datetime, length: timedelta) -> bool:
        """Take or keep the right to run for *length*; return whether *holder* has it."""
        wanted = {"_id": _LOCK, "$or": [{"holder": holder}, {"until_us": {"$lt": microseconds(now)}}]}
        change = {"$set": {"holder": holder, "until_us": microseconds(now + length)}}
        try:
            await self._meta.update_one(wanted, change, upsert=True)
        except DuplicateKeyError:
            return False
        return True

    async def unlock(self, holder: str) -> None:
        """Give the right back."""
        await self._meta.update_one({"_id": _LOCK, "holder": holder}, {"$set": {"until_us": 0}})

    async def keep_run(self, run: RetentionRun) -> None:
        """Write down how far a run is."""
        fields = {"run": run.to_bytes().decode(), "started_us": microseconds(run.started_at), "dry": run.dry_run}
        await self._runs.update_one({"_id": run.run_id}, {"$set": fields}, upsert=True)

    async def run(self, run_id: str) -> RetentionRun | None:
        """Return a run."""
        document = await self._runs.find_one({"_id": run_id})
        return RetentionRun.from_bytes(document["run"].encode()) if document else None

    async def last_begun(self) -> datetime | None:
        """Return when the latest run began that was not dry."""
        document = await self._runs.find_one({"dry": False}, {"started_us": 1}, sort=[("started_us", -1)])
        return moment_of(document["started_us"]) if document else None

    async def forget_runs(self, before: datetime) -> None:
        """Delete records of old runs."""
        await self._runs.delete_many({"started_us": {"$lt": microseconds(before)}})

    # --- jobs ------------------------------------------------------------------------------------------------------

    async def is_projected(self, seq: int) -> bool:
        """Return whether the event with this sequence of the log has been written down."""
        return await self._mongo["events"].find_one({"_id": seq}, {"_id": 1}) is not None

    async def unfinished(self) -> AsyncGenerator[Job, None]:
        """Give every job that has not ended."""
        async for document in self._mongo["jobs"].find({"state": {"$nin": _TERMINAL}}, {"job": 1}):
            yield Job.from_bytes(document["job"].encode())

    async def ended(self) -> AsyncGenerator[Ended, None]:
        """Give every ended job but members of others, which go with those; each owner's newest first."""
        fields = {"owner_id": 1, "seq": 1, "created_us": 1, "kind": 1, "logs_gone": 1, "retired_us": 1}
        wanted = {"state": {"$in": _TERMINAL}, "gang_id": None}
        order = [("owner_id", 1), ("created_us", -1), ("_id", -1)]
        owner_id, rank = "", 0
        async for one in self._mongo["jobs"].find(wanted, fields, allow_disk_use=True).sort(order):
            rank = rank + 1 if one["owner_id"] == owner_id else 1
            owner_id = one["owner_id"]
            yield Ended(
                one["_id"], owner_id, one["seq"], one["created_us"], rank, is_gang=one["kind"] != "run",
                has_logs="logs_gone" not in one, is_hidden=one.get("retired_us") is not None,
            )  # fmt: skip

    async def jobs(self, ids: Sequence[str]) -> dict[str, Job]:
        """Return jobs by id."""
        found = self._mongo["jobs"].find({"_id": {"$in": list(ids)}}, {"job": 1})
        return {one["_id"]: Job.from_bytes(one["job"].encode()) async for one in found}

    async def members(self, gang_id: str) -> list[tuple[str, int, bool]]:
        """Return a gang's members: id, sequence of the last event, and whether it has ended."""
        found = self._mongo["jobs"].find({"gang_id": gang_id}, {"seq": 1, "state": 1})
        return [(one["_id"], one["seq"], one["state"] in _TERMINAL) async for one in found]

    async def ended_members(self, parent_ids: Sequence[str]) -> AsyncGenerator[tuple[Job, int, datetime | None], None]:
        """Give the ended members of these jobs: each, the sequence of its last event, since when it is hidden."""
        wanted = {"gang_id": {"$in": list(parent_ids)}, "state": {"$in": _TERMINAL}}
        fields = {"job": 1, "seq": 1, "retired_us": 1}
        async for one in self._mongo["jobs"].find(wanted, fields, batch_size=BATCH):
            hidden_us: int | None = one.get("retired_us")
            hidden_at = None if hidden_us is None else moment_of(hidden_us)
            yield Job.from_bytes(one["job"].encode()), one["seq"], hidden_at

    async def remove_job(self, job_id: str) -> None:
        """Delete a job and all that hangs on it; its own document last, so that a run that was cut is repeated."""
        await self.remove_logs(job_id)
        keys = {"$gte": f"{job_id}/", "$lt": f"{job_id}0"}  # "0" follows "/"
        await self._mongo["metrics"].delete_many({"key": keys})
        await self._mongo["progress"].delete_many({"_id": keys})
        for name in ("events", "deliveries", "fetches", "items"):
            await self._mongo[name].delete_many({"job_id": job_id})
        await self._mongo["blob_refs"].delete_many({"scope": _below("attempt", job_id)})
        await self.remove_snapshots(job_id=job_id)
        await self._mongo["jobs"].delete_one({"_id": job_id})

    async def remove_logs(self, job_id: str) -> None:
        """Delete a job's single lines, and note that they are gone."""
        await self._mongo["logs"].delete_many({"key": {"$gte": f"{job_id}/", "$lt": f"{job_id}0"}})
        await self._mongo["jobs"].update_one({"_id": job_id}, {"$set": {"logs_gone": True}})

    # --- artifacts -------------------------------------------------------------------------------------------------

    async def used_artifacts(self, but: Collection[str]) -> set[str]:
        """Return every artifact that a dataset or a model has, or that stands in any job except *but*."""
        used: set[str] = set()
        async for one in self._mongo["jobs"].find({}, {"job": 1}):
            if one["_id"] not in but:
                used |= artifacts_named(one["job"])
        async for one in self._mongo["items"].find({"artifact": {"$gt": ""}}, {"artifact": 1, "job_id": 1}):
            used |= {one["artifact"]} if one["job_id"] not in but else set()
        async for one in self._mongo["datasets"].find({}, {"versions.artifact_id": 1}):
            used |= {version["artifact_id"] for version in one.get("versions", ())}
        for name in ("model_versions", "fine_tunes"):
            async for one in self._mongo[name].find({"artifact_id": {"$gt": ""}}, {"artifact_id": 1}):
                used.add(one["artifact_id"])
        async for one in self._mongo["fetches"].find({"artifact_id": {"$ne": None}}, {"artifact_id": 1, "job_id": 1}):
            used |= {one["artifact_id"]} if one.get("job_id") not in but else set()
        return used

    async def old_artifacts(self, before: datetime) -> AsyncGenerator[Document, None]:
        """Give artifacts that were stored before that, and those that are hidden."""
        wanted = {"$or": [{"created_us": {"$lt": microseconds(before)}}, {"retired_us": {"$ne": None}}]}
        async for document in self._mongo["artifacts"].find(wanted):
            yield document

    # --- hiding ----------------------------------------------------------------------------------------------------

    async def hide(self, name: str, ids: Collection[str], now: datetime) -> None:
        """Let documents of the collection *name* answer as if they were gone, a gang's members with it."""
        for key in ("_id", "gang_id") if name == "jobs" else ("_id",):
            wanted = {key: {"$in": list(ids)}, "retired_us": None}
            await self._mongo[name].update_many(wanted, {"$set": {"retired_us": microseconds(now)}})

    async def show(self, name: str, ids: Collection[str]) -> None:
        """Let documents answer again."""
        for key in ("_id", "gang_id") if name == "jobs" else ("_id",):
            await self._mongo[name].update_many({key: {"$in": list(ids)}}, {"$unset": {"retired_us": ""}})

    async def hidden(self, name: str) -> dict[str, datetime]:
        """Return what is hidden in a collection but gangs' members, and since when."""
        found = self._mongo[name].find({"retired_us": {"$ne": None}, "gang_id": None}, {"retired_us": 1})
        return {one["_id"]: moment_of(one["retired_us"]) async for one in found}

    # --- looks at running jobs, and bytes --------------------------------------------------------------------------

    async def old_snapshots(self, before: datetime) -> list[tuple[str, str]]:
        """Return looks at running jobs that were asked for before that: id and job."""
        found = self._mongo["snapshots"].find({"asked_us": {"$lt": microseconds(before)}}, {"job_id": 1})
        return [(one["_id"], one["job_id"]) async for one in found]

    async def remove_snapshots(self, *, job_id: str, snapshot_id: str | None = None) -> None:
        """Delete looks at a job, one or all; their bytes are nobody's from then on, unless others have the same."""
        which = {"_id": snapshot_id} if snapshot_id else {"job_id": job_id}
        scope = live_ref(job_id, snapshot_id) if snapshot_id else _below("live", job_id)
        await self._mongo["blob_refs"].delete_many({"scope": scope})
        await self._mongo["snapshots"].delete_many(which)

    async def files(self, before: datetime) -> AsyncGenerator[dict[str, int], None]:
        """Give the files that were stored before that, as lengths by digest, many at a time."""
        wanted = {"uploadDate": {"$lt": before}, "metadata.doomed": None}
        batch: dict[str, int] = {}
        async for one in self._mongo["fs.files"].find(wanted, {"metadata.sha256": 1, "length": 1}, batch_size=BATCH):
            batch[one["metadata"]["sha256"]] = one["length"]
            if len(batch) >= BATCH:
                yield batch
                batch = {}
        if batch:
            yield batch

    async def refs(self, digests: Collection[str]) -> AsyncGenerator[tuple[str, str], None]:
        """Give every reference to these bytes: digest and scope."""
        found = self._mongo["blob_refs"].find({"sha256": {"$in": list(digests)}}, {"_id": 0, "sha256": 1, "scope": 1})
        async for one in found:
            yield one["sha256"], one["scope"]


def _below(kind: str, job_id: str) -> Document:
    return {"$gte": f"{kind}:{job_id}:", "$lt": f"{kind}:{job_id};"}  # ";" follows ":"
