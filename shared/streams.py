"""Streams and consumers as code: created at set-up, compared with what the server has at every start.

A value that the server has and this file does not mention is left alone. Sizes are bytes, times seconds.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from shared import channels

GIB, MIB = 1024**3, 1024**2
_NS = 10**9  # JetStream counts time in nanoseconds
_DAY_S = 86400

#: What may be changed on a live stream; a difference in anything else needs a person to decide.
STREAM_MUTABLE = frozenset(
    {
        "subjects",
        "max_age",
        "max_bytes",
        "max_msgs",
        "max_msgs_per_subject",
        "discard",
        "duplicate_window",
        "num_replicas",
        "republish",
    }
    | {"allow_direct", "allow_atomic", "allow_msg_ttl", "deny_delete", "deny_purge"}
)
CONSUMER_MUTABLE = frozenset({"ack_wait", "max_ack_pending", "max_deliver", "filter_subjects", "num_replicas"})


def _any(_wanted: Any, _live: Any) -> bool:
    return True


def _is_less(wanted: float | None, live: float | None) -> bool:
    """Whether *live* keeps less than *wanted*; nothing, 0 and what is negative is no limit."""
    ours, theirs = ((value if value and value > 0 else math.inf) for value in (wanted, live))
    return theirs < ours


def _is_missing(wanted: Any, live: Any) -> bool:
    return not set(wanted or ()) <= set(live or ())


def _is_shorter(wanted: float | None, live: float | None) -> bool:
    return (live or 0) < (wanted or 0)


#: Settings by which something can be lost or written twice -> whether it is, from what is wanted and what is live.
_LOSES: Mapping[str, Callable[[Any, Any], bool]] = {
    "subjects": _is_missing,
    "filter_subjects": _is_missing,
    "retention": _any,
    "storage": _any,
    "discard": _any,
    "persist_mode": _any,
    "allow_atomic": _any,
    "duplicate_window": _is_shorter,
    "max_age": _is_less,
    "max_msgs": _is_less,
    "max_msgs_per_subject": _is_less,
    "ack_policy": _any,
    "deliver_policy": _any,
    "max_deliver": _is_less,
}


@dataclass(frozen=True, slots=True)
class Durable:
    """A pull consumer with explicit acks. It exists before its reader does: readers need no right to make one."""

    name: str
    stream: str
    filters: tuple[str, ...]
    ack_wait_s: float = 30
    max_ack_pending: int = 4096
    max_deliver: int = -1

    def config(self, replicas: int = 1) -> dict[str, Any]:
        """Return the consumer as JetStream's API takes it."""
        return {
            "durable_name": self.name,
            "deliver_policy": "all",
            "ack_policy": "explicit",
            "ack_wait": int(self.ack_wait_s * _NS),
            "max_ack_pending": self.max_ack_pending,
            "max_deliver": self.max_deliver,
            "filter_subjects": list(self.filters),
            "num_replicas": replicas,
        }


@dataclass(frozen=True, slots=True)
class Stream:
    """One stream. `discard` new refuses what does not fit, which the writer sees; old forgets the oldest.

    `durable` is for what must be on disk before it is acknowledged. Such a stream takes atomic batches: the bus
    repeats an unanswered conditional write as a batch of one. What is not durable is written to disk a little later
    (one server) or as the others are (a cluster). Memory would not do: a lone server forgets its memory streams, and
    the consumers on them, when it restarts.
    """

    name: str
    subjects: tuple[str, ...]
    max_bytes: int
    max_age_s: float = 0
    discard: str = "new"
    durable: bool = True
    duplicate_window_s: float = 600
    extra: Mapping[str, Any] = field(default_factory=dict[str, Any])

    def config(self, replicas: int = 1) -> dict[str, Any]:
        """Return the stream as JetStream's API takes it."""
        return {
            "name": self.name,
            "subjects": list(self.subjects),
            "retention": "limits",
            "storage": "file",
            "discard": self.discard,
            "max_bytes": self.max_bytes,
            "max_msgs": -1,
            "max_msgs_per_subject": -1,
            "max_age": int(self.max_age_s * _NS),
            "duplicate_window": int(self.duplicate_window_s * _NS),
            "num_replicas": replicas,
            "allow_atomic": self.durable,
            "persist_mode": "" if self.durable or replicas > 1 else "async",
            **self.extra,
        }


