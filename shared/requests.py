"""Questions to storage and their answers (NATS request/reply). Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Annotated, Any, Literal

from pydantic import StringConstraints

from shared.events import DeadLetter, LogLine, MetricPoint, Progress
from shared.fleet import Capacity, HeldInput, NodeInfo, NodeRecord, Quota, Usage
from shared.job import BlobRef, Item, Job, Owner, PendingReason
from shared.manifest import Entry
from shared.model import Message
from shared.spec import JobSpec
from shared.states import PendingCode

Role = Literal["admin", "expert", "user"]


class Empty(Message):
    """Nothing to say."""


class Principal(Message):
    """Who is calling."""

    user_id: str
    name: str
    role: Role = "user"
    email: str | None = None
    queued_max: int | None = None  # by the quota: more waiting jobs than these are refused; None: no limit


class Login(Message):
    """A user's name and password, against a session token."""

    user: str
    password: str
    client: str = ""  # address, for the throttle


class Session(Message):
    """A fresh session token. It is shown once; only its hash is kept."""

    principal: Principal
    token: str
    expires_at: datetime


class TokenQuery(Message):
    """A bearer token as the caller sent it."""

    token: str


class UserCreate(Message):
    """A new user."""

    name: str
    password: str
    role: Role = "user"
    email: str | None = None


class UserUpdate(Message):
    """Changes to a user; what is None stays."""

    name: str
    password: str | None = None
    role: Role | None = None
    email: str | None = None
    disabled: bool | None = None


class UserName(Message):
    """A user by name."""

    name: str


class PasswordChange(Message):
    """One's own new password. It revokes all sessions but the one named."""

    user_id: str
    old: str
    new: str
    keep_token: str | None = None


class User(Message):
    """A user without anything secret."""

    id: str
    name: str
    role: Role
    email: str | None = None
    disabled: bool = False
    created_at: datetime


class Users(Message):
    """Users by name."""

    users: tuple[User, ...] = ()


class SecretPut(Message):
    """A webhook secret to be kept for one owner's job."""

    owner_id: str
    value: str


class SecretRef(Message):
    """A secret's id, or with `owner_id` alone that owner's own signing secret."""

    owner_id: str
    ref: str | None = None


class SecretValue(Message):
    """A secret in clear. Only the notifier and the owner see it."""

    value: str


class JobQuery(Message):
    """A job by id. `min_seq` is a stream sequence that the answer must have seen, if known.

    `settled`: items that it was given before are in it, if the scheduler takes them in within a moment.
    """

    job_id: str
    min_seq: int = 0
    settled: bool = False


class JobView(Message):
    """A job as storage knows it, with what is not in the log."""

    job: Job
    seq: int  # stream sequence that the view has reached for this job
    progress: Progress | None = None


class JobListQuery(Message):
    """Jobs, newest first. `owner_id` None is everybody's (admins)."""

    owner_id: str | None = None
    states: tuple[str, ...] = ()
    name: str | None = None
    kind: str | None = None
    label: str | None = None
    view: str | None = None  # what the jobs are seen as; None: all
    gang_id: str | None = None  # the members of a gang; None: all that are no member
    limit: int = 50  # 1 to 500
    cursor: str | None = None


class JobList(Message):
    """A page of jobs; `cursor` asks for the next."""

    jobs: tuple[JobView, ...] = ()
    cursor: str | None = None


class ItemListQuery(Message):
    """Items of a map job, in the order in which they came. `states`: only those that are so.

    `after`: those with a higher index; where a cursor is given, that counts.
    """

    job_id: str
    states: tuple[str, ...] = ()
    after: int = -1
    limit: int = 100  # 1 to 1000
    cursor: str | None = None


class ItemList(Message):
    """A page of items; `cursor` asks for the next."""

    items: tuple[Item, ...] = ()
    cursor: str | None = None


class ItemQuery(Message):
    """An item by id: of one job, or of any of *owner_id*'s (None: of anybody's)."""

    item_id: str
    job_id: str | None = None
    owner_id: str | None = None


class ItemView(Message):
    """An item with its job. Its files are those whose bytes its worker has really stored."""

    item: Item
    job: Job


