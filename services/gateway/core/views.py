"""What clients see of jobs, and of the whole: models of the REST interface's answers. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Any, Literal

from pydantic import BaseModel

from shared.spec import JobSpec
from shared.states import AttemptState, EndReason, JobState, PendingCode


class JobCounts(BaseModel):
    """Jobs by state."""

    total: int
    by_state: dict[str, int]


class NodeCounts(BaseModel):
    """Nodes that were seen, those that are there, and how many are in trouble or get no work."""

    total: int
    online: int
    suspect: int
    lost: int
    left: int
    cordoned: int
    draining: int
    drained: int


class StatusView(BaseModel):
    """The system at a glance."""

    system_name: str
    server_time: datetime
    active_workloads: list[str]
    jobs: JobCounts
    nodes: NodeCounts


class Accepted(BaseModel):
    """A job that was accepted, or a request about it."""

    job_id: str
    state: JobState


class BatchRefusal(BaseModel):
    """Why one spec of a batch was not taken."""

    problem: dict[str, Any]


class BatchView(BaseModel):
    """An id or a problem for each spec, in order."""

    jobs: list[Accepted | BatchRefusal]


class FailureView(BaseModel):
    """Why something ended that did not succeed: a reason for programs, a sentence for people."""

    reason: EndReason
    message: str


class ProgressView(BaseModel):
    """How far a job says it is, 0 to 1, in its own words."""

    fraction: float
    message: str
    at: datetime


class OutputsView(BaseModel):
    """What a job left, in all."""

    files: int
    bytes: int


class PendingView(BaseModel):
    """Why a job waits, and how many nodes that rules out."""

    code: PendingCode
    nodes: int
    message: str


class AttemptView(BaseModel):
    """One try of a job on one node."""

    number: int
    node: str
    state: AttemptState
    phase: str | None
    gpus: list[str]
    score: dict[str, float]
    image_digest: str | None
    placed_at: datetime
    starting_at: datetime | None
    running_at: datetime | None
    finishing_at: datetime | None
    ended_at: datetime | None
    exit_code: int | None
    error: FailureView | None
    outputs: OutputsView | None
    peaks: dict[str, float]  # the most that it used: system.cpu in processors, system.memory in bytes


class NeedView(BaseModel):
    """A job that has to end first: with success (ok), in any way but by a cancel (any), or in any way (always)."""

    job: str
    on: Literal["ok", "any", "always"]


class MemberView(BaseModel):
    """A member of a gang: a job of its own under `job_id`, with its own logs and outputs."""

    job_id: str
    role: str
    index: int
    node: str
    state: JobState
    exit_code: int | None
    error: FailureView | None


class MemberOfView(BaseModel):
    """What a member is in its gang."""

    gang_id: str
    role: str
    index: int
    rank: int
    size: int
    round: int


class ItemCountsView(BaseModel):
    """How far a map job is. Those that are neither succeeded nor failed wait or are being worked on."""

    total: int
    succeeded: int
    failed: int
    closed: bool  # no more will come


class JobDocument(BaseModel):
    """A job and all that has become of it. `spec` is left out in lists."""

    job_id: str
    name: str
    state: JobState
    kind: str
    owner: str
    owner_id: str
    node: str | None
    progress: ProgressView | None
    attempts: list[AttemptView]
    tries: int
    losses: int
    created_at: datetime
    started_at: datetime | None
    updated_at: datetime
    ended_at: datetime | None
    not_before: datetime | None
    cancel_requested_at: datetime | None
    needs: list[NeedView]
    members: list[MemberView]  # of a gang: those of its last round, by rank; else: workers or replicas there are
    items: ItemCountsView | None  # of a map job
    member_of: MemberOfView | None
    pending: list[PendingView]
    outputs: OutputsView | None
    error: FailureView | None
    remarks: list[str]
    labels: list[str]
    spec: JobSpec | None = None


class JobPage(BaseModel):
    """Some jobs, newest first; `cursor` asks for the next."""

    jobs: list[JobDocument]
    cursor: str | None


class LineView(BaseModel):
    """One line of output. `n` counts from 1 over both streams of an attempt."""

    n: int
    t: datetime
    stream: Literal["stdout", "stderr"]
    text: str
    #: Of a gang, a map job or a service: whose line it is, as role-index; the member's own job, and its node.
    member: str | None = None
    member_id: str | None = None
    node: str | None = None
    item: str | None = None  # of a map job's worker: the item that it was at, as far as its node knows


class LogDocument(BaseModel):
    """Lines of one attempt. `more`: ask again with `after` set to the last line's number.

    Of a job that has members: lines of one member after the other; for more ask again with `cursor`.
    """

    attempt: int
    lines: list[LineView]
    more: bool
    cursor: str | None = None


class EventsDocument(BaseModel):
    """CloudEvents in order; `cursor` (a stream sequence) asks for those after."""

    events: list[dict[str, Any]]
    cursor: int


class PointView(BaseModel):
    """One value that the job printed."""

    name: str
    value: float | None
    step: int | None
    at: datetime


class SeriesView(BaseModel):
    """A series as a whole. `count` is of the points that are kept."""

    name: str
    count: int
    min: float
    max: float
    last: float


class MetricsDocument(BaseModel):
    """What an attempt measured: each series as a whole, and points of all of them in order of time."""

    attempt: int
    series: list[SeriesView]
    points: list[PointView]


class NotificationView(BaseModel):
    """One notification: to whom, about what, and how far it got."""

    id: str
    kind: str
    target: str
    event: str
    state: str
    tries: int
    detail: str
    requested_at: datetime
    updated_at: datetime
    next_at: datetime | None


class NotificationsDocument(BaseModel):
    """A job's notifications, oldest first."""

    notifications: list[NotificationView]


class LackView(BaseModel):
    """What one machine lacks, in the units of the spec."""

    code: PendingCode
    wanted: float
    free: float
    total: float


class FitView(BaseModel):
    """How close a machine comes."""

    node: str
    name: str
    lacks: list[LackView]
    message: str


class SuggestionView(BaseModel):
    """One change of the spec that would let the job start: `set` maps fields (dotted) to values."""

    set: dict[str, Any]
    message: str


class ExplanationView(BaseModel):
    """Why a job waits, or why it is where it is; `text` says all of it as a paragraph.

    `would_start`: it fits now, or is placed already. `never`: no machine could run it even if it were empty.
    `ahead`: how many jobs come before it; null when it does not wait in the queue.
    """

    job_id: str | None
    state: str
    would_start: bool
    never: bool
    node: str | None
    score: dict[str, float]
    reasons: list[PendingView]
    closest: list[FitView]
    ahead: int | None
    queue_length: int
    suggestion: SuggestionView | None
    nodes_considered: int
    error: FailureView | None
    text: str
