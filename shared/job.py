"""A job as every event carries it: the spec and all that has become of it."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Field

from shared.model import Amount, Message, Name, Remark, Sentence
from shared.spec import ItemSpec, JobSpec
from shared.states import JOB_TERMINAL, AttemptState, EndReason, ItemState, JobState, PendingCode

#: Attempts kept in an event; older ones remain in the log.
ATTEMPTS_KEPT = 8
REMARKS_KEPT = 50
#: Of a process, on any system; what reports say travels on in numbers of 64 bits.
ExitCode = Annotated[int, Field(ge=-(2**31), lt=2**32)]


#: The most that an attempt used of something, by name (``system.memory``).
Peaks = Annotated[dict[Annotated[str, Field(max_length=100)], float], Field(max_length=200)]


class Owner(Message):
    """Whose job it is, as known when it was handed in."""

    id: str
    name: str
    email: str | None = None


class PendingReason(Message):
    """Why a job waits: a code, and how many nodes it rules out."""

    code: PendingCode
    nodes: int
    message: Sentence


class BlobRef(Message):
    """Stored bytes, named by what they are."""

    sha256: Annotated[str, Field(max_length=128)]
    size: Amount


class OutputsRef(Message):
    """What an attempt left: the manifest (JSON, see `shared.manifest`) and its totals."""

    manifest: BlobRef
    files: Amount
    bytes: Amount


class Failure(Message):
    """How something ended that did not succeed."""

    reason: EndReason
    message: Sentence


class Attempt(Message):
    """One try on one node. Its number is the fencing token: reports about another number change nothing."""

    number: int
    node: str
    state: AttemptState
    phase: str | None = None  # "pull" or "stage_in" while starting
    gpus: tuple[str, ...] = ()  # UUIDs promised
    score: dict[str, float] = {}  # why this node
    image_digest: Name | None = None
    placed_at: datetime
    starting_at: datetime | None = None
    running_at: datetime | None = None
    finishing_at: datetime | None = None
    ended_at: datetime | None = None
    heard_at: datetime | None = None  # of an attempt that was lost with its node: when that was last heard
    exit_code: int | None = None
    error: Failure | None = None
    outputs: OutputsRef | None = None
    peaks: Peaks = {}


class ItemFile(Message):
    """A file that an item has left. A single one that has no folder has its plain name as `path`."""

    path: Annotated[str, Field(max_length=1024)]
    blob: BlobRef


#: Files that one item leaves, at most.
ITEM_FILES_MAX = 64


class Item(Message):
    """One item of a map job after an event, whole."""

    id: str
    index: int  # in the order in which the log has them, from 0
    spec: ItemSpec
    state: ItemState = ItemState.WAITING
    tries: int = 0  # that have come to an end
    added_at: datetime
    started_at: datetime | None = None  # of the last try
    ended_at: datetime | None = None
    node: str = ""  # of the last try
    worker: str = ""  # the worker's job id; with `attempt`, the scope of what it has stored
    attempt: int = 0
    error: Failure | None = None
    files: tuple[ItemFile, ...] = ()


class ItemCounts(Message):
    """How far a map job is. Those that are neither waiting nor ended are with a worker."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    closed: bool = False  # no more will come
    bytes: int = 0  # of all as they were given, by `ItemSpec.bytes`

    @property
    def ended(self) -> int:
        """Return how many have a result or have failed for good."""
        return self.succeeded + self.failed


class GangPlace(Message):
    """What a member is in its gang. `round` counts how often the gang has been placed.

    Workers of a map job (role ``worker``) and replicas of a service (role ``replica``; `round` is the revision that it
    runs) are members as well: jobs of their own, which their parent places, follows and stops.
    """

    gang_id: str
    round: int
    role: str
    index: int  # within the role, from 0
    rank: int  # within the gang, from 0
    size: int
    wait_s: float = 0.0  # for which its start may be withheld, until others run


class GangMember(Message):
    """A member as its gang knows it: a job of its own, which is placed, followed and stopped as any other."""

    job_id: str
    role: str
    index: int
    revision: int = 0  # of a service, that it runs
    host: str = ""  # of a connected gang: where the others reach it, on its role's number of ports from `port` on
    port: int = 0
    node: str
    state: JobState
    placed_at: datetime
    exit_code: int | None = None
    error: Failure | None = None
    outputs: OutputsRef | None = None


class Job(Message):
    """A job after an event. `input_seq` is the stream sequence of the last input that the scheduler took into it."""

    id: str
    owner: Owner
    spec: JobSpec
    spec_digest: str = ""  # SHA-256 of the body as sent, to tell a repeat from another job under the same key
    state: JobState = JobState.QUEUED
    created_at: datetime
    updated_at: datetime
    ended_at: datetime | None = None
    input_seq: int = 0
    attempt: int = 0  # the current attempt's number; 0 before the first
    attempts: tuple[Attempt, ...] = ()  # the last ATTEMPTS_KEPT, oldest first
    tries: int = 0  # of the user's max_attempts
    losses: int = 0  # of the infrastructure's budget
    not_before: datetime | None = None  # back-off after a failed attempt
    ready_at: datetime | None = None  # when all jobs that it needs had ended as they must; None where it needs none
    pending: tuple[PendingReason, ...] = ()
    cancel_requested_at: datetime | None = None
    error: Failure | None = None
    remarks: tuple[Remark, ...] = ()
    outputs: OutputsRef | None = None
    member_of: GangPlace | None = None  # of a gang's member; it is tried again only together with its gang
    #: Of a gang: those of its last round, by rank. Of a map job or a service: those that have not ended.
    members: tuple[GangMember, ...] = ()
    network: Literal["bridge", "host"] | None = None  # of a connected gang in its last round: see `shared.fleet.Wiring`
    items: ItemCounts | None = None  # of a map job
    revision: int = 0  # of a service's spec: counts up with each change of it
    replicas: int | None = None  # of a service: how many are wanted now, which is 0 while it is idle
    used_at: datetime | None = None  # of a service: about when it was last asked

    @property
    def current(self) -> Attempt | None:
        """Return the attempt that counts now, or None before the first and between two."""
        if self.attempts and self.attempts[-1].number == self.attempt:
            return self.attempts[-1]
        return None

    @property
    def is_terminal(self) -> bool:
        """Return whether nothing can happen to the job any more."""
        return self.state in JOB_TERMINAL
