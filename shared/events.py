"""The CloudEvents 1.0 envelope of everything that a stream keeps, and the data that it carries."""

from typing import Annotated, Generic, Self, TypeVar

from pydantic import AwareDatetime, Field

from shared.job import ITEM_FILES_MAX, BlobRef, ExitCode, Failure, Item, ItemFile, Job, OutputsRef, Peaks
from shared.model import Message, Name, Remark, Sentence
from shared.spec import ItemSpec, JobSpec
from shared.states import AttemptState

D = TypeVar("D", bound=Message)


class Event(Message, Generic[D]):
    """One CloudEvents 1.0 event in structured JSON mode.

    `id` names the operation that wrote it: a writer that lost an answer compares it to tell its own write
    from somebody else's. `causedby` is the id of the event that led to this one.
    """

    specversion: str = "1.0"
    id: str
    source: str  # "/wherry/<service>" or "/wherry/node_agent/<node_id>"
    type: str  # "io.wherry.job.placed.v1"
    time: AwareDatetime
    subject: str  # the job's id
    datacontenttype: str = "application/json"
    causedby: str | None = None
    data: D

    def to_bytes(self) -> bytes:
        """Return structured-mode JSON. The envelope is whole; the data leaves its defaults out."""
        head = self.model_dump_json(exclude={"data"}, exclude_none=True)
        return head[:-1].encode() + b',"data":' + self.data.to_bytes() + b"}"

    @classmethod
    def from_bytes(cls, body: bytes) -> Self:
        """Parse structured-mode JSON.

        Raises:
            pydantic.ValidationError: the body is not such an event.
        """
        return cls.model_validate_json(body)


class JobChanged(Message):
    """What `wherry.job.>` carries: the whole job after the event, so that no reader has to ask back."""

    job: Job
    epoch: int = 0  # of the leading scheduler that wrote it; 0 from the gateway
    items: tuple[Item, ...] = ()  # of a map job: those that this event changes, whole


class AttemptStarting(Message):
    """The node has the attempt in its journal and works on it."""

    attempt: int
    phase: Name = "pull"  # or "stage_in"
    at: AwareDatetime


class AttemptRunning(Message):
    """The user's program runs."""

    attempt: int
    at: AwareDatetime
    image_digest: Name | None = None


class AttemptFinishing(Message):
    """The program has ended; what it left is being brought home."""

    attempt: int
    at: AwareDatetime
    exit_code: ExitCode | None = None


class AttemptFinished(Message):
    """The last word about an attempt. `state` is a final attempt state."""

    attempt: int
    at: AwareDatetime
    state: AttemptState
    exit_code: ExitCode | None = None
    error: Failure | None = None
    outputs: OutputsRef | None = None
    image_digest: Name | None = None
    running_at: AwareDatetime | None = None  # for when `running` was never delivered
    remarks: tuple[Remark, ...] = ()
    peaks: Peaks = {}


class ItemEnd(Message):
    """What a worker says has become of one item."""

    id: str
    error: Failure | None = None  # None: it succeeded
    files: Annotated[tuple[ItemFile, ...], Field(max_length=ITEM_FILES_MAX)] = ()
    started_at: AwareDatetime
    at: AwareDatetime
    tries: Annotated[int, Field(ge=0, lt=2**31)] | None = None  # that had ended before this one, as ordered


class AttemptItems(Message):
    """What has become of items that an attempt, a worker of a map job, had. At most ITEMS_AT_ONCE of them."""

    attempt: int
    ends: tuple[ItemEnd, ...]
    at: AwareDatetime


class ItemsAdded(Message):
    """Items for a map job, in order. At most ITEMS_AT_ONCE, each with its id; one that it has already changes nothing.

    With `close`, no more will come.
    """

    items: tuple[ItemSpec, ...] = ()
    close: bool = False
    by: str  # a user's id
    at: AwareDatetime


class ItemsRetried(Message):
    """Failed items are to be tried again: those named, or all (where none is). The job must not have ended."""

    items: tuple[str, ...] = ()
    by: str
    at: AwareDatetime


class ServiceUpdated(Message):
    """Another number of replicas, or another spec: a new revision, which replicas are changed to one by one."""

    replicas: int | None = None
    spec: JobSpec | None = None
    by: str
    at: AwareDatetime


class ServiceAsked(Message):
    """Somebody asks a service that has no replica: it is to have its replicas again."""

    by: str
    at: AwareDatetime


