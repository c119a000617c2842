"""Nodes, quotas and dead letters as documents, and as they are shown.

A node's document has two sources: what its agent last said (at version `seq`, the time of it) and what the scheduler
has recorded about it (at version `record_seq`, the stream sequence). Either may come first.
"""

from datetime import UTC, datetime, timedelta

from services.storage.core.projections import Document, Upsert, microseconds, moment_of
from services.storage.core.queries import Filter, cursor_after, cursor_text, invalid_cursor
from shared.events import DeadLetter, MetricPoint
from shared.fleet import Capacity, Heartbeat, NodeInfo, NodeRecord, Quota, QuotaSet, Usage
from shared.requests.administration import DeadLetterQuery, DeadLetterView
from shared.requests.nodes import NodeView
from shared.states import AttemptState, NodeCondition

#: A node is online when it was heard of within these seconds, or within this many of its intervals.
ONLINE_S, ONLINE_INTERVALS = 30.0, 3
#: The fleet sends at most this many heartbeats a second; no node sends faster than every two seconds.
FLEET_HEARTBEATS_PER_S, INTERVAL_LEAST_S = 500, 2.0
#: The field with the version of what the scheduler recorded about a node.
RECORD_VERSION = "record_seq"
#: Nodes that are shown: all but those that an admin has removed.
SHOWN: Filter = {"forgotten": {"$ne": True}}
#: Seconds between two samples of what a node uses, at least, and samples of all nodes in a second; kept so many days.
SAMPLE_S, SAMPLES_PER_S, SAMPLES_KEPT_DAYS = 60.0, 5, 7
_GONE = frozenset({NodeCondition.LOST, NodeCondition.LEFT})


# --- nodes -------------------------------------------------------------------------------------------------------


def node_upsert(node_id: str, heartbeat: Heartbeat, seen_at: datetime) -> Upsert:
    """Return what the agent said of its node. The id is the subject's, never the body's."""
    node = heartbeat.node.model_copy(update={"id": node_id})
    body = heartbeat.model_copy(update={"node": node}).to_bytes().decode()
    return Upsert(node_id, microseconds(seen_at), {"name": heartbeat.node.name, "heartbeat": body})


def sample_period_s(nodes: int) -> float:
    """Return how many seconds lie between two samples of a node that are kept: more where there are many nodes."""
    return max(SAMPLE_S, nodes / SAMPLES_PER_S)


