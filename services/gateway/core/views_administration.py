"""What administrators see and set: quotas, dead letters, retention. Times are UTC, sizes bytes."""

from datetime import datetime
from typing import Literal

from pydantic import BaseModel, Field

from shared.spec import Bytes


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
