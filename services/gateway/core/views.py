"""What clients see: the models of the REST interface's answers. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, StringConstraints

from shared.fleet import Gpu, HeldInput
from shared.requests.accounts import Role
from shared.requests.datasets import Visibility
from shared.spec import ArtifactId, Bytes, ImageRef, JobSpec, Label, Seconds
from shared.states import AttemptState, EndReason, JobState, NodeCondition, NodeDuty, PendingCode


class SessionView(BaseModel):
    """A login. The token is shown once."""

    user: str
    role: Role
    token: str
    expires_at: datetime


class LogoutView(BaseModel):
    """A logout."""

    logout_message: str


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
    members: list[MemberView]  # of a gang: those of its last round, by rank; of a map job: its workers
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
    member: str | None = None  # of a gang, as role-index


class LogDocument(BaseModel):
    """Lines of one attempt. `more`: ask again with `after` set to the last line's number."""

    attempt: int
    lines: list[LineView]
    more: bool


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


class NodeMetricsDocument(BaseModel):
    """What a machine has used: points of several series in order of time, and what each series is in all."""

    node: str
    series: list[SeriesView]
    points: list[PointView]


class EntryView(BaseModel):
    """One file or folder that a job left. `mtime` is seconds since the epoch; `sha256` is a file's."""

    path: str
    kind: Literal["file", "dir"]
    mode: int
    mtime: float
    size: int
    sha256: str | None


class OutputsDocument(BaseModel):
    """Entries by path; `cursor` asks for the next. `skipped` says what was left out and why."""

    entries: list[EntryView]
    cursor: str | None
    skipped: list[str]
    partial: bool = False  # seen while the job runs: `look` names what was seen `taken_at` of that attempt
    look: str | None = None
    taken_at: datetime | None = None
    attempt: int | None = None


class RetentionItemView(BaseModel):
    """One thing that goes or is hidden, and why."""

    kind: Literal["jobs", "logs", "artifacts", "live"]
    id: str
    owner_id: str
    bytes: int
    reason: str


class RetentionSumView(BaseModel):
    """How many, and their bytes."""

    count: int
    bytes: int


class RetentionDocument(BaseModel):
    """What retention removed and hid, or (`dry_run`) would: sums by kind, and the first things by name.

    What is hidden answers as if it were gone; a later run removes it, unless something needs it by then. `bytes` among
    the kinds are stored bytes that nothing refers to any more.
    """

    run_id: str
    dry_run: bool
    started_at: datetime
    ended_at: datetime | None
    removed: dict[str, RetentionSumView]
    hidden: dict[str, RetentionSumView]
    items: list[RetentionItemView]
    more: bool
    error: str


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


class ArtifactView(BaseModel):
    """Stored bytes."""

    artifact_id: str
    sha256: str
    size: int


class ArtifactEntry(ArtifactView):
    """An artifact in a list."""

    name: str
    media_type: str
    owner_id: str
    created_at: datetime


class ArtifactsDocument(BaseModel):
    """A page of artifacts, newest first; `cursor` asks for the next."""

    artifacts: list[ArtifactEntry]
    cursor: str | None = None


class UploadView(BaseModel):
    """An upload that may be resumed: how far it has come, in bytes, and which artifact it has become."""

    upload_id: str
    offset: int
    length: int | None
    created_at: datetime
    expires_at: datetime | None
    artifact_id: str | None
    sha256: str | None


class CapacityView(BaseModel):
    """What a node offers."""

    cpus: float
    memory: int
    disk: int
    gpus: list[Gpu]


class UsageView(BaseModel):
    """What is really in use on the machine, by anyone."""

    cpu_percent: float
    load1: float
    memory_available: int
    disk_free: int


class NodeChangeView(BaseModel):
    """One line of a machine's history."""

    at: datetime
    what: str
    by: str
    reason: str


class NodeDocument(BaseModel):
    """A machine as of its last heartbeat.

    `condition` says whether it is heard (since `since`), `duty` whether it is to get work, and `reason` why not.
    What it runs, which images it holds and its history is for administrators.
    """

    id: str
    name: str
    cluster: str
    tags: list[str]
    arch: str
    os: str
    agent_version: str
    runtimes: list[str]
    engine: str
    online: bool
    condition: NodeCondition
    since: datetime | None
    duty: NodeDuty
    reason: str
    deadline: datetime | None
    refused: str
    problem: str
    seen_at: datetime
    capacity: CapacityView
    usage: UsageView
    running: int
    attempts: list[dict[str, Any]] | None = None
    images: list[str] | None = None
    inputs: list[HeldInput] | None = None
    prefetches: list[str] | None = None
    history: list[NodeChangeView] | None = None


class NodesDocument(BaseModel):
    """Some machines, by name; `cursor` asks for the next."""

    nodes: list[NodeDocument]
    cursor: str | None


class ClusterNode(BaseModel):
    """A machine of a cluster, in short."""

    id: str
    name: str
    condition: NodeCondition
    duty: NodeDuty


class ClusterView(BaseModel):
    """A cluster's machines, and what those of them offer together that are online. Sizes in bytes."""

    name: str
    nodes: list[ClusterNode]
    online: int
    cpus: float
    memory: int
    disk: int
    gpus: int
    gpu_memory: int
    running: int


class ClustersDocument(BaseModel):
    """Every cluster, by name."""

    clusters: list[ClusterView]


