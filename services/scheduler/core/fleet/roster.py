"""What the log of the fleet says: each node's record, and what owners may hold."""

from dataclasses import dataclass

from shared.fleet import NodeRecord, Quota


@dataclass(frozen=True, slots=True)
class Listed:
    """A node's record and the sequence of the event that has it."""

    record: NodeRecord
    seq: int


class Roster:
    """Changes only by what the log holds.

    Attributes:
        listed: by the node's id; also those that were forgotten, for a write about them has to name their sequence.
        quotas: by the owner's id, of those who have one.
        position: the stream sequence up to which everything has been taken in.
    """

    def __init__(self) -> None:
        self.listed: dict[str, Listed] = {}
        self.quotas: dict[str, Quota] = {}
        self.position = 0
        self._quota_seqs: dict[str, int] = {}

    def believe(self, record: NodeRecord, seq: int) -> bool:
        """Believe what the log holds at *seq*. Return False for what is not newer than what is known."""
        known = self.listed.get(record.id)
        if known is not None and seq <= known.seq:
            return False
        self.listed[record.id] = Listed(record, seq)
        return True

    def refused(self, node_id: str, last_seq: int) -> None:
        """Take note that a record was not stored, because the log's last one about the node is at *last_seq*."""
        if known := self.listed.get(node_id):
            self.listed[node_id] = Listed(known.record, last_seq)

    def grant(self, owner: str, quota: Quota | None, seq: int) -> bool:
        """Believe what the log holds at *seq* about an owner's quota. Return False for what is not newer."""
        if seq <= self._quota_seqs.get(owner, 0):
            return False
        self._quota_seqs[owner] = seq
        if quota is None:
            self.quotas.pop(owner, None)
        else:
            self.quotas[owner] = quota
        return True

    def record(self, node_id: str) -> NodeRecord | None:
        """Return what is known of a node, or None if it never joined."""
        known = self.listed.get(node_id)
        return known.record if known else None

    def seq(self, node_id: str) -> int:
        """Return the sequence that the next write about the node expects."""
        known = self.listed.get(node_id)
        return known.seq if known else 0
