"""From messages to documents. Writing the same message twice, or an older one later, changes nothing."""

from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from typing import Any

from shared.errors import NotFound
from shared.events import DeliveryRequested, DeliveryTried, JobChanged, OutputBatch, Progress
from shared.job import Job
from shared.requests.jobs import DeliveryView

Document = dict[str, Any]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)


@dataclass(frozen=True, slots=True)
class Upsert:
    """Set *fields* on document *id*, unless it is already at *version* (in the field `seq`) or beyond."""

    id: str
    version: int
    fields: Document


def microseconds(moment: datetime) -> int:
    """Return *moment* as whole microseconds since 1970: what is stored, since BSON dates stop at milliseconds."""
    return (moment - _EPOCH) // timedelta(microseconds=1)


def moment_of(us: int) -> datetime:
    """Return the time that is *us* microseconds after 1970."""
    return _EPOCH + timedelta(microseconds=us)


# --- jobs --------------------------------------------------------------------------------------------------------


def job_upsert(seq: int, job: Job) -> Upsert:
    """Return the job's document after the event with stream sequence *seq*.

    The job travels as JSON text, so that users' own keys never become MongoDB's; beside it stand the fields that
    queries use, and the node of every attempt that the event still names.
    """
    fields: Document = {
        "owner_id": job.owner.id,
        "state": job.state.value,
        "name": job.spec.name,
        "kind": job.spec.kind,
        "view": view_key(job.spec.view),
        "gang_id": job.member_of.gang_id if job.member_of else None,
        "labels": list(job.spec.labels),
        "created_us": microseconds(job.created_at),
        "job": job.to_bytes().decode(),
    }
    if used := datasets_of(job):
        fields["datasets"] = used
    fields |= {f"nodes.{attempt.number}": attempt.node for attempt in job.attempts}
    return Upsert(job.id, seq, fields)


def view_key(view: str) -> str | None:
    """Return what stands for *view* in a job's document: nothing for plain jobs, which are not indexed by it."""
    return None if view == "job" else view


def item_upserts(seq: int, change: JobChanged) -> list[Upsert]:
    """Return the documents of the items that the event with stream sequence *seq* changes."""
    job = change.job
    return [
        Upsert(
            item_key(job.id, item.id),
            seq,
            {
                "job_id": job.id,
                "item_id": item.id,
                "owner_id": job.owner.id,
                "index": item.index,
                "state": item.state.value,
                "artifact": item.spec.artifact,
                "item": item.to_bytes().decode(),
            },
        )
        for item in change.items
    ]


def item_key(job_id: str, item_id: str) -> str:
    """Return the key of an item: users may name one as they like, so its id alone may be another job's too."""
    return f"{job_id}/{item_id}"


def datasets_of(job: Job) -> list[str]:
    """Return the datasets (``name@version``) that a job has as inputs."""
    sources = (given.source for given in job.spec.inputs.values())
    return sorted({source.removeprefix("dataset:") for source in sources if source.startswith("dataset:")})


def event_document(seq: int, job: Job, text: str) -> Document:
    """Return the document that keeps an event byte for byte."""
    return {"_id": seq, "job_id": job.id, "owner_id": job.owner.id, "event": text}


def newest(upserts: list[Upsert]) -> list[Upsert]:
    """Return the one with the highest version for each id, with all fields that only older ones have."""
    by_id: dict[str, Upsert] = {}
    for upsert in sorted(upserts, key=lambda one: one.version):
        before = by_id.get(upsert.id)
        fields = (before.fields if before else {}) | upsert.fields
        by_id[upsert.id] = Upsert(upsert.id, upsert.version, fields)
    return list(by_id.values())


# --- output ------------------------------------------------------------------------------------------------------


def attempt_key(job_id: str, attempt: int, node_id: str) -> str:
    """Return the key of what *node_id* says about an attempt: nobody else's words are mixed in."""
    return f"{job_id}/{attempt}/{node_id}"


def log_document(key: str, batch: OutputBatch) -> Document | None:
    """Return the document that keeps a batch's lines, or None if it has none."""
    if not batch.lines:
        return None
    numbers = [line.n for line in batch.lines]
    lines = OutputBatch(lines=batch.lines).to_bytes().decode()
    return {
        "_id": f"{key}/{min(numbers)}-{max(numbers)}",
        "key": key,
        "first": min(numbers),
        "last": max(numbers),
        "until_us": max(microseconds(line.t) for line in batch.lines),
        "lines": lines,
    }


def metric_document(key: str, batch: OutputBatch) -> Document | None:
    """Return the document that keeps a batch's metric points, or None if it has none.

    One with `parts` is part of all that the attempt measured, and stands in the place of what came before.
    """
    if not batch.metrics:
        return None
    points = OutputBatch(metrics=batch.metrics).to_bytes()
    digest = sha256(points).hexdigest()[:16]  # the same batch again is the same document
    document: Document = {
        "_id": f"{key}/{digest}",
        "key": key,
        "at_us": microseconds(batch.metrics[0].at),
        "count": len(batch.metrics),
        "points": points.decode(),
    }
    if batch.final is not None:
        document |= {"_id": f"{key}/final/{batch.final.index}", "part": batch.final.index, "parts": batch.final.count}
    return document


def progress_upsert(key: str, progress: Progress) -> Upsert:
    """Return the attempt's progress; the newest word counts."""
    return Upsert(key, microseconds(progress.at), {"progress": progress.to_bytes().decode()})


# --- deliveries --------------------------------------------------------------------------------------------------


def delivery_requested(requested: DeliveryRequested) -> Document:
    """Return the fields that a request sets, whenever it comes."""
    return {"job_id": requested.job_id, "requested": requested.to_bytes().decode()}


def delivery_tried(seq: int, tried: DeliveryTried) -> Upsert:
    """Return the outcome of a try; the last one counts."""
    return Upsert(tried.delivery_id, seq, {"job_id": tried.job_id, "tried": tried.to_bytes().decode()})


def delivery_view(document: Document) -> DeliveryView:
    """Return a delivery as it is shown.

    Raises:
        NotFound: only a try of it is known so far.
    """
    if "requested" not in document:
        raise NotFound("The request of this delivery has not arrived yet.")
    requested = DeliveryRequested.from_bytes(document["requested"].encode())
    tried = DeliveryTried.from_bytes(document["tried"].encode()) if "tried" in document else None
    return DeliveryView(
        id=requested.delivery_id,
        job_id=requested.job_id,
        owner_id=requested.owner_id,
        kind=requested.kind,
        target=requested.target,
        event=requested.event,
        state=tried.state if tried else "pending",
        tries=tried.tries if tried else 0,
        detail=tried.detail if tried else "",
        requested_at=requested.at,
        updated_at=tried.at if tried else requested.at,
        next_at=tried.next_at if tried else None,
    )
