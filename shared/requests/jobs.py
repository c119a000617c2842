"""What is asked about jobs: themselves, their items, events, logs, measurements and notifications. Times are UTC."""

from datetime import datetime
from typing import Literal

from shared.events import LogLine, MetricPoint, Progress
from shared.job import Item, Job
from shared.model import Message


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