ArtifactOrDataset = Annotated[
    str,
    StringConstraints(
        max_length=200, pattern=r"^(artifact:a[a-z2-7]{25}|dataset:[a-z0-9][a-z0-9._-]{0,127}(@[1-9][0-9]{0,8})?)$"
    ),
]
Reason = Annotated[str, StringConstraints(max_length=500, pattern=r"^[^\x00-\x1f\x7f]*$")]


class NodeOrder(BaseModel):
    """Why a machine is to get work or not."""

    model_config = {"extra": "forbid"}

    reason: Reason = ""


class DrainOrder(NodeOrder):
    """How a machine is emptied: what still runs at the deadline (seconds, or "10m") is stopped and placed elsewhere.

    Without a deadline everything may run to its end.
    """

    deadline: Seconds | None = None


class PrefetchOrder(BaseModel):
    """What a machine is to bring: ``artifact:<id>``, ``dataset:<name>`` (``@<version>``), or an image.

    A zip is unpacked, as for a job whose input it is, unless `unpack` is false.
    """

    model_config = {"extra": "forbid"}

    what: ArtifactOrDataset | ImageRef = Field(union_mode="left_to_right")
    unpack: bool = True


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


class QuotaLimits(BaseModel):
    """The most that one owner's jobs may hold or wait with at a time; null is no limit. Memory in bytes or "64GiB".

    `running` and `queued` count jobs; `share` weighs the owner in the fair share.
    """

    model_config = {"extra": "forbid"}

    cpus: float | None = Field(default=None, ge=0, le=2**20)
    memory: Bytes | None = None
    gpus: int | None = Field(default=None, ge=0, le=2**20)
    running: int | None = Field(default=None, ge=0, le=2**31)
    queued: int | None = Field(default=None, ge=0, le=2**31)
    share: float = Field(default=1.0, gt=0, le=1000)


class QuotaDocument(BaseModel):
    """A user's quota (null: no limits), and how many jobs of theirs wait or run."""

    user: str
    quota: QuotaLimits | None
    by_state: dict[str, int]


class LetterView(BaseModel):
    """A message that `reader` could not take in, with the reason. `body` is its text, however broken."""

    id: str
    reader: str
    stream: str
    seq: int
    subject: str
    reason: str
    at: datetime
    replayed_at: datetime | None
    body: str


class LettersDocument(BaseModel):
    """Dead letters, newest first; `cursor` asks for the next."""

    dead_letters: list[LetterView]
    cursor: str | None


class UserView(BaseModel):
    """A user."""

    id: str
    name: str
    role: Role
    email: str | None
    disabled: bool
    created_at: datetime


class UsersDocument(BaseModel):
    """Users by name."""

    users: list[UserView]


class Me(BaseModel):
    """Who the token belongs to."""

    id: str
    user: str
    role: Role
    email: str | None


class SecretDocument(BaseModel):
    """A signing secret."""

    secret: str


class Credentials(BaseModel):
    """A name and a password."""

    model_config = {"extra": "forbid"}

    user: str
    password: str


class NewUser(BaseModel):
    """A user to add."""

    model_config = {"extra": "forbid"}

    name: str
    password: str
    role: Role = "user"
    email: str | None = None


class UserChanges(BaseModel):
    """Changes to a user; what is left out stays."""

    model_config = {"extra": "forbid"}

    password: str | None = None
    role: Role | None = None
    email: str | None = None
    disabled: bool | None = None


class NewPassword(BaseModel):
    """One's own new password. All other sessions end."""

    model_config = {"extra": "forbid"}

    old: str
    new: str


# --- datasets --------------------------------------------------------------------------------------------------

DatasetName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9._-]{0,127}$")]
_Description = Annotated[str, StringConstraints(max_length=10_000, pattern=r"^[^\x00]*$")]
_Labels = Annotated[list[Label], Field(max_length=64)]


class NewDataset(BaseModel):
    """A dataset, or its next version, of bytes that are stored already. What is left out stays as it was."""

    model_config = ConfigDict(extra="forbid")

    name: DatasetName
    artifact_id: ArtifactId | None = None
    #: ``job:<id>/<path>``: a file that a job left.
    output: Annotated[str, StringConstraints(pattern=r"^job:j[a-z2-7]{25}/[^\x00-\x1f\x7f]{1,4096}$")] | None = None
    description: _Description | None = None
    labels: _Labels | None = None
    visibility: Visibility | None = None


class DatasetChanges(BaseModel):
    """Changes to a dataset; what is left out stays."""

    model_config = ConfigDict(extra="forbid")

    description: _Description | None = None
    labels: _Labels | None = None
    visibility: Visibility | None = None


class DatasetVersionView(BaseModel):
    """Bytes that a dataset had from some moment on."""

    version: int
    artifact_id: str
    sha256: str
    size: int
    media_type: str
    created_at: datetime
    file: str


class DatasetDocument(BaseModel):
    """A dataset as of one version. `versions` has all of them, newest first; in lists the newest alone."""

    name: str
    version: int
    artifact_id: str
    sha256: str
    size: int
    description: str
    labels: list[str]
    media_type: str
    visibility: Visibility
    owner: str
    created_at: datetime
    updated_at: datetime
    version_count: int
    versions: list[DatasetVersionView]


class DatasetStoredDocument(DatasetDocument):
    """The same, and whether there was no version with these bytes yet."""

    is_new: bool


class DatasetPage(BaseModel):
    """Datasets by name; `cursor` asks for the next."""

    datasets: list[DatasetDocument]
    cursor: str | None = None