class CancelRequested(Message):
    """Somebody with the right to do so asks for the job to stop."""

    by: str  # a user's id
    at: AwareDatetime


class DeadLetter(Message):
    """A message that a reader could not take in. `id` is the stream, its sequence and the reader, joined by dots."""

    id: str
    stream: str
    seq: int
    reader: str  # the service
    target: str  # the subject that it came on
    reason: Sentence
    body: str  # base64
    at: AwareDatetime


class JobSummary(Message):
    """What a notification tells about a job. Carried along, because a delivery may be tried for days."""

    name: str
    state: str
    error: Failure | None = None
    files: int = 0
    bytes: int = 0
    attempts: int = 0
    created_at: AwareDatetime
    running_at: AwareDatetime | None = None
    ended_at: AwareDatetime | None = None


class Notice(Message):
    """What a notification tells that is about no job's end. `topic` is the event's type: ``io.wherry.<topic>.v1``."""

    title: Annotated[str, Field(max_length=300)]
    text: Annotated[str, Field(max_length=20_000)]
    topic: str


class DeliveryRequested(Message):
    """One notification to one target: about a job's end, or with a `notice` about something else of the id `job_id`."""

    delivery_id: str
    job_id: str
    owner_id: str
    event_id: str  # of the job event; the webhook-id over all tries is delivery_id
    event: str  # succeeded, failed, cancelled, timed_out
    kind: str  # "email" or "webhook"
    target: str  # an address or a URL
    secret_ref: str | None = None
    at: AwareDatetime
    job: JobSummary | None = None
    notice: Notice | None = None


class DeliveryTried(Message):
    """The outcome of one try of a delivery. Final when `state` is delivered or given_up."""

    delivery_id: str
    job_id: str
    owner_id: str
    tries: int
    state: str  # "retrying", "delivered", "given_up"
    detail: str = ""  # what the receiver said, or why it was given up
    at: AwareDatetime
    next_at: AwareDatetime | None = None


class LogLine(Message):
    """One line of output. `n` counts from 1 over both streams of an attempt: a hole in the numbers is a lost range."""

    n: int
    t: AwareDatetime
    s: str = "o"  # "o" stdout, "e" stderr
    x: str  # the text without its line end, at most LOG_LINE_BYTES_MAX
    i: str = ""  # of a map job's worker: the item that it was at, as far as its node knows


LOG_LINE_BYTES_MAX = 16 * 1024


class Progress(Message):
    """How far a job says it is: 0 to 1, with its own words."""

    fraction: float = Field(ge=0, le=1)
    message: str = ""
    at: AwareDatetime


class MetricPoint(Message):
    """One value that the job printed with ``::metric name=value step=n``."""

    name: str
    value: float
    step: int | None = None
    at: AwareDatetime


class LostLines(Message):
    """Lines *first* to *last* of an attempt were left out by its node on purpose: nobody need look for them."""

    first: int
    last: int


class SeriesPart(Message):
    """A batch that is part *index* (from 0) of *count*: together all metrics, in place of those before."""

    index: int = Field(ge=0)
    count: int = Field(ge=1, le=10_000)


class OutputBatch(Message):
    """What an attempt printed since the last batch. May be lost; the whole log comes home as an artifact.

    What it measured comes once more at its end, with `final`, and that is sent until it is kept.
    """

    lines: tuple[LogLine, ...] = ()
    progress: Progress | None = None
    metrics: tuple[MetricPoint, ...] = ()
    lost: tuple[LostLines, ...] = ()
    final: SeriesPart | None = None


class TokenRevoked(Message):
    """A token or all tokens of a user are dead from now on."""

    token_sha256: str | None = None
    user_id: str | None = None


__all__ = [
    "AttemptFinished",
    "AttemptFinishing",
    "AttemptItems",
    "AttemptRunning",
    "AttemptStarting",
    "BlobRef",
    "CancelRequested",
    "DeadLetter",
    "DeliveryRequested",
    "DeliveryTried",
    "Event",
    "ItemEnd",
    "ItemsAdded",
    "ItemsRetried",
    "JobChanged",
    "JobSummary",
    "LogLine",
    "LostLines",
    "MetricPoint",
    "Notice",
    "OutputBatch",
    "Progress",
    "SeriesPart",
    "ServiceAsked",
    "ServiceUpdated",
    "TokenRevoked",
]
