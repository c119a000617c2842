"""What the log says, as the core takes it in: job events, and inputs that wait for a decision."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from services.scheduler.core.lifecycle import Cancel, Report
from services.scheduler.core.mapping import ItemInput, ItemsSaid
from services.scheduler.core.service import Wish
from shared import channels
from shared.events import (
    AttemptFinished,
    AttemptFinishing,
    AttemptItems,
    AttemptRunning,
    AttemptStarting,
    CancelRequested,
    Event,
    ItemsAdded,
    ItemsRetried,
    JobChanged,
    ServiceAsked,
    ServiceUpdated,
)
from shared.job import Item, Job
from shared.model import Message
from shared.states import JobState


@dataclass(frozen=True, slots=True)
class Recorded:
    """A job event at *seq*: the whole job after it, and the items of a map job that it changes.

    `epoch` is the writer's, 0 for the gateway's `created`.
    """

    seq: int
    job: Job
    epoch: int
    items: tuple[Item, ...] = ()


@dataclass(frozen=True, slots=True)
class Input:
    """Something at *seq* that a node or a user says about a job; `cause` is the event's id."""

    seq: int
    job_id: str
    event: Report | Cancel | Wish | ItemInput
    cause: str


@dataclass(frozen=True, slots=True)
class LookedUp:
    """What the log says last about a job that had been asked for; None: nothing."""

    job_id: str
    job: Job | None


Fact = Recorded | Input


def read_fact(subject: str, seq: int, event: Event[Message]) -> Fact | None:
    """Return what a message of the log means, or None if it contradicts its subject or is none of ours.

    The subject is believed, for the broker has checked who may publish on it; the body must agree.
    """
    data = event.data
    match data:
        case JobChanged(job=job, epoch=epoch, items=items):
            params = channels.JOB_CHANGED.parse(subject)
            if params is None or (params["owner"], params["job_id"]) != (job.owner.id, job.id):
                return None
            if params["event"] == "created" and not _is_new(job):
                return None
            return Recorded(seq, job, epoch, items)
        case CancelRequested() | ServiceUpdated() | ServiceAsked() | ItemsAdded() | ItemsRetried():
            return _request(subject, seq, event.id, data)
        case AttemptItems():
            params = channels.ATTEMPT_ITEMS.parse(subject)
            return Input(seq, params["job_id"], ItemsSaid(params["node_id"], data), event.id) if params else None
        case AttemptStarting() | AttemptRunning() | AttemptFinishing() | AttemptFinished():
            _, _, node_id, job_id, _ = subject.split(".")
            return Input(seq, job_id, Report(node_id, data), event.id)
        case _:
            return None


_Request = CancelRequested | ServiceUpdated | ServiceAsked | ItemsAdded | ItemsRetried


def _request(subject: str, seq: int, cause: str, data: _Request) -> Input | None:
    params = _REQUESTS[type(data)].parse(subject)
    if params is None:
        return None
    match data:
        case CancelRequested():
            return Input(seq, params["job_id"], Cancel(data.by), cause)
        case ServiceUpdated() | ServiceAsked():
            return Input(seq, params["job_id"], Wish(data), cause)
        case _:
            return Input(seq, params["job_id"], data, cause)


_REQUESTS: Mapping[type[Message], channels.Channel[Any, Any]] = {
    CancelRequested: channels.CANCEL_REQUESTED,
    ServiceUpdated: channels.SERVICE_UPDATED,
    ServiceAsked: channels.SERVICE_ASKED,
    ItemsAdded: channels.ITEMS_ADDED,
    ItemsRetried: channels.ITEMS_RETRIED,
}


def _is_new(job: Job) -> bool:
    """Return whether nothing has become of *job* yet but that it was handed in."""
    if job.member_of or job.members:
        return False
    return job.state is JobState.QUEUED and not (job.attempt or job.attempts or job.input_seq)