def _republish(source: str, target: str) -> dict[str, Any]:
    return {"republish": {"src": source, "dest": target}}


_THREE = "{{wildcard(1)}}.{{wildcard(2)}}.{{wildcard(3)}}"

STREAMS: tuple[Stream, ...] = (
    Stream(
        channels.JOBS,
        ("wherry.job.>", "wherry.attempt.>", "wherry.request.>"),
        max_bytes=4 * GIB,
        max_age_s=30 * _DAY_S,
        extra={"allow_direct": True} | _republish("wherry.job.*.*.*", f"wherry.feed.{_THREE}"),
    ),
    Stream(
        channels.LOGS,
        ("wherry.log.>",),
        max_bytes=256 * MIB,
        max_age_s=3600,
        discard="old",
        durable=False,
        duplicate_window_s=1,
        extra=_republish("wherry.log.*.*.*", f"wherry.tail.{_THREE}"),
    ),
    Stream(channels.NOTIFY, ("wherry.delivery.>",), max_bytes=GIB, max_age_s=30 * _DAY_S),
    Stream(
        channels.SNAPSHOT,
        ("wherry.snapshot.>",),
        max_bytes=GIB,
        extra={"max_msgs_per_subject": 1},
    ),
    Stream(
        channels.LEADER,
        ("wherry.leader.>",),
        max_bytes=16 * MIB,
        duplicate_window_s=60,
        extra={"allow_msg_ttl": True, "max_msgs_per_subject": 1},
    ),
    Stream(
        channels.FLEET,
        ("wherry.fleet.>",),
        max_bytes=GIB,
        # A node's record is whole in each event; what was wished is in the record once it is decided.
        extra={"max_msgs_per_subject": 16, "allow_direct": True},
    ),
    Stream(
        channels.AUDIT,
        ("wherry.audit.>",),
        max_bytes=GIB,
        max_age_s=365 * _DAY_S,
        extra={"deny_delete": True, "deny_purge": True},
    ),
    Stream(channels.DLQ, ("wherry.dlq.>",), max_bytes=256 * MIB, max_age_s=30 * _DAY_S),
)

_ENDS = tuple(f"wherry.job.*.*.{end}" for end in ("succeeded", "failed", "cancelled", "timed_out"))

DURABLES: tuple[Durable, ...] = (
    # What a killed storage had taken comes again after this long, and is missing from lists until then.
    Durable("storage", channels.JOBS, ("wherry.job.>",), ack_wait_s=10),
    Durable("notifier", channels.JOBS, _ENDS, max_ack_pending=1024),
    Durable("storage-log", channels.LOGS, ("wherry.log.>",), ack_wait_s=10),
    # A delivery waits for its next try as an unsettled message, for days: there may be many, and no last try.
    Durable("deliver", channels.NOTIFY, ("wherry.delivery.*.*.requested",), ack_wait_s=60, max_ack_pending=100_000),
    Durable("storage-fleet", channels.FLEET, ("wherry.fleet.node.>", "wherry.fleet.owner.>"), ack_wait_s=10),
    Durable("storage-dlq", channels.DLQ, ("wherry.dlq.>",), ack_wait_s=10),
    Durable("storage-delivery", channels.NOTIFY, ("wherry.delivery.>",), ack_wait_s=10),
)


def losses(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return those of `differences` by which something would be lost, or written twice, as (wanted, live)."""
    return {key: both for key, both in differences(wanted, live).items() if key in _LOSES and _LOSES[key](*both)}


def differences(wanted: Mapping[str, Any], live: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Return what *live* has otherwise than *wanted*, as (wanted, live). What only *live* has does not count."""
    return {key: (value, live.get(key)) for key, value in wanted.items() if not _same(value, live.get(key))}


def _same(wanted: Any, live: Any) -> bool:
    if isinstance(wanted, Mapping) and isinstance(live, Mapping):
        return not differences(wanted, live)  # pyright: ignore[reportUnknownArgumentType]
    return wanted == live or (not wanted and not live)
