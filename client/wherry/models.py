"""What the server answers. Fields that this version does not know are kept as they came (`model_extra`)."""

from datetime import datetime
from typing import Any

from pydantic import BaseModel, ConfigDict

#: States that a job never leaves.
TERMINAL = frozenset({"succeeded", "failed", "cancelled", "timed_out"})


class Answer(BaseModel):
    """The base of all answers: frozen, and open to fields of newer servers."""

    model_config = ConfigDict(frozen=True, extra="allow")


class Session(Answer):
    """A login."""

    user: str
    token: str
    expires_at: datetime | None = None


class Identity(Answer):
    """Who the token belongs to."""

    user: str = ""
    role: str = ""
    email: str | None = None


class Submitted(Answer):
    """A job that was accepted."""

    job_id: str
    state: str = "queued"


class Failure(Answer):
    """Why something ended that did not succeed: a reason for programs, a sentence for people."""

    reason: str = ""
    message: str = ""


class Progress(Answer):
    """How far a job says it is: 0 to 1, with its own words."""

    fraction: float = 0.0
    message: str = ""


class Pending(Answer):
    """Why a job waits, and how many nodes that rules out."""

    code: str
    nodes: int = 0
    message: str = ""


class Totals(Answer):
    """What a job left, in all."""

    files: int = 0
    bytes: int = 0


class Attempt(Answer):
    """One try of a job on one node."""

    number: int
    node: str = ""
    state: str = ""
    phase: str | None = None  # pull or stage_in, while it starts
    score: dict[str, float] = {}  # why this node
    exit_code: int | None = None
    error: Failure | None = None
    peaks: dict[str, float] = {}  # the most that it used: system.cpu in processors, system.memory in bytes
    placed_at: datetime | None = None
    starting_at: datetime | None = None
    running_at: datetime | None = None
    finishing_at: datetime | None = None
    ended_at: datetime | None = None


class Need(Answer):
    """A job that has to end first: with success (ok), in any way but by a cancel (any), or in any way (always)."""

    job: str
    on: str = "ok"


class Member(Answer):
    """A member of a gang: a job of its own under `job_id`."""

    job_id: str
    role: str
    index: int
    node: str
    state: str
    exit_code: int | None = None
    error: Failure | None = None


class ItemCounts(Answer):
    """How far a map job is. Those that are neither succeeded nor failed wait or are being worked on."""

    total: int = 0
    succeeded: int = 0
    failed: int = 0
    closed: bool = False


