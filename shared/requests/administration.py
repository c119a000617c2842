"""What administrators ask for: retention, dead letters, quotas, counts of all jobs. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Literal

from shared.events import DeadLetter
from shared.fleet import Quota
from shared.model import Message


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


class Counts(Message):
    """What GET /status shows."""

    jobs: dict[str, int] = {}  # by state
    nodes_online: int = 0
    nodes_total: int = 0
    conditions: dict[str, int] = {}  # nodes by condition, as the scheduler has them
    duties: dict[str, int] = {}  # nodes by duty
