"""Why a job waits, and where one that is not handed in would go: questions to the scheduler."""

from typing import Any

from shared.job import Owner, PendingReason
from shared.model import Message
from shared.spec import JobSpec
from shared.states import PendingCode


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