class Job(Answer):
    """A job and all that has become of it."""

    job_id: str
    name: str = ""
    state: str
    kind: str = "run"
    owner: str = ""
    node: str | None = None
    progress: Progress | None = None
    attempts: tuple[Attempt, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None
    ended_at: datetime | None = None
    not_before: datetime | None = None  # a pause before the next try
    cancel_requested_at: datetime | None = None
    needs: tuple[Need, ...] = ()
    members: tuple[Member, ...] = ()
    items: ItemCounts | None = None  # of a map job
    pending: tuple[Pending, ...] = ()
    outputs: Totals | None = None
    error: Failure | None = None
    remarks: tuple[str, ...] = ()
    labels: tuple[str, ...] = ()

    @property
    def is_terminal(self) -> bool:
        """Return whether nothing can happen to the job any more."""
        return self.state in TERMINAL


class JobPage(Answer):
    """Some jobs; `cursor` asks for the next."""

    jobs: tuple[Job, ...] = ()
    cursor: str | None = None


class Entry(Answer):
    """One file or folder that a job left. `size` and `sha256` are a file's; `mtime` is seconds since the epoch."""

    path: str
    kind: str = "file"
    mode: int = 0o644
    mtime: float = 0.0
    size: int = 0
    sha256: str | None = None


class OutputPage(Answer):
    """Some entries; `cursor` asks for the next. `skipped` says what was left out and why.

    `partial`: seen at `taken_at`, while the job ran; `look` names what was seen.
    """

    entries: tuple[Entry, ...] = ()
    cursor: str | None = None
    skipped: tuple[str, ...] = ()
    partial: bool = False
    look: str | None = None
    taken_at: datetime | None = None


class RetentionItem(Answer):
    """One thing that goes or is hidden, and why."""

    kind: str = ""
    id: str = ""
    owner_id: str = ""
    bytes: int = 0
    reason: str = ""


class RetentionSum(Answer):
    """How many, and their bytes."""

    count: int = 0
    bytes: int = 0


class RetentionRun(Answer):
    """What retention removed and hid, or (`dry_run`) would. What is hidden goes later, unless something needs it."""

    run_id: str = ""
    dry_run: bool = False
    ended_at: datetime | None = None
    removed: dict[str, RetentionSum] = {}
    hidden: dict[str, RetentionSum] = {}
    items: tuple[RetentionItem, ...] = ()
    more: bool = False
    error: str = ""


class Artifact(Answer):
    """Stored bytes."""

    artifact_id: str
    sha256: str = ""
    size: int = 0


class ArtifactEntry(Artifact):
    """An artifact in a list."""

    name: str = ""
    media_type: str = ""
    owner_id: str = ""
    created_at: datetime | None = None


class ArtifactPage(Answer):
    """A page of artifacts."""

    artifacts: list[ArtifactEntry] = []
    cursor: str | None = None


class DatasetVersion(Answer):
    """Bytes that a dataset had from some moment on."""

    version: int
    artifact_id: str = ""
    sha256: str = ""
    size: int = 0
    media_type: str = ""
    file: str = ""
    created_at: datetime | None = None


class Dataset(Answer):
    """A dataset as of one version; `versions` are all of them, newest first (in lists the newest alone)."""

    name: str
    version: int
    artifact_id: str = ""
    sha256: str = ""
    size: int = 0
    description: str = ""
    labels: list[str] = []
    media_type: str = ""
    visibility: str = "private"
    owner: str = ""
    created_at: datetime | None = None
    updated_at: datetime | None = None
    version_count: int = 0
    versions: list[DatasetVersion] = []
    #: After it was put: whether there was no version with these bytes yet.
    is_new: bool | None = None

    @property
    def file_name(self) -> str:
        """What its file is called, without any folder; else its name."""
        files = [one.file for one in self.versions if one.version == self.version]
        last = files[0].replace("\\", "/").rpartition("/")[2] if files else ""
        return self.name if last in ("", ".", "..") else last


class DatasetPage(Answer):
    """A page of datasets."""

    datasets: list[Dataset] = []
    cursor: str | None = None


class LogLine(Answer):
    """One line of output. `n` counts from 1 within an attempt; `stream` is stdout or stderr."""

    n: int = 0
    t: datetime | None = None
    stream: str = "stdout"
    text: str = ""
    #: Of a gang, a map job or a service: whose line it is, as role-index; the member's own job, and its node.
    member: str | None = None
    member_id: str | None = None
    node: str | None = None
    item: str | None = None  # of a map job's worker: the item that it was at, as far as its node knows


class Metric(Answer):
    """One value that the job measured."""

    name: str
    value: float | None = None  # None: not a finite number
    step: int | None = None
    at: datetime | None = None


class SeriesSummary(Answer):
    """A series as a whole: how many points were kept of it, and between which values."""

    name: str
    count: int = 0
    min: float = 0.0
    max: float = 0.0
    last: float = 0.0


class Metrics(Answer):
    """What an attempt measured and (``system.…``) used; points are in order of time."""

    attempt: int = 0
    series: tuple[SeriesSummary, ...] = ()
    points: tuple[Metric, ...] = ()


class Gap(Answer):
    """Lines that cannot be shown, by their numbers; the log that comes with the outputs has what was kept of them."""

    first: int = 0
    last: int = 0
    count: int = 0
    member: str | None = None  # of a job that has members
    member_id: str | None = None


class End(Answer):
    """The job has ended."""

    state: str


#: What following a job gives.
JobOutput = LogLine | Progress | Metric | Gap | End


class NodeChange(Answer):
    """One line of a machine's history."""

    at: datetime | None = None
    what: str = ""
    by: str = ""
    reason: str = ""


class Node(Answer):
    """A machine of the fleet, with what it has and uses.

    `condition` says whether it is heard: online, suspect, lost, left; `duty` whether it is to get work: active,
    cordoned, draining, drained; `reason` why not.
    """

    id: str = ""
    name: str = ""
    cluster: str = ""
    tags: tuple[str, ...] = ()
    online: bool = True
    condition: str = ""
    since: datetime | None = None
    duty: str = ""
    reason: str = ""
    deadline: datetime | None = None  # of a drain
    refused: str = ""  # why its agent gets nothing new
    problem: str = ""  # what is wrong with it, in its own words
    seen_at: datetime | None = None
    capacity: dict[str, Any] = {}
    usage: dict[str, Any] = {}
    running: int = 0
    attempts: tuple[dict[str, Any], ...] | None = None
    inputs: tuple[dict[str, Any], ...] | None = None  # that it keeps: key and bytes
    prefetches: tuple[str, ...] | None = None  # what it is bringing
    history: tuple[NodeChange, ...] | None = None


class NodePage(Answer):
    """Some machines; `cursor` asks for the next."""

    nodes: tuple[Node, ...] = ()
    cursor: str | None = None


class Cluster(Answer):
    """A cluster's machines, and what those of them offer together that are online. Sizes in bytes."""

    name: str = ""
    nodes: tuple[Node, ...] = ()
    online: int = 0
    cpus: float = 0
    memory: int = 0
    gpus: int = 0
    running: int = 0


class Lack(Answer):
    """What one machine lacks, in the units of the spec."""

    code: str = ""
    wanted: float = 0
    free: float = 0
    total: float = 0


class Fit(Answer):
    """How close a machine comes."""

    node: str = ""
    name: str = ""
    lacks: tuple[Lack, ...] = ()
    message: str = ""


class Suggestion(Answer):
    """One change of the spec that would let the job start: `set` maps fields (dotted) to values."""

    set: dict[str, Any] = {}
    message: str = ""


class Explanation(Answer):
    """Why a job waits, or why it is where it is; `text` says all of it as a paragraph.

    `would_start`: it fits now, or is placed already. `never`: no machine could run it even if it were empty.
    """

    job_id: str | None = None
    state: str = ""
    would_start: bool = False
    never: bool = False
    node: str | None = None
    score: dict[str, float] = {}
    reasons: tuple[Pending, ...] = ()
    closest: tuple[Fit, ...] = ()
    ahead: int | None = None
    queue_length: int = 0
    suggestion: Suggestion | None = None
    nodes_considered: int = 0
    text: str = ""


class Limits(Answer):
    """The most that one user's jobs may hold or wait with at a time; None is no limit. Memory in bytes."""

    cpus: float | None = None
    memory: int | None = None
    gpus: int | None = None
    running: int | None = None
    queued: int | None = None
    share: float = 1.0


class Quota(Answer):
    """A user's quota (None: no limits), and how many jobs of theirs wait or run."""

    user: str = ""
    quota: Limits | None = None
    by_state: dict[str, int] = {}


class DeadLetter(Answer):
    """A message that a service could not take in, and why. `body` is its text."""

    id: str = ""
    reader: str = ""
    subject: str = ""
    reason: str = ""
    at: datetime | None = None
    replayed_at: datetime | None = None
    body: str = ""


class DeadLetterPage(Answer):
    """Some dead letters; `cursor` asks for the next."""

    dead_letters: tuple[DeadLetter, ...] = ()
    cursor: str | None = None


class Status(Answer):
    """The system at a glance."""

    system_name: str = ""
    server_time: str | None = None


class User(Answer):
    """A user."""

    name: str = ""
    role: str = "user"
    email: str | None = None
    disabled: bool = False


class UserPage(Answer):
    """Some users; `cursor` asks for the next."""

    users: tuple[User, ...] = ()
    cursor: str | None = None


class EventPage(Answer):
    """Some CloudEvents; `cursor` is the place in the log after which the next are."""

    events: tuple[dict[str, Any], ...] = ()
    cursor: int = 0


class Notification(Answer):
    """One notification about a job's end: to whom, and how far it got."""

    id: str = ""
    kind: str = ""
    target: str = ""
    event: str = ""
    state: str = ""
    tries: int = 0
    detail: str = ""
    next_at: datetime | None = None
