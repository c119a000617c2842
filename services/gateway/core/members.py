"""Reading what all members of a job print: who they are, and how far a reader has come with each."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field

from services.gateway.core.tail import event_id, parse_event_id
from shared.job import GangMember, Job

#: Where a reader is in one member's output: attempt and line.
Place = tuple[int, int]
#: Members that an SSE id is believed to name.
_NAMED_MOST = 4096
_HORIZON = re.compile(r"@(\d{1,18})")
_CURSOR = re.compile(r"(j[a-z0-9-]{1,64})\.(\d{1,15})")


@dataclass(frozen=True, slots=True)
class Member:
    """One whose output is read.

    Attributes:
        job_id: its own.
        name: role and index; another may have had the same before it.
        node: of its last attempt; empty before the first.
        since_us: when it was made, in microseconds since 1970; 0 of a gang's, which are all there from its beginning.
        is_over: whether it has ended.
    """

    job_id: str
    name: str
    node: str = ""
    since_us: int = 0
    is_over: bool = False

    @property
    def key(self) -> str:
        """Return what it is called in SSE ids."""
        return self.job_id[-8:]


def has_members(job: Job) -> bool:
    """Return whether members do what the job is there for."""
    return job.spec.kind != "run"


def come_and_go(job: Job) -> bool:
    """Return whether a job's members are made and end while it goes on: workers and replicas, but not a gang's."""
    return job.spec.kind in ("map", "service")


def of_gang(gang: Job) -> list[Member]:
    """Return the members of a gang's last round."""
    return [Member(one.job_id, name_of(one), one.node, is_over=False) for one in gang.members]


def of_jobs(jobs: Iterable[Job]) -> list[Member]:
    """Return members by their own records, oldest first."""
    found: list[Member] = []
    for job in jobs:
        if job.member_of is not None:
            since_us = int(job.created_at.timestamp() * 1_000_000)
            name = f"{job.member_of.role}-{job.member_of.index}"
            node = job.attempts[-1].node if job.attempts else ""
            found.append(Member(job.id, name, node, since_us, job.is_terminal))
    return sorted(found, key=lambda one: (one.since_us, one.name, one.job_id))


def name_of(member: GangMember) -> str:
    """Return what a member is called in front of its lines."""
    return f"{member.role}-{member.index}"


@dataclass(slots=True)
class Places:
    """How far a reader of many members' output has come; its text is the SSE id of what was given last.

    Members whose output was given to its end are not in it, however many they were: the horizon stands for them.

    Attributes:
        horizon_us: members made until then, and not in `places`, were given to their end.
        places: by `Member.key`; None: nothing was given yet.
    """

    horizon_us: int = 0
    places: dict[str, Place | None] = field(default_factory=dict[str, Place | None])
    _ended: dict[str, int] = field(default_factory=dict[str, int])  # when they were made, beyond the horizon

    @classmethod
    def parse(cls, text: str | None) -> "Places":
        """Read an SSE id; what is not one of ours is left out."""
        first, *more = (text or "").split(",", _NAMED_MOST)[:_NAMED_MOST]
        found = _HORIZON.fullmatch(first)
        pairs = (part.partition("=") for part in (more if found else [first, *more]))
        places = {key: parse_event_id(value) for key, equals, value in pairs if key and equals}
        return cls(int(found[1]) if found else 0, places)

    def event_id(self) -> str:
        """Return the SSE id."""
        named = [f"{key}={event_id(*place) if place else ''}" for key, place in self.places.items()]
        return ",".join([f"@{self.horizon_us}", *named] if self.horizon_us else named)

    def is_given(self, member: Member) -> bool:
        """Return whether all of *member*'s output was given."""
        return member.key not in self.places and 0 < member.since_us <= self.horizon_us

    def begin(self, member: Member) -> Place | None:
        """Count *member* among those that are read; return where its output goes on."""
        return self.places.setdefault(member.key, None)

    def come(self, member: Member, place: Place) -> None:
        """Note how far *member*'s output was given."""
        self.places[member.key] = place

    def end(self, member: Member) -> None:
        """Note that *member*'s output was given to its end."""
        if member.since_us:
            self._ended[member.key] = member.since_us
        self._clear()

    def see(self, horizon_us: int) -> None:
        """Note that all members that were made until *horizon_us* are known."""
        self.horizon_us = max(self.horizon_us, horizon_us)
        self._clear()

    def _clear(self) -> None:
        for key in [key for key, since_us in self._ended.items() if since_us <= self.horizon_us]:
            del self._ended[key]
            self.places.pop(key, None)


def cursor(job_id: str, number: int) -> str:
    """Return where a list of lines goes on: behind line *number* of a member."""
    return f"{job_id}.{number}"


def parse_cursor(text: str) -> tuple[str, int] | None:
    """Return a member's job and a line's number, or None where *text* is no cursor of ours."""
    found = _CURSOR.fullmatch(text)
    return (found[1], int(found[2])) if found else None