class EventQuery(Message):
    """Job events after a stream sequence, oldest first: of one job, or of one owner, or (both None) of all."""

    job_id: str | None = None
    owner_id: str | None = None
    after_seq: int = 0
    limit: int = 500  # 1 to 1000


class StoredEvent(Message):
    """A CloudEvent as it stands on the stream. `event` is its JSON text, byte for byte."""

    seq: int
    event: str


class EventPage(Message):
    """Events in order."""

    events: tuple[StoredEvent, ...] = ()


class LogQuery(Message):
    """Lines of one attempt (None: the current one), with numbers above `after`; or the last `tail`."""

    job_id: str
    attempt: int | None = None
    stream: Literal["o", "e"] | None = None
    after: int = 0
    tail: int | None = None
    since: datetime | None = None
    limit: int = 1000  # 1 to 5000


class LogPage(Message):
    """Lines in order of their number. `more` means that the limit cut the page."""

    attempt: int
    lines: tuple[LogLine, ...] = ()
    more: bool = False


class MetricQuery(Message):
    """What an attempt (None: the current one) measured, of the series *names* (none: of all)."""

    job_id: str
    min_seq: int = 0
    attempt: int | None = None
    names: tuple[str, ...] = ()
    most: int = 1000  # points of each series, 1 to 5000; a longer one is thinned, with its first, last and extremes


class SeriesSummary(Message):
    """A series as it was measured, however few of its points are given."""

    name: str
    count: int
    least: float
    greatest: float
    last: float


class MetricPage(Message):
    """Points of several series in order of arrival, and what each of these series is in all."""

    attempt: int = 0
    series: tuple[SeriesSummary, ...] = ()
    points: tuple[MetricPoint, ...] = ()


class OutputQuery(Message):
    """Outputs of a job: all, or the one at `path` (``_stdout.txt`` and ``_stderr.txt`` are the logs)."""

    job_id: str
    path: str | None = None
    cursor: str | None = None  # the last path of the page before
    limit: int = 1000


class OutputPage(Message):
    """Entries of the manifest in order of their path. Logs come as files."""

    entries: tuple[Entry, ...] = ()
    cursor: str | None = None
    skipped: tuple[str, ...] = ()


#: Names one look at what a running job has left so far.
SnapshotId = Annotated[str, StringConstraints(pattern=r"^l[a-z2-7]{25}$")]


class SnapshotAsk(Message):
    """See what a running job has left so far: everything, or what is at `path` and below it. The id is the sender's."""

    snapshot_id: SnapshotId
    job_id: str
    path: str | None = None
    bytes_max: int  # of what is fetched


class SnapshotWanted(Message):
    """Storage to the node that runs the attempt: store what is there now, and say so with `SnapshotTaken`."""

    snapshot_id: SnapshotId
    job_id: str
    attempt: int
    path: str | None = None
    bytes_max: int


class SnapshotTaken(Message):
    """The node's answer: the manifest of what it has stored, or why it could not."""

    snapshot_id: SnapshotId
    manifest: BlobRef | None = None
    error: str = ""  # a code
    message: str = ""


class SnapshotQuery(Message):
    """A page of a look. Where the node has not answered yet, storage waits a moment for it."""

    snapshot_id: SnapshotId
    job_id: str
    path: str | None = None  # of one entry
    cursor: str | None = None
    limit: int = 1000


class SnapshotPage(Message):
    """What was there when the node looked. `taken_at` None: not answered yet."""

    taken_at: datetime | None = None
    attempt: int = 0
    page: OutputPage = OutputPage()


class RetentionAsk(Message):
    """Remove what is kept no longer, or (`dry_run`) only say what that would be. `run_id` is the sender's choice."""

    run_id: str
    dry_run: bool = False
    limit: int = 100  # things that are named, 0 to 1,000
    by: str = ""  # a user's name


class RetentionQuery(Message):
    """A run by id. Where it has not ended, storage waits a moment for it."""

    run_id: str


class RetentionItem(Message):
    """One thing that goes or is hidden, and why."""

    kind: Literal["jobs", "logs", "artifacts", "live"]
    id: str
    owner_id: str = ""
    bytes: int = 0
    reason: str


class RetentionSum(Message):
    """How many, and their bytes."""

    count: int = 0
    bytes: int = 0