def sample(node_id: str, heartbeat: Heartbeat, at: datetime, period_s: float) -> Document:
    """Return what a node uses at a moment; one of each node and period is kept, the first that is written."""
    usage, slot = heartbeat.usage, int(at.timestamp() // period_s)
    gpus = heartbeat.capacity.gpus
    values = {
        "cpu": usage.cpu_percent,
        "load": usage.load1,
        "memory": float(max(0, heartbeat.capacity.memory - usage.memory_available)),
        "disk_free": float(usage.disk_free),
        "running_jobs": float(sum(held.state == AttemptState.RUNNING for held in heartbeat.attempts)),
    }
    if gpus:
        values["gpu"] = sum(one.utilisation for one in gpus) / len(gpus)
        values["gpu_memory"] = float(sum(one.memory_used for one in gpus))
    return {"_id": f"{node_id}/{period_s:g}/{slot}", "node_id": node_id, "at": at, "values": values}


def points(document: Document) -> list[MetricPoint]:
    """Return a sample as points of series."""
    at = document["at"].replace(tzinfo=UTC)  # MongoDB's times have none, and are in UTC
    return [MetricPoint(name=name, value=value, at=at) for name, value in document["values"].items()]


def record_upsert(seq: int, node_id: str, record: NodeRecord) -> Upsert:
    """Return what the scheduler recorded of a node in the event with stream sequence *seq*."""
    whole = record.model_copy(update={"id": node_id})
    return Upsert(
        node_id,
        seq,
        {
            "name": record.name or node_id,
            "condition": record.condition.value,
            "duty": record.duty.value,
            "forgotten": record.forgotten,
            "record": whole.to_bytes().decode(),
        },
    )


def node_view(document: Document, now: datetime, nodes_total: int) -> NodeView:
    """Return a node as it is shown."""
    record = NodeRecord.from_bytes(document["record"].encode()) if "record" in document else None
    if "heartbeat" not in document:
        return _never_heard(document["_id"], record, now)
    heartbeat = Heartbeat.from_bytes(document["heartbeat"].encode())
    seen_at = moment_of(document["seq"])
    heard = now - seen_at <= online_within(nodes_total)
    return NodeView(
        node=heartbeat.node,
        capacity=heartbeat.capacity,
        usage=heartbeat.usage,
        attempts=tuple(held.model_dump(mode="json") for held in heartbeat.attempts),
        images=heartbeat.images,
        inputs=heartbeat.inputs,
        seen_at=seen_at,
        online=heard and (record is None or record.condition not in _GONE),
        record=record,
        problem=heartbeat.problem,
    )


def _never_heard(node_id: str, record: NodeRecord | None, now: datetime) -> NodeView:
    """Return a node of which only the scheduler's record is known: this database has not seen a heartbeat of it."""
    return NodeView(
        node=NodeInfo(id=node_id, name=record.name if record and record.name else node_id),
        capacity=Capacity(cpus=0, memory=0, disk=0),
        usage=Usage(),
        seen_at=record.since if record else now,
        online=False,
        record=record,
        problem=record.problem if record else "",
    )


def online_within(nodes_total: int) -> timedelta:
    """Return how old a node's last heartbeat may be: the interval grows with the fleet."""
    interval_s = max(INTERVAL_LEAST_S, nodes_total / FLEET_HEARTBEATS_PER_S)
    return timedelta(seconds=max(ONLINE_S, ONLINE_INTERVALS * interval_s))


def nodes_filter(cursor: str | None) -> Filter:
    """Return the filter of a page of nodes, by name.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    match cursor_after(cursor):
        case None:
            return SHOWN
        case [str(name), str(node_id)]:
            return SHOWN | {"$or": [{"name": {"$gt": name}}, {"name": name, "_id": {"$gt": node_id}}]}
        case _:
            raise invalid_cursor()


def nodes_cursor(last: NodeView) -> str:
    """Return the cursor that continues after a node."""
    return cursor_text(last.node.name, last.node.id)


# --- quotas ------------------------------------------------------------------------------------------------------


def quota_upsert(seq: int, owner_id: str, said: QuotaSet) -> Upsert:
    """Return an owner's quota; the last word counts. `queued` stands beside it for whoever lets jobs in."""
    quota = said.quota
    text = quota.to_bytes().decode() if quota else None
    return Upsert(owner_id, seq, {"quota": text, "queued": quota.queued if quota else None})


def quota_of(document: Document | None) -> Quota | None:
    """Return the quota in a document."""
    text = document["quota"] if document else None
    return Quota.from_bytes(text.encode()) if text else None


# --- dead letters ------------------------------------------------------------------------------------------------


def letter_upsert(seq: int, letter: DeadLetter) -> Upsert:
    """Return a dead letter. One that comes back could not be taken in again, so it has not been replayed."""
    return Upsert(
        letter.id,
        seq,
        {
            "reader": letter.reader,
            "at_us": microseconds(letter.at),
            "letter": letter.to_bytes().decode(),
            "replayed_us": None,
        },
    )


def letter_view(document: Document) -> DeadLetterView:
    """Return a dead letter as it is shown."""
    replayed_us = document["replayed_us"]
    return DeadLetterView(
        letter=DeadLetter.from_bytes(document["letter"].encode()),
        replayed_at=None if replayed_us is None else moment_of(replayed_us),
    )


def letters_filter(query: DeadLetterQuery) -> Filter:
    """Return the filter of a page of dead letters, newest first.

    Raises:
        WherryError: ``invalid``: an unknown cursor.
    """
    wanted: Filter = {} if query.reader is None else {"reader": {"$eq": query.reader}}
    match cursor_after(query.cursor):
        case None:
            return wanted
        case [int(at_us), str(letter_id)]:
            return wanted | {"$or": [{"at_us": {"$lt": at_us}}, {"at_us": at_us, "_id": {"$lt": letter_id}}]}
        case _:
            raise invalid_cursor()


def letters_cursor(last: DeadLetterView) -> str:
    """Return the cursor that continues after a dead letter."""
    return cursor_text(microseconds(last.letter.at), last.letter.id)
