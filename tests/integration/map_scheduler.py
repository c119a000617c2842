"""Plays the scheduler and a worker's node for map jobs, where a test has a gateway and a storage alone."""

from datetime import datetime
from typing import Any, ClassVar

from shared.blobs import BlobClient
from shared.bus import Record, job_filter
from shared.channels import JOB_CHANGED, JOBS
from shared.clock import utc_now
from shared.events import ItemsAdded, ItemsRetried, JobChanged
from shared.ids import new_id
from shared.job import Attempt, BlobRef, Failure, GangMember, GangPlace, Item, ItemCounts, ItemFile, Job
from shared.requests.blobs import BlobScope
from shared.spec import ItemSpec, JobSpec
from shared.states import AttemptState, EndReason, ItemState, JobState
from tests.integration.gateway_stack import NODE, Scheduler

WORKER_SPEC = JobSpec(image="busybox", name="worker")


class MapScheduler(Scheduler):
    """Takes items in as they were asked for, and ends them as a test says.

    What is remembered of jobs is for all of them: a test may connect anew for each thing that it does.
    """

    items: ClassVar[dict[str, dict[str, Item]]] = {}
    read: ClassVar[dict[str, int]] = {}

    async def take_in(self, job_id: str) -> list[Item]:
        """Record all that was asked of a job since the last time; return its items."""
        items = self.items.setdefault(job_id, {})
        first = self.read.get(job_id, 0) + 1
        for seq in range(first, await self.bus.stream_last_seq(JOBS) + 1):
            asked = await self.bus.read(JOBS, seq)
            if asked is None or asked.params.get("job_id") != job_id:
                continue
            changed: list[Item] = []
            if isinstance(asked.data, ItemsAdded):
                for spec in asked.data.items:
                    if spec.id and spec.id not in items:
                        items[spec.id] = _new(spec, spec.id, len(items), asked.data.at)
                        changed.append(items[spec.id])
                await self.change(job_id, changed, input_seq=seq, closed=asked.data.close)
            elif isinstance(asked.data, ItemsRetried):
                for one in list(items.values()):
                    if one.state is ItemState.FAILED and (not asked.data.items or one.id in asked.data.items):
                        items[one.id] = one.model_copy(update={"state": ItemState.WAITING, "error": None})
                        changed.append(items[one.id])
                await self.change(job_id, changed, input_seq=seq)
            self.read[job_id] = seq
        return list(items.values())

    async def change(self, job_id: str, items: list[Item], *, closed: bool = False, **changes: Any) -> None:
        """Record that items of a job changed."""
        seq, job = await self.last(job_id)
        all_items = self.items[job_id].values()
        counts = ItemCounts(
            total=len(all_items), closed=closed or bool(job.items and job.items.closed),
            succeeded=sum(one.state is ItemState.SUCCEEDED for one in all_items),
            failed=sum(one.state is ItemState.FAILED for one in all_items),
            bytes=sum(one.spec.bytes for one in all_items),
        )  # fmt: skip
        moved = job.model_copy(update={"items": counts, "updated_at": utc_now(), **changes})
        data = JobChanged(job=moved, epoch=1, items=tuple(items))
        told = self.bus.event(JOB_CHANGED, data, subject=job_id, event="items")
        params = {"owner": job.owner.id, "job_id": job_id, "event": "items"}
        await self.bus.record(Record(JOB_CHANGED, params, told, (job_filter(job_id), seq)))

    async def start_worker(self, job_id: str, state: JobState = JobState.RUNNING) -> str:
        """Record a worker of a map job that runs on NODE, or is in another state; return its id."""
        _, parent = await self.last(job_id)
        worker_id, now = new_id("j"), utc_now()
        attempt = Attempt(number=1, node=NODE, state=AttemptState.RUNNING, placed_at=now)
        place = GangPlace(gang_id=job_id, round=0, role="worker", index=0, rank=0, size=1)
        worker = Job(
            id=worker_id, owner=parent.owner, spec=WORKER_SPEC, state=state, created_at=now, updated_at=now,
            attempt=1, attempts=(attempt,), member_of=place,
        )  # fmt: skip
        told = self.bus.event(JOB_CHANGED, JobChanged(job=worker, epoch=1), subject=worker_id, event="running")
        params = {"owner": worker.owner.id, "job_id": worker_id, "event": "running"}
        await self.bus.record(Record(JOB_CHANGED, params, told, (job_filter(worker_id), 0)))
        member = GangMember(job_id=worker_id, role="worker", index=0, node=NODE, state=JobState.RUNNING, placed_at=now)
        self.items.setdefault(job_id, {})
        await self.change(job_id, [], state=JobState.RUNNING, members=(member,))
        return worker_id

    async def succeed(
        self, job_id: str, item_id: str, worker_id: str, blobs: BlobClient, files: dict[str, bytes]
    ) -> None:
        """Store what a worker left for an item, and record that it has succeeded."""
        scope = BlobScope(job_id=worker_id, attempt=1)
        left = [
            ItemFile(path=path, blob=(await blobs.upload(_pieces(body), scope)).blob) for path, body in files.items()
        ]
        await self._end(
            job_id, item_id, worker=worker_id, attempt=1, state=ItemState.SUCCEEDED, files=tuple(left), error=None
        )

    async def fail(self, job_id: str, item_id: str, worker_id: str, message: str) -> None:
        """Record that an item has failed."""
        error = Failure(reason=EndReason.ITEM_FAILED, message=message)
        await self._end(job_id, item_id, worker=worker_id, attempt=1, state=ItemState.FAILED, error=error)

    async def _end(self, job_id: str, item_id: str, **changes: Any) -> None:
        items, now = self.items[job_id], utc_now()
        one = items[item_id]
        tried = {"tries": one.tries + 1, "node": NODE, "started_at": now, "ended_at": now}
        items[item_id] = one.model_copy(update=tried | changes)
        await self.change(job_id, [items[item_id]])


def _new(spec: ItemSpec, item_id: str, index: int, at: datetime) -> Item:
    item = Item(id=item_id, index=index, spec=spec, added_at=at)
    if not spec.given or spec.sha256 is None:
        return item
    given = ItemFile(path=spec.name, blob=BlobRef(sha256=spec.sha256, size=spec.size or 0))
    return item.model_copy(update={"state": ItemState.SUCCEEDED, "files": (given,), "ended_at": at})


async def _pieces(body: bytes):
    yield body