class RetentionRun(Message):
    """What a run did, or would do: sums by kind, and the first things by name.

    `hidden` answers as if it were gone and is removed by a run after the grace, unless something needs it by then.
    """

    run_id: str
    dry_run: bool = False
    started_at: datetime
    ended_at: datetime | None = None  # None: it is still at work
    removed: dict[str, RetentionSum] = {}
    hidden: dict[str, RetentionSum] = {}
    items: tuple[RetentionItem, ...] = ()
    more: bool = False  # there are others than those named
    error: str = ""


class ArtifactQuery(Message):
    """An artifact by id."""

    artifact_id: str


class Artifact(Message):
    """Stored bytes with a name and an owner. The id is the owner's; the bytes may be shared, which nobody can tell."""

    id: str
    owner_id: str
    blob: BlobRef
    name: str = ""
    media_type: str = "application/octet-stream"
    created_at: datetime


class ArtifactList(Message):
    """A page of artifacts; `cursor` asks for the next."""

    artifacts: tuple[Artifact, ...] = ()
    cursor: str | None = None


class NodeQuery(Message):
    """A node by id or name."""

    node: str


class NodeView(Message):
    """A node as of its last heartbeat."""

    node: NodeInfo
    capacity: Capacity
    usage: Usage
    attempts: tuple[dict[str, Any], ...] = ()  # HeldAttempt as JSON
    images: tuple[str, ...] = ()
    inputs: tuple[HeldInput, ...] = ()
    seen_at: datetime
    online: bool
    record: NodeRecord | None = None  # condition, duty and history, as the scheduler has them
    problem: str = ""


class NodeListQuery(Message):
    """Nodes, by name."""

    limit: int = 500  # 1 to 1000
    cursor: str | None = None


class NodeList(Message):
    """A page of nodes; `cursor` asks for the next."""

    nodes: tuple[NodeView, ...] = ()
    cursor: str | None = None


class NodeSeriesQuery(Message):
    """What a node, by id or name, has used over time: the series *names* (none: all), since a moment (None: ever)."""

    node: str
    names: tuple[str, ...] = ()
    since: datetime | None = None
    most: int = 1000  # points of each series, 2 to 5000; a longer one is thinned


class DeadLetterQuery(Message):
    """Dead letters, newest first."""

    reader: str | None = None
    limit: int = 50
    cursor: str | None = None


class DeadLetterId(Message):
    """One dead letter."""

    id: str


class DeadLetterView(Message):
    """A dead letter, and when it was taken in after all."""

    letter: DeadLetter
    replayed_at: datetime | None = None


class DeadLetterList(Message):
    """A page of dead letters; `cursor` asks for the next."""

    letters: tuple[DeadLetterView, ...] = ()
    cursor: str | None = None


class QuotaView(Message):
    """An owner's quota (None: no limits), and the jobs of theirs that wait or run."""

    quota: Quota | None = None
    by_state: dict[str, int] = {}


# --- explain and plan ------------------------------------------------------------------------------------------


class ExplainQuery(Message):
    """A job by id."""

    job_id: str


class PlanQuery(Message):
    """A job that is not handed in, as if its owner did so now."""

    owner: Owner
    spec: JobSpec


class Shortfall(Message):
    """What one node lacks. Amounts in the units of the spec: CPUs, bytes, GPUs."""

    code: PendingCode
    wanted: float = 0
    free: float = 0
    total: float = 0


class NodeFit(Message):
    """How close a node comes."""

    node: str
    name: str
    lacks: tuple[Shortfall, ...] = ()
    message: str = ""


class Suggestion(Message):
    """One change of the spec that would let the job start: `set` maps fields (dotted) to values."""

    set: dict[str, Any]
    message: str


class Explanation(Message):
    """Why a job waits, or why it is where it is.

    `would_start`: it fits now (plan), or is placed already. `never`: no node could run it even if it were empty.
    `ahead`: jobs that come before it in the queue; None when it does not wait there.
    """

    state: str
    would_start: bool = False
    never: bool = False
    node: str | None = None
    score: dict[str, float] = {}
    reasons: tuple[PendingReason, ...] = ()
    closest: tuple[NodeFit, ...] = ()
    ahead: int | None = None
    queue_length: int = 0
    suggestion: Suggestion | None = None
    nodes_considered: int = 0
    text: str = ""  # all of it as a paragraph for people


