"""Which replica of a service is asked next, and what follows from its answer."""

import re
from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum

from shared.job import Job
from shared.states import JOB_TERMINAL, JobState

#: Seconds for which a replica that has sent a request away is asked only after all others: it has too many, or it goes.
BUSY_PAUSE_S, GONE_PAUSE_S = 0.1, 1.0
_BUSY = "replica_busy"
#: What says that this replica does not answer, which says nothing about the others.
_ELSEWHERE = frozenset({"replica_draining", "replica_gone", "replica_starting", "unavailable", _BUSY})
#: The request may have been worked on.
LOST = "replica_lost"
#: Headers of an answer that are not a program's to set: they are about a connection, or tell a browser how to treat
#: this gateway, where others have what is theirs.
_OURS = frozenset(
    {
        "alt-svc", "clear-site-data", "connection", "content-length", "content-security-policy",
        "content-security-policy-report-only", "date", "keep-alive", "link", "nel", "permissions-policy",
        "proxy-authenticate", "proxy-connection", "referrer-policy", "refresh", "report-to", "reporting-endpoints",
        "server", "service-worker-allowed", "set-cookie", "set-cookie2", "strict-transport-security", "te", "trailer",
        "transfer-encoding", "upgrade", "www-authenticate", "x-content-type-options", "x-frame-options", "x-request-id",
    }
)  # fmt: skip
_OURS_BEGIN = ("access-control-", "cross-origin-", "origin-")
#: How often one request is put to another replica because an answer was lost: one that ends each program that works
#: on it would else end them all.
REPEATS_MAX = 2
#: Replicas that have failed one after the other when whoever asks is told so, and does not wait for the next one.
FAILURES_MAX = 2
#: What the protocols say is asked, and changes nothing: predictions of TensorFlow Serving's form and of the Open
#: Inference Protocol.
_INFERENCE = re.compile(
    r"/v1/models/[^/:]+(/(versions|labels)/[^/:]+)?:(predict|classify|regress)|/v2/models/[^/]+(/versions/[^/]+)?/infer"
)
_SAFE_METHODS = frozenset({"GET", "HEAD", "OPTIONS"})
_NAME, _VALUE = re.compile(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+"), re.compile(r"[\t\x20-\x7e\x80-\xff]*")
#: Whatever a program answers, no browser runs or shows it as a page of this gateway.
_NO_PAGE = ("content-security-policy", "default-src 'none'; frame-ancestors 'none'; sandbox")


@dataclass(frozen=True, slots=True)
class Replica:
    """A replica that runs: the job that it is, and its node."""

    job_id: str
    node: str


@dataclass(slots=True)
class Board:
    """A service's replicas as one gateway sees them.

    Attributes:
        replicas: those that run.
        asked: requests that this gateway waits for, by replica.
        turns: when each replica was asked last, as a count of all requests.
        avoided: until when, in seconds of a steady clock, a replica is left alone.
    """

    replicas: tuple[Replica, ...] = ()
    asked: dict[str, int] = field(default_factory=dict[str, int])
    turns: dict[str, int] = field(default_factory=dict[str, int])
    count: int = 0
    avoided: dict[str, float] = field(default_factory=dict[str, float])

    def update(self, replicas: tuple[Replica, ...]) -> None:
        """Take in which replicas run now; what was known of others is forgotten."""
        self.replicas = replicas
        known = {one.job_id for one in replicas}
        for counts in (self.asked, self.turns):
            for job_id in [one for one in counts if one not in known]:
                del counts[job_id]
        self.avoided = {job_id: until for job_id, until in self.avoided.items() if job_id in known}

    def choose(self, now: float) -> Replica | None:
        """Return the replica with the fewest open requests, of those the one that was asked longest ago."""
        there = [one for one in self.replicas if self.avoided.get(one.job_id, 0.0) <= now]
        return min(there, key=self._load, default=None)

    def free_at(self) -> float | None:
        """Return when the first of the avoided replicas may be asked again; None if there are no replicas."""
        return min((self.avoided.get(one.job_id, 0.0) for one in self.replicas), default=None)

    def begin(self, replica: Replica) -> None:
        """Count a request that is sent."""
        self.asked[replica.job_id] = self.asked.get(replica.job_id, 0) + 1
        self.count += 1
        self.turns[replica.job_id] = self.count

    def end(self, replica: Replica) -> None:
        """Count a request that has come back, with or without an answer."""
        if replica.job_id in self.asked:
            self.asked[replica.job_id] -= 1

    def avoid(self, replica: Replica, code: str, now: float) -> None:
        """Leave *replica* alone for a while, because it answered *code*."""
        self.avoided[replica.job_id] = now + (BUSY_PAUSE_S if code == _BUSY else GONE_PAUSE_S)

    def _load(self, replica: Replica) -> tuple[int, int, str]:
        return self.asked.get(replica.job_id, 0), self.turns.get(replica.job_id, 0), replica.job_id


class Lack(StrEnum):
    """Why a service has no replica that could be asked."""

    ENDED = "ended"
    STOPPED = "stopped"  # somebody wants none
    ASLEEP = "asleep"  # none is kept while nobody asks: a request brings them back
    COMING = "coming"


def replicas_of(job: Job) -> tuple[Replica, ...]:
    """Return the replicas of a service that can be asked."""
    return tuple(Replica(one.job_id, one.node) for one in job.members if one.state is JobState.RUNNING and one.node)


def lack_of(job: Job) -> Lack:
    """Return why none of a service's replicas runs."""
    service = job.spec.service
    if service is None or job.state in JOB_TERMINAL:
        return Lack.ENDED
    if (service.replicas if job.replicas is None else job.replicas) > 0:
        return Lack.COMING
    return Lack.STOPPED if service.idle is None else Lack.ASLEEP


def is_failing(job: Job, now: datetime) -> bool:
    """Return whether a service's replicas have failed one after the other, so that for a while there is none."""
    is_over = all(one.state is JobState.FINISHING for one in job.members)
    return is_over and job.tries >= FAILURES_MAX and job.not_before is not None and now < job.not_before


def was_ready(replica: Job) -> bool:
    """Return whether a replica has ever got to where it could be asked."""
    return any(one.running_at is not None for one in replica.attempts)


def is_repeatable(method: str, path: str) -> bool:
    """Return whether a request does no harm to be done twice: it only looks, or is a prediction."""
    return method in _SAFE_METHODS or _INFERENCE.fullmatch(path.partition("?")[0]) is not None


def is_elsewhere(code: str, *, is_repeatable: bool, losses: int = 0) -> bool:
    """Return whether another replica may be asked after one answered *code*.

    Args:
        code: of the error. All but a lost answer mean that the program was never given the request.
        is_repeatable: it may be done twice.
        losses: how many answers to it were lost before.
    """
    return code in _ELSEWHERE or (code == LOST and is_repeatable and losses < REPEATS_MAX)


def passed_back(headers: Iterable[tuple[str, str]]) -> tuple[tuple[str, str], ...]:
    """Return the headers under which a program's answer is passed on, in small letters. Several of one name stay."""
    small = ((name.lower(), value) for name, value in headers)
    kept = ((name, value) for name, value in small if name not in _OURS and not name.startswith(_OURS_BEGIN))
    sound = ((name, value) for name, value in kept if _NAME.fullmatch(name) and _VALUE.fullmatch(value))
    return (*sound, _NO_PAGE)


def why_waiting(job: Job) -> str:
    """Return a sentence on why no replica runs yet."""
    failed = next((one.error.message for one in job.members if one.error is not None), "")
    told = "; ".join(one.message for one in job.pending) or failed or next(iter(job.remarks[-1:]), "")
    return f"No replica of it runs yet{f': {told}' if told else '.'}"
