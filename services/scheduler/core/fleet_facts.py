"""What the log of the fleet says, as the core takes it in: records of nodes, admins' wishes, and owners' quotas."""

from dataclasses import dataclass

from shared import channels
from shared.events import Event
from shared.fleet import NodeChanged, NodeRecord, NodeWish, Quota, QuotaSet
from shared.model import Message


@dataclass(frozen=True, slots=True)
class NodeRecorded:
    """A node's record at *seq*, and the epoch of the scheduler that wrote it."""

    seq: int
    record: NodeRecord
    epoch: int


@dataclass(frozen=True, slots=True)
class Wish:
    """What an admin wants of a node, at *seq*; `cause` is the event's id."""

    seq: int
    node_id: str
    verb: str
    wish: NodeWish
    cause: str


@dataclass(frozen=True, slots=True)
class QuotaGiven:
    """An owner's quota at *seq*; None: no limits any more."""

    seq: int
    owner: str
    quota: Quota | None


FleetFact = NodeRecorded | Wish | QuotaGiven


def read_fleet_fact(subject: str, seq: int, event: Event[Message]) -> FleetFact | None:
    """Return what a message means, or None if it contradicts its subject, which the broker has checked."""
    match event.data:
        case NodeChanged(node=record, epoch=epoch):
            params = channels.NODE_CHANGED.parse(subject)
            return NodeRecorded(seq, record, epoch) if params == {"node_id": record.id} else None
        case NodeWish() as wish:
            params = channels.NODE_WISH.parse(subject)
            return Wish(seq, params["node_id"], params["verb"], wish, event.id) if params else None
        case QuotaSet(quota=quota):
            params = channels.QUOTA_SET.parse(subject)
            return QuotaGiven(seq, params["owner"], quota) if params else None
        case _:
            return None