class Counts(Message):
    """What GET /status shows."""

    jobs: dict[str, int] = {}  # by state
    nodes_online: int = 0
    nodes_total: int = 0
    conditions: dict[str, int] = {}  # nodes by condition, as the scheduler has them
    duties: dict[str, int] = {}  # nodes by duty


class DeliveryView(Message):
    """One notification, its tries and its end."""

    id: str
    job_id: str
    owner_id: str
    kind: str
    target: str
    event: str
    state: str  # "pending", "retrying", "delivered", "given_up"
    tries: int = 0
    detail: str = ""
    requested_at: datetime
    updated_at: datetime
    next_at: datetime | None = None


class DeliveryList(Message):
    """The notifications of a job, oldest first."""

    deliveries: tuple[DeliveryView, ...] = ()


# --- datasets --------------------------------------------------------------------------------------------------

Visibility = Literal["private", "shared"]


class DatasetVersion(Message):
    """Bytes that a dataset had from some moment on. Numbers count from 1 and are not used again."""

    version: int
    artifact_id: str
    blob: BlobRef
    name: str = ""  # the file's
    media_type: str = "application/octet-stream"
    created_at: datetime


class Dataset(Message):
    """A name for bytes, which are its versions, newest first. Names are unique in an installation.

    `version_count` tells how many there are where not all of them are in the answer.
    """

    name: str
    owner_id: str
    owner_name: str
    description: str = ""
    labels: tuple[str, ...] = ()
    visibility: Visibility = "private"
    created_at: datetime
    updated_at: datetime
    versions: tuple[DatasetVersion, ...] = ()
    version_count: int = 0


class DatasetPut(Message):
    """A new version of a dataset, or the first: an artifact, or a file that a job left.

    That the caller may use the artifact or the job has been checked. What is None stays as it was.
    """

    name: str
    owner_id: str
    owner_name: str
    artifact_id: str | None = None
    job_id: str | None = None
    path: str | None = None
    description: str | None = None
    labels: tuple[str, ...] | None = None
    visibility: Visibility | None = None
    anybodys: bool = False  # an administrator does it: the dataset may be somebody else's


class DatasetStored(Message):
    """What became of it: a new version, or (with `is_new` false) the one that has the same bytes already."""

    dataset: Dataset
    version: int
    is_new: bool


class DatasetQuery(Message):
    """A dataset by name. With `alone` the answer has no version but `version`, or the newest."""

    name: str
    version: int | None = None
    alone: bool = False


class DatasetListQuery(Message):
    """Datasets by name, each with its newest version. All words of `text` have to be in one's name, words or labels.

    `viewer_id`: who asks; sees shared ones and their own. None is an administrator, who sees all.
    """

    text: str = ""
    owner_name: str | None = None
    viewer_id: str | None = None
    limit: int = 50  # 1 to 500
    cursor: str | None = None


class DatasetList(Message):
    """A page of datasets; `cursor` asks for the next."""

    datasets: tuple[Dataset, ...] = ()
    cursor: str | None = None


class DatasetUpdate(Message):
    """Changes to a dataset; what is None stays."""

    name: str
    description: str | None = None
    labels: tuple[str, ...] | None = None
    visibility: Visibility | None = None


class DatasetRemove(Message):
    """A version of a dataset, or (None) all of it. Its last version is all of it."""

    name: str
    version: int | None = None


# --- blobs -----------------------------------------------------------------------------------------------------

#: Bytes of a chunk: one NATS message and one GridFS chunk document, so nothing is cut twice.
CHUNK_BYTES = 512 * 1024
#: Chunks that one transfer may have under way: 8 MiB. The answer to a chunk, sent once it is stored, is the credit.
WINDOW_CHUNKS = 16


class BlobScope(Message):
    """What an upload is for: an owner's artifact (gateway), or an attempt's outputs (the node that runs it)."""

    owner_id: str | None = None
    name: str = ""
    media_type: str = "application/octet-stream"
    job_id: str | None = None
    attempt: int | None = None
    snapshot: SnapshotId | None = None  # with an attempt: for what was asked to be seen while it runs


class UploadOpen(Message):
    """Begin an upload. The id is the sender's choice (`shared.ids`), so that repeating the call is harmless."""

    upload_id: str
    scope: BlobScope


