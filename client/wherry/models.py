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
    exit_code: int | None = None
    error: Failure | None = None
    placed_at: datetime | None = None
    running_at: datetime | None = None
    ended_at: datetime | None = None


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
    """Some entries; `cursor` asks for the next. `skipped` says what was left out and why."""

    entries: tuple[Entry, ...] = ()
    cursor: str | None = None
    skipped: tuple[str, ...] = ()


class Artifact(Answer):
    """Stored bytes."""

    artifact_id: str
    sha256: str = ""
    size: int = 0


class LogLine(Answer):
    """One line of output. `n` counts from 1 within an attempt; `stream` is stdout or stderr."""

    n: int = 0
    t: datetime | None = None
    stream: str = "stdout"
    text: str = ""


class Metric(Answer):
    """One value that the job measured."""

    name: str
    value: float | None = None  # None: not a finite number
    step: int | None = None


class Gap(Answer):
    """Lines that were lost while following; they are in the log that comes with the outputs."""


class End(Answer):
    """The job has ended."""

    state: str


#: What following a job gives.
JobOutput = LogLine | Progress | Metric | Gap | End


class Node(Answer):
    """A machine of the fleet, with what it has and uses."""

    id: str = ""
    name: str = ""
    cluster: str = ""
    tags: tuple[str, ...] = ()
    online: bool = True
    seen_at: datetime | None = None
    capacity: dict[str, Any] = {}
    usage: dict[str, Any] = {}


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