class UploadCommit(Message):
    """All chunks are stored: check the length and SHA-256, and make it one blob. Safe to repeat."""

    upload_id: str
    chunks: int
    size: int
    sha256: str


class UploadAbort(Message):
    """Forget an upload and what it stored."""

    upload_id: str


class Committed(Message):
    """The stored blob; `artifact_id` where the scope was an owner's."""

    blob: BlobRef
    artifact_id: str | None = None


class ResumableCreate(Message):
    """Begin an upload that any gateway may go on with. The id is the sender's choice: repeating it is harmless."""

    upload_id: str
    owner_id: str
    length: int | None = None  # None: told later
    name: str = ""
    media_type: str = "application/octet-stream"
    metadata: str = ""  # tus' Upload-Metadata, as the user sent it


class ResumableQuery(Message):
    """An upload that may be resumed, by id."""

    upload_id: str


class ResumableBegin(Message):
    """Go on writing at `offset`. Whoever wrote before is shut out from then on."""

    upload_id: str
    offset: int
    length: int | None = None  # told now where it was not before
    checked: bool = False  # what is written counts only once `ResumableAdvance` says so: its checksum comes first


class ResumableAdvance(Message):
    """The writer of `epoch` has had everything below `offset` stored. At the upload's length it becomes an artifact."""

    upload_id: str
    epoch: int
    offset: int


class Resumable(Message):
    """An upload that may be resumed. `epoch` counts its writers; `offset` is what is durable, in bytes."""

    upload_id: str
    owner_id: str
    state: Literal["open", "sealed", "committed", "dropped"]
    offset: int
    epoch: int = 0
    length: int | None = None
    metadata: str = ""
    created_at: datetime
    expires_at: datetime
    artifact_id: str | None = None  # with sha256, once it is committed
    sha256: str | None = None


class ArtifactListQuery(Message):
    """An owner's artifacts, newest first. `owner_id` None is everybody's (admins)."""

    owner_id: str | None = None
    limit: int = 100  # 1 to 1,000
    cursor: str | None = None


class InputQuery(Message):
    """What an input of a job consists of, for the node that runs the job: a page after the path `cursor`."""

    job_id: str
    input: str
    min_seq: int = 0
    cursor: str | None = None


class BlobRead(Message):
    """Bytes `offset` to `offset + length` of a blob; at most CHUNK_BYTES a call. The answer's body is raw.

    A node names the artifact and the job it runs that has it as source, or one of that job's inputs and a path among
    the outputs of the job that the input names, or an item of the map job whose worker it runs, with the item's
    artifact; the gateway, which has checked the owner, may name the digest.
    """

    artifact_id: str | None = None
    sha256: str | None = None
    job_id: str | None = None
    input: str | None = None
    path: str | None = None  # with input: as the manifest of the other job has it
    item: str | None = None  # with artifact_id and job_id, the worker's
    min_seq: int = 0
    offset: int = 0
    length: int = CHUNK_BYTES


class WebFetch(Message):
    """A small file from the web, that somebody waits for: it becomes an artifact of theirs."""

    owner_id: str
    url: str
    bytes_max: int


# --- requests to replicas of services -----------------------------------------------------------------------------

#: In the header SERVE_HEADER of each step, and of its answer.
SERVE_HEADER = "Wherry-Serve"


class ServeStep(Message):
    """One step of a request to a replica. Its id is the gateway's, and its replica is in the subject.

    ``part`` brings a piece of a body that is larger than one chunk, at `offset`; ``ask`` comes when all of it is there,
    or has it with it; ``more`` asks for the answer from `offset` on; ``drop``: nobody waits for it any more.
    """

    request_id: str
    step: Literal["ask", "part", "more", "drop"] = "ask"
    method: str = "GET"
    path: str = "/"  # with its query
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0  # bytes of the whole body
    offset: int = 0
    timeout_s: float = 60  # that the program has


class ServeAnswer(Message):
    """The head of an answer; a piece of its body comes with it. No status: the program is still at it, ask again."""

    status: int | None = None
    headers: tuple[tuple[str, str], ...] = ()
    size: int = 0  # bytes of the whole body
    took_s: float = 0  # that the program had for it
